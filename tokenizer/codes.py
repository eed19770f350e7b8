"""Codes of images in one file, .npz or .safetensors: written once, read by anyone with the same image tokenizer.

In and out: a `CodeFile`. In the file each image is one uint16 array (K, N), named `codes_00000` and so on, and one text
of JSON holds the rest: names, grids, geometry and the tokenizer's fingerprint. Knows no tokenizer, only its numbers.

Letters: K codebooks, N positions of one image (row-major).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

FORMAT_VERSION = 1
METADATA = "metadata"
ENDINGS = (".npz", ".safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeFile:
    """The codes of several images, which may differ in size."""

    names: tuple[str, ...]
    """What the images were called, without folders."""
    grids: tuple[tuple[int, int], ...]
    """(rows, columns) of positions, one per image."""
    codes: tuple[np.ndarray, ...]
    """uint16 (K, N) per image."""
    num_codebooks: int
    codebook_size: int
    fingerprint: str
    """Of the image tokenizer that made the codes."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.grids) == len(self.codes):
            raise ValueError(
                f"codes, grids and names must go together: found {len(self.codes)}, {len(self.grids)} and "
                f"{len(self.names)}; give one of each per image"
            )
        for name, grid, codes_KN in zip(self.names, self.grids, self.codes, strict=True):
            expected = (self.num_codebooks, grid[0] * grid[1])
            if codes_KN.shape != expected or codes_KN.dtype != np.uint16:
                raise ValueError(
                    f"the codes of {name} do not fit their grid {grid[0]} x {grid[1]}: expected uint16 {expected}, "
                    f"found {codes_KN.dtype} {codes_KN.shape}; encode the picture again"
                )

    def require_fingerprint(self, fingerprint: str) -> None:
        """Refuse codes of another tokenizer: they would decode to noise."""
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"these codes were made by another image tokenizer: fingerprint {self.fingerprint}, the model has "
                f"{fingerprint}; use the model that made them or encode the pictures again"
            )


def fingerprint(contents: Iterable[str | bytes | Tensor]) -> str:
    """16 hex digits that change when any of the contents does: names, bytes of files, weights.

    Tensors count as float32, so that a lossless change of dtype keeps the fingerprint.
    """
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, Tensor):
            content = content.detach().float().cpu().contiguous().numpy().tobytes()
        digest.update(content.encode() if isinstance(content, str) else content)
    return digest.hexdigest()[:16]


def check_ending(path: Path) -> None:
    """Refuse a name that tells no format."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path.name!r} does not end like a code file; use .npz or .safetensors")


def write_codes(path: Path, file: CodeFile) -> None:
    """Write one file; the ending of its name decides the format."""
    check_ending(path)
    metadata = {
        "format_version": FORMAT_VERSION,
        "names": file.names,
        "grids": file.grids,
        "num_codebooks": file.num_codebooks,
        "codebook_size": file.codebook_size,
        "fingerprint": file.fingerprint,
    }
    arrays = {array_name(index): codes_KN for index, codes_KN in enumerate(file.codes)}
    if path.suffix == ".npz":
        arrays[METADATA] = np.array(json.dumps(metadata))
        np.savez_compressed(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]  # the names are never its own
    else:
        save_file(arrays, path, metadata={METADATA: json.dumps(metadata)})


def read_codes(path: Path) -> CodeFile:
    """Read a file that `write_codes` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no code file, or a newer one.
    """
    check_ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no code file {path}; make one with mllm tokenize encode")
    try:
        arrays, metadata = (read_npz if path.suffix == ".npz" else read_safetensors)(path)
        if metadata["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {metadata['format_version']}, this toolkit reads {FORMAT_VERSION}")
        return CodeFile(
            names=tuple(metadata["names"]),
            grids=tuple((rows, columns) for rows, columns in metadata["grids"]),
            codes=tuple(arrays[array_name(index)] for index in range(len(metadata["names"]))),
            num_codebooks=metadata["num_codebooks"],
            codebook_size=metadata["codebook_size"],
            fingerprint=metadata["fingerprint"],
        )
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable code file ({error}); encode the pictures again") from None


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != METADATA}
        return arrays, json.loads(str(file[METADATA]))


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads((file.metadata() or {})[METADATA])


def array_name(index: int) -> str:
    return f"codes_{index:05d}"
