"""Where the tokenizer's training pictures come from, step by step: the synthetic world, or tars on disk.

Comes in: a recipe and who reads. Goes out: batches of uint8 pixels (and ids of captions), and what a checkpoint must
remember of the reading.
"""

from __future__ import annotations

import io
import json
import logging
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from tokenizer.images import to_bytes, to_rgb
from tokenizer.text_tower import EncodeCaptions
from train.data.world import WorldPictures
from train.recipe import TokenizerRecipe

# A random part of a picture at a random proportion, scaled to a square: what torchvision calls RandomResizedCrop.


NUM_TRIES = 10  # torchvision's; afterwards the largest crop in the middle


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Its choices come from the generator that each call is given."""

    size: int
    """Side of the result in pixels."""
    area: tuple[float, float] = (0.9, 1.0)
    """Share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height."""

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"a crop needs area bounds within 0 and 1 and rising proportions; got {self.area} and {self.ratio}; "
                "correct shards.crop_area or shards.crop_ratio"
            )

    def __call__(self, image: Image.Image, rng: Random) -> Image.Image:
        part = image.crop(self.box(image.width, image.height, rng))
        return part.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def box(self, width: int, height: int, rng: Random) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop."""
        for _ in range(NUM_TRIES):
            area = width * height * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
                return left, top, left + wide, top + high
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, high = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high


# Pictures and captions from WebDataset tars, split over processes and workers, in an order that can be resumed.
#
# Comes in: tar files on disk whose members `KEY.jpg` and `KEY.txt` lie side by side. Goes out: an endless stream of
# samples with the place each came from.
#
# The order. The shards of every epoch are shuffled with a seed that knows neither rank nor worker, and the epochs
# follow
# each other in one endless line. Reader r of R (every worker of every process is one) takes the shards at r, r + R, ...
# of that line: all shards are read once per epoch, by whatever number of readers. Each reader mixes the samples of
# `shuffle_shards` shards in a row (a window); it holds their index in memory, not their pictures. A place in the stream
# is (window, number within it), which is all that a checkpoint needs.


logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
CAPTION_SUFFIX = "txt"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """One sample of a shard, not read yet."""

    shard: Path
    epoch: int
    key: str
    picture: Member | None
    caption: Member | None


@dataclass(frozen=True, slots=True)
class Place:
    """How far a reader has come."""

    window: int = 0
    taken: int = 0
    """Samples taken from this window."""


@dataclass(frozen=True)
class Readers:
    """Who reads: `num_ranks` processes with `per_rank` workers each."""

    rank: int
    num_ranks: int
    per_rank: int

    @property
    def total(self) -> int:
        return self.num_ranks * self.per_rank


