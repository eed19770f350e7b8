"""Training images of the image tokenizer, step by step: of the synthetic world, or from WebDataset tars on disk.

The world's images are a function of their number. Tars hold members `KEY.jpg` and `KEY.txt` side by side. Their shards
are shuffled in every epoch with a seed that knows neither rank nor worker, and the epochs form one endless line. Reader
r of R (every worker of every process is one) takes shards r, r + R, ... of that line and mixes the samples of
`shuffle_shards` of them at a time (a window). A checkpoint holds (window, samples taken from it) for each reader.
torchdata's StatefulDataLoader would save the same, but cannot resume with another number of readers.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from webdataset.shardlists import expand_urls

from mllm.world.dialogue import ImageRef
from mllm.world.language import describe
from mllm.world.render import IMAGE_KINDS
from mllm.world.scene import SceneObject, random_scene_for
from tokenizer.images import IMAGE_ENDINGS, read_image, to_bytes, unread_format
from tokenizer.text_tower import EncodeCaptions
from train.data.raw_files import TarMember, TarSample, kind_of, read_member, read_tar
from train.recipe import ShardsRecipe, TokenizerRecipe

logger = logging.getLogger(__name__)

KIND_WEIGHTS = (86, 6, 8)  # of images, depth images and segmentation images of the world; the latter two are simpler
SMALL_WEIGHT = 3  # how much more often a window shows a small object, whose details are hard to keep
NUM_TRIES = 10  # torchvision's; afterwards the largest crop in the middle
READING_FILE = "reading.json"
TAR_ENDINGS = (".tar", ".tar.gz", ".tar.zst", ".tgz")


def build_source(
    recipe: TokenizerRecipe, *, image_size: int, captions: EncodeCaptions | None, state: PartialState
) -> WorldImages | TarImages:
    """The source that the recipe names, for this process."""
    kind = WorldImages if recipe.shards.urls is None else TarImages
    return kind(recipe, image_size=image_size, captions=captions, rank=state.process_index, ranks=state.num_processes)


def _loader(images: Any, recipe: TokenizerRecipe, **options: Any) -> DataLoader:
    """Batches, read ahead by the recipe's workers."""
    options |= {"num_workers": recipe.num_workers, "prefetch_factor": 4 if recipe.num_workers else None}
    return DataLoader(images, batch_size=recipe.batch_size, **options)


