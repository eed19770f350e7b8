"""Codes of pictures by class, in files: what class-conditional training reads.

    FOLDER/codes/*.npy    (E, S, K, N) uint16: E pictures, S views of each (crops; one of them is picked)
    FOLDER/labels/*.npy   (E,) whole numbers, the classes; the same file names
    FOLDER/meta.json      what made them; folders of LlamaGen's own extraction (E = 1, S = 10) have none

Knows no tokenizer and no sequences.

Letters: E pictures of a file, S views, K codebooks, N positions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm.json_files import write_json
from mllm.whole_file import whole_file

CODES, LABELS, META = "codes", "labels", "meta.json"


class ClassCodes:
    """`codes[i]` is (views (S, K, N), class) of picture i. Files are opened when they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(path.name for path in (folder / CODES).glob("[!.]*.npy"))
        if not self.names:
            raise FileNotFoundError(f"no codes by class: found no {CODES}/*.npy in {folder}; encode pictures first")
        labels = [self._labels(name) for name in self.names]
        self.ends = np.cumsum([len(part) for part in labels])
        self.labels_E: NDArray[np.int64] = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self.labels_E)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint16], int]:
        file = int(np.searchsorted(self.ends, index, side="right"))
        codes_ESKN = np.load(self.folder / CODES / self.names[file], mmap_mode="r")
        within = index - (int(self.ends[file - 1]) if file else 0)
        if codes_ESKN.ndim != 4 or within >= len(codes_ESKN):
            raise ValueError(
                f"{self.folder / CODES / self.names[file]} does not fit its labels: found codes of "
                f"{codes_ESKN.shape}; they must be (pictures, views, codebooks, positions)"
            )
        return codes_ESKN[within], int(self.labels_E[index])

    def _labels(self, name: str) -> NDArray[np.int64]:
        path = self.folder / LABELS / name
        if not path.is_file():
            raise FileNotFoundError(f"codes without classes: found no {path}; encode the pictures anew")
        return np.load(path).reshape(-1).astype(np.int64)

    def check(self, *, num_codebooks: int, num_positions: int, num_classes: int, fingerprint: str) -> None:
        """Refuse codes that a model cannot learn from: other sizes, more classes, another image tokenizer."""
        meta = read_meta(self.folder)
        if meta is not None and meta["tokenizer"] != fingerprint:
            raise ValueError(
                f"the codes in {self.folder} were made by another image tokenizer: found {meta['tokenizer']}, the "
                f"recipe's is {fingerprint}; encode the pictures with that one"
            )
        codes_SKN, _ = self[0]
        if codes_SKN.shape[1:] != (num_codebooks, num_positions):
            raise ValueError(
                f"the codes in {self.folder} have another size: found {codes_SKN.shape[1]} codebooks and "
                f"{codes_SKN.shape[2]} positions, the model has {num_codebooks} and {num_positions}"
            )
        if self.labels_E.min() < 0 or self.labels_E.max() >= num_classes:
            raise ValueError(
                f"the classes in {self.folder} do not fit the model: found {self.labels_E.min()} to "
                f"{self.labels_E.max()}, the model has {num_classes}; set model.num_classes"
            )


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What made the codes of a folder, if it says so."""
    path = folder / META
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def claim(folder: Path, meta: dict[str, Any]) -> None:
    """Make a folder for codes that `meta` describes; refuse one that holds others."""
    found = read_meta(folder)
    if found is not None and found != meta:
        raise ValueError(
            f"the codes in {folder} were made with {found}, but {meta} is wanted; remove the folder or name another"
        )
    for name in (CODES, LABELS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(folder / META, meta)


def write_part(folder: Path, number: int, codes_ESKN: NDArray[np.uint16], labels_E: NDArray[np.int64]) -> None:
    """Write one file of codes and its classes, each whole or not at all; the codes come last and make it count."""
    for name, array in ((LABELS, labels_E), (CODES, codes_ESKN)):
        with whole_file(folder / name / part_name(number)) as unfinished, unfinished.open("wb") as file:
            np.save(file, array)


def part_name(number: int) -> str:
    return f"{number:05d}.npy"


def has_part(folder: Path, number: int) -> bool:
    """Whether a file of codes is there already."""
    return (folder / CODES / part_name(number)).is_file()
