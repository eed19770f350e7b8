"""The codes of every picture of the world's episodes, encoded once and kept in files.

In: an image tokenizer and which episodes. Out: codes by episode and picture. Files hold 1024 episodes each and are
written whole or not at all, so an interrupted run goes on where it was; a folder made by another tokenizer is refused.

Letters: E episodes of a file, S pictures of an episode, B pictures of a batch, H W pixels, K codebooks, N positions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mllm.json_files import write_json
from mllm.layout import Grid
from mllm.whole_file import whole_file
from mllm.world.episode import PICTURE_KINDS, Episode, make_episode
from tokenizer.encoder import cut_into_patches
from tokenizer.image_processor import to_bytes
from tokenizer.model import UniTok
from train.data.centred_episode import centre_episode

EPISODES_PER_FILE = 1024
NUM_PICTURES = 1 + len(PICTURE_KINDS)  # the scene, the edited scene, and the scene's depth and segmentation
BATCH_SIZE = 128
META = "meta.json"


@dataclass(frozen=True, kw_only=True)
class EpisodeSet:
    """Which episodes there are; all of them are functions of their number."""

    num_episodes: int
    dense_every: int  # one in so many also has its depth and segmentation pictures encoded
    seed: int
    grids: Sequence[Grid]  # (rows, columns) of positions; episodes take turns with them
    centred_digits: int | None = None  # every other episode has its objects in the middle of squares of such outlines

    def __getitem__(self, index: int) -> Episode:
        episode = make_episode(index, seed=self.seed)
        if not self.is_centred(index):
            return episode
        assert self.centred_digits is not None, "is_centred says so"
        return centre_episode(episode, digits=self.centred_digits, grid=self.grid_of(index))

    def is_dense(self, index: int) -> bool:
        """Whether the depth and segmentation pictures of an episode are encoded too."""
        return index % self.dense_every == 0

    def is_centred(self, index: int) -> bool:
        """Whether the objects of an episode lie exactly where its outlines say, if it can be had (centre_episode)."""
        return self.centred_digits is not None and self._turn(index) // len(self.grids) % 2 == 1

    def grid_of(self, index: int) -> Grid:
        """(rows, columns) of the pictures of an episode."""
        return self.grids[self._turn(index) % len(self.grids)]

    def _turn(self, index: int) -> int:
        return index // self.dense_every  # so that dense ones take turns as well


class WorldCodes:
    """Codes of the pictures of episode i: `codes[i]` is (S, K, N); pictures that were not encoded are left out."""

    def __init__(self, folder: Path, episodes: EpisodeSet) -> None:
        """Codes in a folder, made or not."""
        self.folder, self.episodes = folder, episodes
        self.files: list[NDArray[np.uint16]] = []

    def __len__(self) -> int:
        return self.episodes.num_episodes

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        if not self.files:  # opened late, so that every loader process maps the files itself
            paths = [self._file(number) for number in range(self.num_files)]
            self.files = [np.load(path, mmap_mode="r") for path in paths]
        codes_SKN = self.files[index // EPISODES_PER_FILE][index % EPISODES_PER_FILE]
        rows, columns = self.episodes.grid_of(index)
        return codes_SKN[: self._num_pictures(index), :, : rows * columns]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": []}

    @property
    def num_files(self) -> int:
        return -(-len(self) // EPISODES_PER_FILE)

    def _num_pictures(self, index: int) -> int:
        return NUM_PICTURES if self.episodes.is_dense(index) else 2

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
            indices = range(first, min(first + EPISODES_PER_FILE, len(self)))
            self._write(number, self._encode(tokenizer, indices, num_workers=num_workers))

    def _check_meta(self, tokenizer: UniTok) -> None:
        episodes = self.episodes
        meta = {"tokenizer": tokenizer.fingerprint(), "seed": episodes.seed, "dense_every": episodes.dense_every}
        if list(episodes.grids) != [tokenizer.config.grid]:
            meta["grids"] = [list(grid) for grid in episodes.grids]
        if episodes.centred_digits is not None:
            meta["centred_digits"] = episodes.centred_digits
        path = self.folder / META
        if path.is_file() and json.loads(path.read_text()) != meta:
            raise ValueError(
                f"the codes in {self.folder} were made with {json.loads(path.read_text())}, but {meta} is wanted; "
                "remove the folder or name another output"
            )
        write_json(path, meta)

    def _encode(self, tokenizer: UniTok, indices: Sequence[int], *, num_workers: int) -> NDArray[np.uint16]:
        grids = self.episodes.grids
        num_positions = max(rows * columns for rows, columns in grids)
        shape = (len(indices), NUM_PICTURES, tokenizer.config.num_codebooks, num_positions)
        codes_ESKN = np.zeros(shape, np.uint16)
        for grid in dict.fromkeys(grids):
            places = [
                (index, slot)
                for index in indices
                for slot in range(self._num_pictures(index))
                if self.episodes.grid_of(index) == grid
            ]
            encoded = self._encode_places(tokenizer, places, grid, num_workers)
            for (index, slot), codes_KN in zip(places, encoded, strict=True):
                codes_ESKN[index - indices[0], slot, :, : codes_KN.shape[-1]] = codes_KN
        return codes_ESKN

    def _encode_places(
        self, tokenizer: UniTok, places: Sequence[tuple[int, int]], grid: Grid, num_workers: int
    ) -> Iterator[NDArray]:
        """Codes (K, N) of pictures of one size."""
        rows, columns = grid
        patch = tokenizer.config.patch_size
        pictures = _Pictures(places, self.episodes, size=(columns * patch, rows * patch))
        for bytes_B3HW in DataLoader(pictures, batch_size=BATCH_SIZE, num_workers=num_workers):
            yield from encode_bytes(tokenizer, bytes_B3HW)

    def _write(self, number: int, codes_ESKN: NDArray[np.uint16]) -> None:
        with whole_file(self._file(number)) as unfinished, unfinished.open("wb") as file:
            np.save(file, codes_ESKN)


def encode_bytes(tokenizer: UniTok, bytes_B3HW: Tensor) -> NDArray:
    """Codes (B, K, N) of uint8 pictures. Where codes depend on their patch alone, each kind of patch is encoded once:
    most of a drawing is flat background.
    """
    if tokenizer.config.encoder_scope != "patch":
        return encode_floats(tokenizer, bytes_B3HW)
    patches_M3HW = cut_into_patches(bytes_B3HW, tokenizer.config.patch_size).contiguous()
    as_rows = patches_M3HW.flatten(1).numpy()
    kinds = as_rows.view(np.dtype((np.void, as_rows.shape[1])))[:, 0]
    _, first_U, kind_M = np.unique(kinds, return_index=True, return_inverse=True)
    codes_UK = encode_floats(tokenizer, patches_M3HW[first_U])[:, :, 0]
    return codes_UK[kind_M].reshape(len(bytes_B3HW), -1, codes_UK.shape[1]).swapaxes(1, 2)


def encode_floats(tokenizer: UniTok, bytes_B3HW: Tensor) -> NDArray:
    return tokenizer.encode(bytes_B3HW.to(tokenizer.device).float().div(127.5).sub(1)).cpu().numpy()


class _Pictures(Dataset):
    """Pixels of (episode, picture) places, rendered in the loader's processes."""

    def __init__(self, places: Sequence[tuple[int, int]], episodes: EpisodeSet, *, size: tuple[int, int]) -> None:
        self.places, self.episodes, self.size = places, episodes, size

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        episode, slot = self.places[index]
        return to_bytes(self.episodes[episode].pictures[slot].render(self.size))
