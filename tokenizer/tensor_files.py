"""Tensors in files, read one at a time: safetensors or PyTorch's pickles, whole or in shards that an index lists.

In: a file or a folder. Out: a mapping from names to tensors that are mapped from the file, so that memory is used only
for what is looked at. Pickles are read with `weights_only`: code in them is refused, not run. Knows no model.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SAFETENSORS = ".safetensors"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that transformers gives to the weights in a folder, the preferred first; with ".index.json" for shards."""
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    struct.error,
)
"""What the readers raise, one or another, on bytes that are no checkpoint or only a part of one."""
ZIP_START = b"PK\x03\x04"  # PyTorch writes zip archives since 1.6


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some files; keeps one file open. A tensor that was read keeps its file mapped."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, Tensor] = {}
        """Every tensor on the meta device: its shape and type, nothing else."""
        self._path_of: dict[str, Path] = {}
        self._open: tuple[Path, Mapping[str, Tensor]] | None = None
        for path in paths:
            for name, tensor in tensors_of(read_file(path), path).items():
                self.shapes[name] = torch.empty_like(tensor, device="meta")
                self._path_of[name] = path

    def __getitem__(self, name: str) -> Tensor:
        path = self._path_of[name]
        if self._open is None or self._open[0] != path:
            self._open = path, tensors_of(read_file(path), path)
        return self._open[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._path_of)

    def __len__(self) -> int:
        return len(self._path_of)

    def close(self) -> None:
        """Let go of the open file, and with it of the memory that its mapped pages occupy."""
        self._open = None


def read_file(path: Path) -> Any:
    """What a file holds, its tensors mapped; one clear sentence where it cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}; give the downloaded file")
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except pickle.UnpicklingError as error:
        if found := re.search(r"(?:GLOBAL|class) (\S+)", str(error)):
            raise ValueError(
                f"{path} holds program code, not only tensors: found {found[1]}, which was not run; "
                "use a file from a source that you trust, saved as safetensors"
            ) from None
        raise damaged(path, error) from None
    except UNREADABLE as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ValueError:
    """The error for a file that is cut off or is no checkpoint."""
    found = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{path} is damaged or no checkpoint: {found[0][:150]}; download it again")


def is_zip(path: Path) -> bool:
    """Whether PyTorch can map this file; the format before 1.6 has to be read as a whole."""
    with path.open("rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


def tensors_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The content as a state dict, if it is one."""
    is_state = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state or not content:
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds no tensors by name: found {found}; give a state dict")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: one, or the shards of its index."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return shards_of(index)
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(
        f"the folder {folder} holds no weights: found none of {', '.join(WEIGHT_FILES)}, and no index of shards; "
        "download them too"
    )


def shards_of(index: Path) -> list[Path]:
    """The shards that an index lists, all of them present."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {error}; download it again") from None
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} leads out of its folder: found {foreign[0]!r}; use an index from a trusted source")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{len(absent)} of {len(names)} shards are missing in {index.parent}: found no {absent[0]}; download it"
        )
    return [index.parent / name for name in names]
