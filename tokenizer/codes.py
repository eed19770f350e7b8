"""Codes of images in one file, .npz or .safetensors, with the fingerprint of the tokenizer that made them.

Each image is a uint16 array (K, N), named `codes_00000` and so on; a JSON text holds names, grids, the geometry and the
fingerprint. Knows no tokenizer.

Letters: K codebooks, N positions of one image (row-major).
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

FORMAT_VERSION = 1
METADATA = "metadata"
ENDINGS = (".npz", ".safetensors")
ARRAY = "codes_{:05d}"  # name of the array of one image
FACTS = ("names", "grids", "num_codebooks", "codebook_size", "fingerprint")  # what the JSON text holds


def fingerprint(contents: Iterable[str | bytes | Tensor]) -> str:
    """16 hex digits that change when any of the contents does: names, bytes of files, weights. Tensors count as
    float32, so that a lossless change of dtype keeps the fingerprint."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, Tensor):
            content = content.detach().float().cpu().contiguous().numpy().tobytes()
        digest.update(content.encode() if isinstance(content, str) else content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeFile:
    """The codes of several images, which may differ in size."""

    names: tuple[str, ...]  # file names of the images, without folders
    grids: tuple[tuple[int, int], ...]  # (rows, columns) of positions, one per image
    codes: tuple[np.ndarray, ...]  # uint16 (K, N) per image
    num_codebooks: int
    codebook_size: int
    fingerprint: str  # of the image tokenizer that made the codes

    def __post_init__(self) -> None:
        counts = [len(self.names), len(self.grids), len(self.codes)]
        if len(set(counts)) > 1:
            raise ValueError(f"names, grids and codes must be one each per image, got {counts}; give as many of each")
        for name, grid, codes_KN in zip(self.names, self.grids, self.codes, strict=True):
            expected = (self.num_codebooks, grid[0] * grid[1])
            if codes_KN.shape != expected or codes_KN.dtype != np.uint16:
                found = f"{codes_KN.dtype} {codes_KN.shape}"
                raise ValueError(f"codes of {name} must be uint16 {expected}, got {found}; encode the image again")

    def require_fingerprint(self, fingerprint: str) -> None:
        """Refuse codes of another tokenizer: they would decode to noise."""
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"codes must be of the image tokenizer {fingerprint}, got {self.fingerprint}; encode the images again"
            )


def check_ending(ending: str) -> None:
    if ending not in ENDINGS:
        raise ValueError(f"the name of a code file must end in {' or '.join(ENDINGS)}, got {ending!r}; rename it")


def write_codes(path: Path, file: CodeFile, *, ending: str | None = None) -> None:
    """Write a code file in the format that its ending names, or that `ending` names in its place."""
    ending = path.suffix if ending is None else ending
    check_ending(ending)
    arrays = {ARRAY.format(index): codes_KN for index, codes_KN in enumerate(file.codes)}
    facts = {name: getattr(file, name) for name in FACTS}
    metadata = json.dumps({"format_version": FORMAT_VERSION, **facts})
    if ending == ".npz":
        arrays[METADATA] = np.array(metadata)
        with path.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]  # names never clash
    else:
        save_file(arrays, path, metadata={METADATA: metadata})


def read_codes(path: Path) -> CodeFile:
    check_ending(path.suffix)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a code file, got no such file; make one with `mllm tokenize encode`")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop(METADATA)))
        else:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}
                facts = json.loads((file.metadata() or {})[METADATA])
        if facts["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {facts['format_version']} instead of {FORMAT_VERSION}")
        facts["names"] = tuple(facts["names"])
        facts["grids"] = tuple((rows, columns) for rows, columns in facts["grids"])
        codes = tuple(arrays[ARRAY.format(index)] for index in range(len(facts["names"])))
        return CodeFile(**{name: facts[name] for name in FACTS}, codes=codes)
    except (ValueError, KeyError, TypeError, EOFError, RecursionError, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path} must be a readable code file, got {error}; encode the images again") from None
