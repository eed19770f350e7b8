"""Files of weights: read without running code that they may hold, compared with a network, and renamed.

`TensorFiles` and `read_tensors` map tensors from files, `require_same_tensors` says what does not fit, and `NameTable`
translates the names of another checkpoint to ours and back. Knows no network.
"""

import pickle
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenizer.config import read_json

SAFETENSORS = ".safetensors"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that transformers gives to the weights in a folder, the preferred one first; shards add ".index.json"."""
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    struct.error,
)
"""What the readers raise on bytes that are not a checkpoint, or only a part of one."""
ZIP_START = b"PK\x03\x04"  # PyTorch writes zip archives since 1.6; the format before cannot be mapped
SHOWN = 2  # names of each kind in an error; the rest is counted


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some files, mapped when they are asked for; keeps one file open. `shapes` has every tensor on the
    meta device; `close` releases the memory of the pages that were read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, Tensor] = {}
        self._path_of: dict[str, Path] = {}
        self._read = lru_cache(maxsize=1)(read_tensors)
        self.close = self._read.cache_clear
        for path in paths:
            for name, tensor in read_tensors(path).items():
                self.shapes[name] = torch.empty_like(tensor, device="meta")
                self._path_of[name] = path

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self._path_of[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._path_of)

    def __len__(self) -> int:
        return len(self._path_of)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: one, or the shards of its index."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return shards_of(index)
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(
        f"{folder} must hold {' or '.join(WEIGHT_FILES)} or an index of shards, got none of them; download them too"
    )


def shards_of(index: Path) -> list[Path]:
    """The shards that an index lists, all of them present."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} must be an index of shards, got {error}; download it again") from None
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} must list files of its own folder, got {foreign[0]!r}; use a trusted source")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index.parent} must hold all {len(names)} shards, got no {absent[0]}; download it")
    return [index.parent / name for name in names]


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors or PyTorch file by name, mapped."""
    return require_state_dict(read_file(path), path)


def read_file(path: Path) -> Any:
    """What a safetensors or PyTorch file holds, its tensors mapped. Code in pickles is refused, not run."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of weights, got no such file; download it or correct the path")
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        code = re.search(r"(?:GLOBAL|class) (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise ValueError(f"{path} must hold tensors only, got program code ({code[1]}); it was not run") from None
        found = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise ValueError(f"{path} must be a readable checkpoint, got {found}; download it again") from None


def require_state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    is_state = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state or not content:
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} must hold tensors by name, got {found}; give a state dict")
    return content


def require_same_tensors(found: Mapping[str, Tensor], expected: Iterable[str], *, source: Any) -> None:
    """Refuse a checkpoint that lacks a tensor, has an unexpected one, or has one of another shape. `expected`: tensors
    (on any device), or names alone where any shape will do. `source`: what the error calls the checkpoint."""
    shapes = {name: tensor.shape for name, tensor in expected.items()} if isinstance(expected, Mapping) else {}
    names = dict.fromkeys(expected)
    misshapen = [name for name, shape in shapes.items() if name in found and found[name].shape != shape]
    kinds = {
        "missing": [name for name in names if name not in found],
        "unexpected": [name for name in found if name not in names],
        "of another shape": [f"{name} ({tuple(found[name].shape)}, not {tuple(shapes[name])})" for name in misshapen],
    }
    differing = [
        f"{len(some)} {kind}: {', '.join(some[:SHOWN])}" + (f" and {len(some) - SHOWN} more" if some[SHOWN:] else "")
        for kind, some in kinds.items()
        if some
    ]
    if differing:
        raise ValueError(
            f"{source} must have the {len(names)} tensors of its network, got {'; '.join(differing)}; "
            "use weights and a config that belong together"
        )


Join = Literal["stack", "cat"]


class Source(NamedTuple):
    """What a tensor of ours is made of."""

    keys: list[str]  # of the other checkpoint, in order
    join: Join | None  # None: one tensor that is only renamed

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        parts = [state[key] for key in self.keys]
        return parts[0] if self.join is None else torch.stack(parts) if self.join == "stack" else torch.cat(parts)


class NameTable:
    """Names of another checkpoint and ours, for both directions; the first row that matches a name counts. Rows are
    (their name, our name) or (their name, our name, join). `{rest}` stands for anything and any other field for a
    number. In rows with a join, `{k}` counts the tensors there that are a single one here."""

    def __init__(self, rows: Iterable[tuple[str, str] | tuple[str, str, Join]]) -> None:
        self._rows = [(row[0], row[1], row[2] if len(row) == 3 else None) for row in rows]
        self._patterns = [(name_pattern(theirs), name_pattern(ours)) for theirs, ours, _ in self._rows]

    def sources(self, keys: Iterable[str]) -> dict[str, Source]:
        """Our names, and what each tensor is made of; every key is used."""
        numbered: dict[str, dict[int, str]] = defaultdict(dict)
        joins: dict[str, Join | None] = {}
        for key in keys:
            (_, ours, join), found = self._find(key, side=0)
            number = int(found.pop("k", 0))
            name = ours.format(**found)
            numbered[name][number], joins[name] = key, join
        for name, parts in numbered.items():
            if missing := sorted(set(range(len(parts))) - set(parts)):
                raise ValueError(f"{name} must be complete, got no part {missing[0]}; download the checkpoint again")
        return {name: Source([parts[k] for k in sorted(parts)], joins[name]) for name, parts in numbered.items()}

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: source.read(state) for name, source in self.sources(state).items()}

    def to_theirs(self, state: Mapping[str, Tensor], *, codebook_size: int) -> dict[str, Tensor]:
        """Our state dict under their names; the inverse of `to_ours`. Parts are views, not copies. `codebook_size`:
        rows of each part of a tensor joined by "cat"."""
        result: dict[str, Tensor] = {}
        for key, tensor in state.items():
            (theirs, _, join), found = self._find(key, side=1)
            if join is None:
                result[theirs.format(**found)] = tensor
            else:
                parts = tensor.unbind() if join == "stack" else tensor.split(codebook_size)
                result |= {theirs.format(**found, k=k): part for k, part in enumerate(parts)}
        return result

    def _find(self, key: str, *, side: int) -> tuple[tuple[str, str, Join | None], dict[str, str]]:
        for row, patterns in zip(self._rows, self._patterns, strict=True):
            if match := patterns[side].fullmatch(key):
                return row, match.groupdict()
        raise ValueError(f"tensor names must be of the released layout, got {key!r}; give such a checkpoint")


def name_pattern(template: str) -> re.Pattern[str]:
    """A name of a `NameTable` as a regular expression."""

    def group(field: re.Match[str]) -> str:
        return f"(?P<{field[1]}>{'.+' if field[1] == 'rest' else '[0-9]+'})"

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))
