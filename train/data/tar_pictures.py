"""Pictures and captions from WebDataset tars, split over processes and workers, in an order that can be resumed.

Comes in: tar files on disk whose members `KEY.jpg` and `KEY.txt` lie side by side. Goes out: an endless stream of
samples with the place each came from.

The order. The shards of every epoch are shuffled with a seed that knows neither rank nor worker, and the epochs follow
each other in one endless line. Reader r of R (every worker of every process is one) takes the shards at r, r + R, ...
of that line: all shards are read once per epoch, by whatever number of readers. Each reader mixes the samples of
`shuffle_shards` shards in a row (a window); it holds their index in memory, not their pictures. A place in the stream
is (window, number within it), which is all that a checkpoint needs.
"""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from tokenizer.captions import EncodeCaptions
from tokenizer.image_processor import to_bytes, to_rgb
from train.data.random_crop import RandomCrop

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
