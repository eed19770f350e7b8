"""The codes of every picture of the world's episodes, encoded once and kept in files.

In: an image tokenizer and how many episodes. Out: codes by episode and picture. Files hold 1024 episodes each and are
written whole or not at all, so an interrupted run goes on where it was; a folder made by another tokenizer is refused.

Letters: E episodes of a file, S pictures of an episode, K codebooks, N positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mllm.json_files import write_json
from mllm.layout import Grid
from mllm.whole_file import whole_file
from mllm.world.episode import PICTURE_KINDS, make_episode
from tokenizer.image_processor import to_bytes
from tokenizer.model import UniTok

EPISODES_PER_FILE = 1024
NUM_PICTURES = 1 + len(PICTURE_KINDS)  # the scene, the edited scene, and the scene's depth and segmentation
BATCH_SIZE = 128
META = "meta.json"


class WorldCodes:
    """Codes of the pictures of episode i: `codes[i]` is (S, K, N); pictures that were not encoded are left out."""

    def __init__(self, folder: Path, *, num_episodes: int, dense_every: int, seed: int, grids: Sequence[Grid]) -> None:
        """Codes in a folder, made or not; episodes take turns with the grids, (rows, columns) of positions."""
        self.folder = folder
        self.num_episodes, self.dense_every, self.seed = num_episodes, dense_every, seed
        self.grids = list(grids)
        self.files: list[NDArray[np.uint16]] = []

    def __len__(self) -> int:
        return self.num_episodes

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        if not self.files:  # opened late, so that every loader process maps the files itself
            paths = [self._file(number) for number in range(self.num_files)]
            self.files = [np.load(path, mmap_mode="r") for path in paths]
        codes_SKN = self.files[index // EPISODES_PER_FILE][index % EPISODES_PER_FILE]
        rows, columns = self.grid_of(index)
        return codes_SKN[: None if self.is_dense(index) else 2, :, : rows * columns]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": []}

    @property
    def num_files(self) -> int:
        return -(-self.num_episodes // EPISODES_PER_FILE)

    def is_dense(self, index: int) -> bool:
        """Whether the depth and segmentation pictures of an episode are encoded too."""
        return index % self.dense_every == 0

    def grid_of(self, index: int) -> Grid:
        """(rows, columns) of the pictures of an episode."""
        return self.grids[index // self.dense_every % len(self.grids)]  # so that dense ones take turns as well

    def _file(self, number: int) -> Path:
        return self.folder / f"codes-{number:05d}.npy"

    def encode_missing(self, tokenizer: UniTok, *, num_workers: int = 1) -> None:
        """Encode what is not there yet.

        Raises:
            ValueError: the folder holds codes of another tokenizer or of other episodes.
        """
        self._check_meta(tokenizer)
        missing = [number for number in range(self.num_files) if not self._file(number).is_file()]
        for number in tqdm(missing, desc="encode the world", disable=not missing):
            first = number * EPISODES_PER_FILE
            indices = range(first, min(first + EPISODES_PER_FILE, self.num_episodes))
            self._write(number, self._encode(tokenizer, indices, num_workers=num_workers))

    def _check_meta(self, tokenizer: UniTok) -> None:
        meta = {"tokenizer": tokenizer.fingerprint(), "seed": self.seed, "dense_every": self.dense_every}
        if self.grids != [tokenizer.config.grid]:
            meta["grids"] = [list(grid) for grid in self.grids]
        path = self.folder / META
        if path.is_file() and json.loads(path.read_text()) != meta:
            raise ValueError(
                f"the codes in {self.folder} were made with {json.loads(path.read_text())}, but {meta} is wanted; "
                "remove the folder or name another output"
            )
        write_json(path, meta)

    def _encode(self, tokenizer: UniTok, indices: Sequence[int], *, num_workers: int) -> NDArray[np.uint16]:
        num_positions = max(rows * columns for rows, columns in self.grids)
        shape = (len(indices), NUM_PICTURES, tokenizer.config.num_codebooks, num_positions)
        codes_ESKN = np.zeros(shape, np.uint16)
        for grid in dict.fromkeys(self.grids):
            places = [
                (index, slot)
                for index in indices
                for slot in range(NUM_PICTURES if self.is_dense(index) else 2)
                if self.grid_of(index) == grid
            ]
            for (index, slot), codes_KN in zip(
                places, self._encode_places(tokenizer, places, grid, num_workers), strict=True
            ):
                codes_ESKN[index - indices[0], slot, :, : codes_KN.shape[-1]] = codes_KN
        return codes_ESKN

    def _encode_places(
        self, tokenizer: UniTok, places: Sequence[tuple[int, int]], grid: Grid, num_workers: int
    ) -> Iterator[NDArray]:
        """Codes (K, N) of pictures of one size."""
        rows, columns = grid
        patch, device = tokenizer.config.patch_size, next(tokenizer.parameters()).device
        pictures = _Pictures(places, size=(columns * patch, rows * patch), seed=self.seed)
        with torch.inference_mode():
            for pixels_B3HW in DataLoader(pictures, batch_size=BATCH_SIZE, num_workers=num_workers):
                yield from tokenizer.encode(pixels_B3HW.to(device).float().div(127.5).sub(1)).cpu().numpy()

    def _write(self, number: int, codes_ESKN: NDArray[np.uint16]) -> None:
        with whole_file(self._file(number)) as unfinished, unfinished.open("wb") as file:
            np.save(file, codes_ESKN)


class _Pictures(Dataset):
    """Pixels of (episode, picture) places, rendered in the loader's processes."""

    def __init__(self, places: Sequence[tuple[int, int]], *, size: tuple[int, int], seed: int) -> None:
        self.places, self.size, self.seed = places, size, seed

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        episode, slot = self.places[index]
        picture = make_episode(episode, seed=self.seed).pictures[slot]
        return to_bytes(picture.render(self.size))