class WorldImages(Dataset):
    """An endless set: every integer names an image of the training split; negative ones are for looking at."""

    def __init__(
        self, recipe: TokenizerRecipe, *, image_size: int, captions: EncodeCaptions | None, rank: int, ranks: int
    ) -> None:
        if recipe.world_crop is not None and recipe.world_crop > image_size:
            raise ValueError(f"world_crop must be <= {image_size}, as images are, got {recipe.world_crop}; change it")
        self.recipe, self.image_size, self.captions, self.rank, self.ranks = recipe, image_size, captions, rank, ranks

    def batches(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        """This process's batches of the steps from `first` up to, not including, `last`."""
        size, ranks = self.recipe.batch_size, self.ranks
        indices = [i for i in range(first * size * ranks, last * size * ranks) if i // size % ranks == self.rank]
        return iter(_loader(self, self.recipe, sampler=indices))

    def samples(self, count: int) -> Tensor:
        """A few images to look at, uint8 (B, 3, H, W), always the same."""
        return torch.stack([self[-1 - index]["pixels"] for index in range(count)])

    def save(self, folder: Path) -> None:
        """Nothing: a batch is a function of its step."""

    def load(self, folder: Path) -> None:
        """Nothing."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = Random(f"pictures/{self.recipe.seed}/{index}")
        scene = random_scene_for("train", rng)
        image = ImageRef(scene, rng.choices(IMAGE_KINDS, KIND_WEIGHTS)[0])
        rendered = image.render(self.image_size)
        if self.recipe.world_crop is not None:
            weights = [SMALL_WEIGHT if item.size == "small" else 1 for item in scene.objects]
            (item,) = rng.choices(scene.objects, weights)
            rendered = rendered.crop(window_on(item, self.recipe.world_crop, self.image_size, rng))
        sample = {"pixels": to_bytes(rendered)}
        if self.captions:
            caption = describe(scene, short=rng.random() < 0.5) if image.kind == "image" else image.kind
            sample["text_ids"] = self.captions([caption])[0]
        return sample


def window_on(item: SceneObject, side: int, image_size: int, rng: Random) -> tuple[int, int, int, int]:
    """A random window (left, top, right, bottom) within the image that holds the middle of an object."""
    corner = (round(middle * image_size - rng.uniform(0, side)) for middle in (item.x, item.y))
    left, top = (min(max(first, 0), image_size - side) for first in corner)
    return left, top, left + side, top + side


@dataclass(frozen=True)
class RandomCrop:
    """A random part of an image at a random proportion, scaled to a square: what torchvision calls RandomResizedCrop.
    Its choices come from the generator that each call is given."""

    how: ShardsRecipe
    size: int  # side of the result in pixels

    def __post_init__(self) -> None:
        window, area, ratio = self.how.window, self.how.crop_area, self.how.crop_ratio
        if window is not None and window > self.size:
            raise ValueError(f"shards.window must be from 1 to image_size {self.size}, got {window}; change it")
        if not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"shards.crop_area must rise within 0 and 1 and shards.crop_ratio above 0, got {area} and {ratio}; "
                "change them"
            )

    def __call__(self, image: Image.Image, rng: Random) -> Image.Image:
        part = image.crop(self.box(image.width, image.height, rng))
        part = part.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.how.window is None:
            return part
        left, top = (rng.randint(0, self.size - self.how.window) for _ in range(2))
        return part.crop((left, top, left + self.how.window, top + self.how.window))

    def box(self, width: int, height: int, rng: Random) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop."""
        narrowest, widest = self.how.crop_ratio
        for _ in range(NUM_TRIES):
            area = width * height * rng.uniform(*self.how.crop_area)
            ratio = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
                return left, top, left + wide, top + high
        ratio = min(max(width / height, narrowest), widest)
        wide, high = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high


class TarRecord(NamedTuple):
    """One sample of a shard, not read yet."""

    shard: Path
    epoch: int
    sample: TarSample


class Progress(NamedTuple):
    """How far a reader has come."""

    window: int = 0
    taken: int = 0  # samples taken from this window


class TarImages(IterableDataset):
    """The stream of one reader, of which a `DataLoader` makes one of each worker; and how far each of them has come, by
    what was trained on, not by what was read ahead."""

    def __init__(
        self, recipe: TokenizerRecipe, *, image_size: int, captions: EncodeCaptions | None, rank: int, ranks: int
    ) -> None:
        assert recipe.shards.urls is not None, "build_source takes the world where no shards are given"
        self.recipe, self.captions, per_rank = recipe, captions, max(1, recipe.num_workers)
        self.crop, self.shuffle_shards = RandomCrop(recipe.shards, image_size), recipe.shards.shuffle_shards
        self.readers, self.num_readers = range(rank * per_rank, (rank + 1) * per_rank), ranks * per_rank
        self.shards = find_shards(recipe.shards.urls)
        if len(self.shards) < self.num_readers:
            raise ValueError(
                f"shards.urls must name a shard for each of {self.num_readers} readers (processes times workers), got "
                f"{len(self.shards)}; use fewer workers or more shards"
            )
        self.start = 0  # index in the endless line of shards at which reading begins
        self.first_step = 0  # step at which worker 0 began; workers take turns from there
        self.first_worker = 0  # which of this process's readers worker 0 is, so that a resumed run continues with it
        self.progress: dict[int, Progress] = {}  # where each reader continues; the beginning where none is given
        self.num_skipped = 0

    def batches(self, first: int, last: int) -> Iterator[dict[str, Tensor]]:
        """This process's batches of the steps from `first` up to, not including, `last`."""
        self.first_worker = (first - self.first_step) % len(self.readers)
        stream = iter(_loader(self, self.recipe))
        for _ in range(first, last):
            batch = next(stream)
            reader, window, taken = batch.pop("progress")[-1].tolist()
            self.progress[reader] = Progress(window, taken)
            yield batch

    def samples(self, count: int) -> Tensor:
        """A few images to look at, uint8 (B, 3, H, W), always the same."""
        alone = copy.copy(self)
        alone.readers, alone.num_readers, alone.shuffle_shards = range(1), 1, 1
        alone.start, alone.first_worker, alone.progress, alone.captions = 0, 0, {}, None
        stream = iter(alone)
        return torch.stack([next(stream)["pixels"] for _ in range(count)])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        reader = self.readers[(self.first_worker + (info.id if info else 0)) % len(self.readers)]
        window, first = self.progress.get(reader, Progress())
        while True:
            records, num_good = self.window(reader, window), 0
            for taken, record in enumerate(records[first:], start=first + 1):
                try:
                    item = self.read(record)
                except ValueError as error:
                    if not self.recipe.shards.skip_bad_records:
                        raise
                    self.num_skipped += 1
                    logger.warning("skipped %d: %s", self.num_skipped, error)
                    continue
                num_good += 1
                yield {**item, "progress": torch.tensor([reader, window, taken])}
            if records and not num_good and not first:
                raise ValueError(
                    f"a window must hold samples KEY.jpg with KEY.txt, got none among {len(records)}, the first in "
                    f"{records[0].shard}; check the names"
                )
            window, first = window + 1, 0

    def window(self, reader: int, window: int) -> list[TarRecord]:
        """The samples of a reader's window in the order in which they are taken."""
        first = window * self.shuffle_shards
        line = [self.start + reader + number * self.num_readers for number in range(first, first + self.shuffle_shards)]
        records = []
        for number in line:
            epoch, index = divmod(number, len(self.shards))
            shard = self.shards[shard_order(self.recipe.seed, epoch, len(self.shards))[index]]
            records += [TarRecord(shard, epoch, sample) for sample in read_tar(shard)]
        Random(f"samples/{self.recipe.seed}/{line[0]}").shuffle(records)
        return records

    def read(self, record: TarRecord) -> dict[str, Tensor]:
        """Pixels, and ids of the caption where captions are wanted. Raises ValueError: the sample lacks something, or
        its image is damaged."""
        shard, epoch, (key, members) = record
        try:
            image = read_image(_content(shard, members, *IMAGE_ENDINGS), name="its image")
            item = {"pixels": to_bytes(self.crop(image, Random(f"crop/{self.recipe.seed}/{epoch}/{shard.name}/{key}")))}
            if self.captions is not None:
                caption = _content(shard, members, ".txt").decode("utf-8-sig", errors="replace")
                item["text_ids"] = self.captions([caption])[0]
        except ValueError as error:
            raise ValueError(
                f"sample {key} of {shard} is invalid: {error}; fix the shard or set shards.skip_bad_records"
            ) from error
        return item

    def save(self, folder: Path) -> None:
        """Write what resuming needs; called by all processes at once."""
        progress = {reader: place for part in gather_object([self.progress]) for reader, place in part.items()}
        sizes = {"shards": len(self.shards), "readers": self.num_readers, "shuffle_shards": self.shuffle_shards}
        reading = {**sizes, "start": self.start, "first_step": self.first_step, "places": progress}
        if self.readers[0] == 0:
            (folder / READING_FILE).write_text(json.dumps(reading) + "\n")

    def load(self, folder: Path) -> None:
        reading = json.loads((folder / READING_FILE).read_text())
        if reading["shards"] != len(self.shards):
            raise ValueError(
                f"shards.urls must name {reading['shards']} shards, as {folder} was trained on, got "
                f"{len(self.shards)}; give the same shards, or another output to start again"
            )
        progress = {int(reader): Progress(*place) for reader, place in reading["places"].items()}
        readers, per_window, self.start = reading["readers"], reading["shuffle_shards"], reading["start"]
        if (readers, per_window) == (self.num_readers, self.shuffle_shards):
            self.progress, self.first_step = progress, reading["first_step"]
            return
        # the first shard in the endless line that not every reader had finished
        windows = [progress.get(reader, Progress()).window for reader in range(readers)]
        self.start += min(reader + window * per_window * readers for reader, window in enumerate(windows))
        self.first_step = int(folder.name.rpartition("-")[2])
        logger.warning(
            "the number of readers changed from %d to %d: reading continues at the first shard that was not "
            "finished, so samples of the last windows can come twice",
            readers,
            self.num_readers,
        )


def _content(shard: Path, members: dict[str, TarMember], *endings: str) -> bytes:
    """The first member that is there."""
    for ending in endings:
        if (member := members.get(ending[1:])) is not None:
            return read_member(shard, member)
    if endings == IMAGE_ENDINGS and (wrong := unread_format(f".{ending}" for ending in members)):
        raise ValueError(wrong)
    got = ", ".join(f".{ending}" for ending in members)
    raise ValueError(
        f"it must have a member {' or '.join(endings)}, got {got} (of a sample, they must be next to each other in the "
        "tar, as in the order of their names)"
    )


@lru_cache(maxsize=2)
def shard_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of the shards in one epoch, the same on every process."""
    order = list(range(count))
    Random(f"shards/{seed}/{epoch}").shuffle(order)
    return order


def find_shards(urls: str) -> list[Path]:
    """The files that patterns name, all of which must be there: of braces, with * and ?, or folders of tars."""
    shards: list[Path] = []
    for url in expand_urls(urls):
        if Path(url).is_dir():
            shards += sorted(path for path in Path(url).iterdir() if path.name.lower().endswith(TAR_ENDINGS))
        else:
            shards += sorted(map(Path, glob(url))) if has_magic(url) and glob(url) else [Path(url)]
    if not shards:
        raise FileNotFoundError(
            f"shards.urls must name tars, got {urls!r}, in which there are none; write the images and captions of a "
            "folder to one (find FOLDER -type f | sort | tar -cf 00000.tar -T -)"
        )
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{urls}: {len(missing)} of {len(shards)} not found: {[str(shard) for shard in missing[:2]]}; "
            "training reads files on disk: copy or mount them, or change shards.urls"
        )
    if packed := [shard for shard in shards if kind_of(shard) != (".tar", None)]:
        raise ValueError(f"shards.urls must name tars that are not compressed, got {packed[0]}; decompress it")
    return shards