class TarPictures(IterableDataset):
    """The stream of one reader; a `DataLoader` makes one of each worker."""

    def __init__(
        self,
        shards: list[Path],
        *,
        readers: Readers,
        crop: RandomCrop,
        captions: EncodeCaptions | None = None,
        seed: int = 0,
        shuffle_shards: int = 4,
        skip_bad_records: bool = False,
    ) -> None:
        if len(shards) < readers.total:
            raise ValueError(
                f"every reader needs a shard of its own; found {len(shards)} shards for {readers.total} readers "
                f"({readers.num_ranks} processes with {readers.per_rank} workers); use fewer workers or more shards"
            )
        self.shards, self.readers, self.crop, self.captions = shards, readers, crop, captions
        self.seed, self.shuffle_shards, self.skip_bad_records = seed, shuffle_shards, skip_bad_records
        self.start = 0
        """Place in the endless line of shards at which reading begins."""
        self.first_worker = 0
        """Which of this process's readers worker 0 is, so that a resumed run goes on with the right one."""
        self.places: dict[int, Place] = {}
        """Where each reader goes on; the beginning where none is given."""
        self.num_skipped = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker = (self.first_worker + (info.id if info else 0)) % self.readers.per_rank
        reader = self.readers.rank * self.readers.per_rank + worker
        place = self.places.get(reader, Place())
        window, first = place.window, place.taken
        while True:
            records, num_good = self.window(reader, window), 0
            for taken, record in enumerate(records[first:], start=first + 1):
                item = self._read(record)
                if item is not None:
                    num_good += 1
                    yield {**item, "place": torch.tensor([reader, window, taken])}
            if records and not num_good and not first:
                raise ValueError(
                    f"not one of {len(records)} samples could be used, the first in {records[0].shard}; "
                    "are the pictures and captions named KEY.jpg and KEY.txt?"
                )
            window, first = window + 1, 0

    def window(self, reader: int, window: int) -> list[Record]:
        """The samples of a reader's window in the order in which they are taken."""
        per_step = self.readers.total
        line = [self.start + reader + (window * self.shuffle_shards + i) * per_step for i in range(self.shuffle_shards)]
        records = [record for number in line for record in self._records(number)]
        Random(f"samples/{self.seed}/{line[0]}").shuffle(records)
        return records

    def _records(self, number: int) -> list[Record]:
        epoch, index = divmod(number, len(self.shards))
        shard = self.shards[shard_order(self.seed, epoch, len(self.shards))[index]]
        return [Record(shard, epoch, *found) for found in shard_index(shard)]

    def _read(self, record: Record) -> dict[str, Tensor] | None:
        try:
            return self._load(record)
        except ValueError as error:
            if not self.skip_bad_records:
                raise
            self.num_skipped += 1
            logger.warning("skipped %d: %s", self.num_skipped, error)
            return None

    def _load(self, record: Record) -> dict[str, Tensor]:
        name = f"sample {record.key} of {record.shard}"
        advice = "mend the shard or set shards.skip_bad_records"
        if record.picture is None:
            raise ValueError(f"{name} has no picture; found none of {', '.join(PICTURE_SUFFIXES)}; {advice}")
        try:
            with Image.open(io.BytesIO(read_member(record.shard, record.picture))) as opened:
                image = to_rgb(opened)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{name} has a damaged picture; {error}; {advice}") from None
        image = self.crop(image, Random(f"crop/{self.seed}/{record.epoch}/{record.shard.name}/{record.key}"))
        item = {"pixels": to_bytes(image)}
        if self.captions is not None:
            if record.caption is None:
                raise ValueError(f"{name} has no caption; found no {CAPTION_SUFFIX} member; {advice}")
            caption = read_member(record.shard, record.caption).decode("utf-8", errors="replace")
            item["text_ids"] = self.captions([caption])[0]
        return item


def find_shards(urls: str) -> list[Path]:
    """The files that brace patterns name, all of which must be there."""
    shards = [Path(url) for url in expand_urls(urls)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards of {urls} are not there: {[str(shard) for shard in missing[:2]]}; "
            "training reads files on disk: copy or mount them, or mend shards.urls"
        )
    return shards


@lru_cache(maxsize=2)
def shard_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of the shards in one epoch, the same on every process."""
    order = list(range(count))
    Random(f"shards/{seed}/{epoch}").shuffle(order)
    return order


def shard_index(shard: Path) -> list[tuple[str, Member | None, Member | None]]:
    """Key, picture and caption of the samples in a tar; a member that a sample already has begins a new one."""
    found: list[tuple[str, dict[str, Member]]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                key, suffix = base_plus_ext(info.name)
                if not info.isreg() or key is None:
                    continue
                if not found or found[-1][0] != key or suffix.lower() in found[-1][1]:
                    found.append((key, {}))
                found[-1][1][suffix.lower()] = Member(info.offset_data, info.size)
    except tarfile.TarError as error:
        raise ValueError(f"cannot read shard {shard}; {error}; it must be a whole, uncompressed tar") from None
    return [(key, first_of(PICTURE_SUFFIXES, files), files.get(CAPTION_SUFFIX)) for key, files in found]


def first_of(suffixes: tuple[str, ...], files: dict[str, Member]) -> Member | None:
    """The member with the first of these suffixes that is there."""
    return next((files[suffix] for suffix in suffixes if suffix in files), None)


def read_member(shard: Path, member: Member) -> bytes:
    """The bytes of a file inside a tar."""
    with shard.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


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
