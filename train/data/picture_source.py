"""Where the tokenizer's training pictures come from, step by step: the synthetic world, or tars on disk.

Comes in: a recipe and who reads. Goes out: batches of uint8 pixels (and ids of captions), and what a checkpoint must
remember of the reading.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from tokenizer.captions import EncodeCaptions
from train.data.random_crop import RandomCrop
from train.data.tar_pictures import Place, Readers, TarPictures, find_shards
from train.data.world_pictures import WorldPictures
from train.image_tokenizer.recipe import TokenizerRecipe

logger = logging.getLogger(__name__)

READING_FILE = "reading.json"


class PictureSource(Protocol):
    """What the trainer asks of its data."""

    def batches(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        """This process's batches of the steps from `first` up to, not including, `last`."""
        ...

    def samples(self, count: int) -> Tensor:
        """A few pictures to look at, uint8 (B, 3, H, W), always the same."""
        ...

    def save(self, folder: Path) -> None:
        """Write what resuming needs; called by all processes at once."""
        ...

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        ...


class WorldSource:
    """Pictures by number: the batch of a step is a function of the step, so there is nothing to remember."""

    def __init__(
        self, recipe: TokenizerRecipe, *, image_size: int, captions: EncodeCaptions | None, state: PartialState
    ) -> None:
        self.recipe, self.state = recipe, state
        self.pictures = WorldPictures(
            image_size=image_size, seed=recipe.seed, captions=captions, crop=recipe.world_crop
        )

    def batches(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        size, world, rank = self.recipe.batch_size, self.state.num_processes, self.state.process_index
        share = range(first * size * world, last * size * world)
        indices = [index for index in share if index // size % world == rank]
        yield from loader(self.pictures, self.recipe, sampler=indices)

    def samples(self, count: int) -> Tensor:
        return torch.stack([self.pictures[-1 - index]["pixels"] for index in range(count)])

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def load(self, folder: Path) -> None:
        """Nothing to read."""


class TarSource:
    """Pictures from shards; remembers how far each reader is, of what was trained on, not of what was read ahead."""

    def __init__(
        self,
        recipe: TokenizerRecipe,
        *,
        image_size: int,
        captions: EncodeCaptions | None,
        state: PartialState,
    ) -> None:
        self.recipe, self.state = recipe, state
        shards = recipe.shards
        assert shards.urls is not None, "build_source takes the world where no shards are given"
        self.pictures = TarPictures(
            find_shards(shards.urls),
            readers=Readers(state.process_index, state.num_processes, max(1, recipe.num_workers)),
            crop=RandomCrop(size=image_size, area=shards.crop_area, ratio=shards.crop_ratio),
            captions=captions,
            seed=recipe.seed,
            shuffle_shards=shards.shuffle_shards,
            skip_bad_records=shards.skip_bad_records,
        )
        self.first_step = 0
        """Step at which worker 0 began; workers take turns from there."""

    def batches(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        self.pictures.first_worker = (first - self.first_step) % self.pictures.readers.per_rank
        stream = iter(loader(self.pictures, self.recipe))
        for _ in range(first, last):
            batch = next(stream)
            reader, window, taken = batch.pop("place")[-1].tolist()
            self.pictures.places[reader] = Place(window, taken)
            yield batch

    def samples(self, count: int) -> Tensor:
        stream = iter(
            TarPictures(
                self.pictures.shards,
                readers=Readers(0, 1, 1),
                crop=self.pictures.crop,
                seed=self.pictures.seed,
                shuffle_shards=1,
                skip_bad_records=self.pictures.skip_bad_records,
            )
        )
        return torch.stack([next(stream)["pixels"] for _ in range(count)])

    def save(self, folder: Path) -> None:
        mine = {reader: (place.window, place.taken) for reader, place in self.pictures.places.items()}
        places = {reader: place for part in gather_object([mine]) for reader, place in part.items()}
        reading = {
            "shards": len(self.pictures.shards),
            "readers": self.pictures.readers.total,
            "shuffle_shards": self.pictures.shuffle_shards,
            "start": self.pictures.start,
            "first_step": self.first_step,
            "places": places,
        }
        if self.state.is_main_process:
            (folder / READING_FILE).write_text(json.dumps(reading) + "\n")

    def load(self, folder: Path) -> None:
        reading = json.loads((folder / READING_FILE).read_text())
        pictures = self.pictures
        if reading["shards"] != len(pictures.shards):
            raise ValueError(
                f"{folder} was trained on {reading['shards']} shards but shards.urls names {len(pictures.shards)}; "
                "give the same shards, or another output to begin anew"
            )
        places = {int(reader): Place(*place) for reader, place in reading["places"].items()}
        now = {"readers": pictures.readers.total, "shuffle_shards": pictures.shuffle_shards}
        if all(reading[name] == value for name, value in now.items()):
            pictures.start, pictures.places, self.first_step = reading["start"], places, reading["first_step"]
            return
        pictures.start = first_unfinished(reading, places)
        self.first_step = int(folder.name.rpartition("-")[2])
        logger.warning(
            "the checkpoint has %d readers, now there are %d: reading goes on at the first shard that was not "
            "finished, so samples of the last windows can come twice",
            reading["readers"],
            pictures.readers.total,
        )


def first_unfinished(reading: dict[str, Any], places: dict[int, Place]) -> int:
    """The first shard in the endless line that not every reader had left behind."""
    total, per_window = reading["readers"], reading["shuffle_shards"]
    begun = [reader + places.get(reader, Place()).window * per_window * total for reader in range(total)]
    return int(reading["start"]) + min(begun)


def loader(pictures: Any, recipe: TokenizerRecipe, **options: Any) -> DataLoader:
    """Batches, read ahead by the recipe's workers."""
    prefetch = 4 if recipe.num_workers else None
    return DataLoader(
        pictures, batch_size=recipe.batch_size, num_workers=recipe.num_workers, prefetch_factor=prefetch, **options
    )


def build_source(
    recipe: TokenizerRecipe, *, image_size: int, captions: EncodeCaptions | None, state: PartialState
) -> PictureSource:
    """The source that the recipe names."""
    if recipe.shards.urls is None:
        return WorldSource(recipe, image_size=image_size, captions=captions, state=state)
    return TarSource(recipe, image_size=image_size, captions=captions, state=state)
