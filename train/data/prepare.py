"""The two jobs of `mllm prepare`: parsed words in; shards, pictures and a few printed lines out."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from mllm.checkpoint import choose_device, find_image_tokenizer, find_model_folder
from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, Marker, Message, Segment, render
from mllm.files import UNFINISHED, write_json, write_lines
from mllm.processor import PROCESSOR_FILE, read_preparation
from mllm.sequence import Size, best_sizes, nearest_size
from tokenizer.images import PREPARATIONS, ImageProcessor, to_images
from tokenizer.unitok import UniTok
from train.data.importers import IMPORTERS, find_format
from train.data.packing import SampleOptions, sample_of
from train.data.processes import Processes
from train.data.records import PICTURE_ENDINGS, BadRecord, Item, Picture, Record, is_entered_anywhere, known, read_items
from train.data.shards import (
    MANIFEST,
    SHARDS,
    VERSION,
    CodesOf,
    LeftOut,
    Row,
    ShardFolder,
    codes_made_by,
    describe,
    read_facts,
    write_shard,
)

# Which shards a preparation makes: each input file is cut into units of a fixed number of records, one shard each.
#
# The plan of a file is made once and kept (DIR/plan/), so the cut never depends on how many processes work or how often
# they are interrupted. A file that has changed since is refused: its shards would no longer fit together.


PLAN = "plan"
HEAD = 1 << 16
"""Bytes at both ends of a file by which a change is noticed, with its size."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The records of one shard."""

    path: str
    format: str
    number: int  # items of the file that come before
    offset: int  # where reading begins (train/data/records.py)
    count: int
    shard: str  # the name of its file


def find_files(sources: Sequence[Path], *, but_not_in: Path) -> list[Path]:
    """The files of records that sources name; a folder stands for all in it, or is a folder of pictures itself."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = (path for path in source.rglob("*") if path.is_file() and path.name.endswith(known()))
            records = sorted(path for path in inside if but_not_in.resolve() not in path.resolve().parents)
            if not records and not any(path.suffix.lower() in PICTURE_ENDINGS for path in source.rglob("*")):
                raise ValueError(f"nothing to prepare in {source}: found neither {', '.join(known())} nor pictures")
            files += records or [source]
        elif source.is_file():
            files.append(source)
        else:
            raise FileNotFoundError(f"there is no file {source}; give files of records or folders of them")
    return list(dict.fromkeys(path.resolve() for path in files))


def plan_file(path: Path, folder: Path, *, shard_size: int, format_name: str | None) -> None:
    """Write the plan of a file, if it is not there yet.

    Raises:
        ValueError: the file is not the one that was planned.
    """
    if format_name is not None and format_name not in IMPORTERS:
        raise ValueError(f"unknown format: found {format_name!r}; use one of {', '.join(IMPORTERS)}")
    target = folder / PLAN / f"{key_of(path)}.json"
    state = fingerprint(path)
    if target.is_file():
        if json.loads(target.read_text(encoding="utf-8"))["fingerprint"] != state:
            raise ValueError(f"{path} has changed since {folder} was begun; prepare it into another folder")
        return
    found = format_name or find_format(path)
    units = [asdict(unit) for unit in _cut(path, found, shard_size)]
    write_json(target, {"path": str(path), "fingerprint": state, "units": units})


def read_units(folder: Path) -> list[Unit]:
    """All units of a folder, in one order for all processes."""
    plans = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / PLAN).glob("*.json"))]
    return [Unit(**unit) for plan in plans for unit in plan["units"]]


def _cut(path: Path, format_name: str, size: int) -> Iterator[Unit]:
    number, begin, count, made = 0, 0, 0, 0

    def unit() -> Unit:
        return Unit(str(path), format_name, number - count, begin, count, f"{key_of(path)}-{made:05d}.parquet")

    for item in read_items(path, contents=False):
        if count == size:
            yield unit()
            made, count = made + 1, 0
        if count == 0:
            begin = item.offset
        number, count = number + 1, count + 1
    if count:
        yield unit()


def key_of(path: Path) -> str:
    """A readable name that no other file has."""
    stem = "".join(char if char.isalnum() else "_" for char in path.name.split(".")[0])[:40]
    return f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:10]}"


def fingerprint(path: Path) -> str:
    """Changes when the file does: size, beginning and end; of a folder, its names."""
    digest = hashlib.sha256()
    if path.is_dir():
        digest.update("\n".join(sorted(str(file.relative_to(path)) for file in path.rglob("*"))).encode())
        return digest.hexdigest()[:16]
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(HEAD))
        file.seek(max(0, size - HEAD))
        digest.update(file.read(HEAD))
    return digest.hexdigest()[:16]


# The work of a preparation: the records of one unit to the rows of one shard.
#
# Pictures are opened and resized by threads while the image tokenizer encodes those before them. Which pictures share a
# batch depends on the unit alone, so a unit that is made again comes out the same.
#
# Letters: B pictures, H W pixels, K codebooks, N positions.


RECORDS_AT_ONCE = 256
"""Records without pictures that are read before the next are begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitOptions:
    """How records are read and pictures are encoded."""

    sizes: tuple[Size, ...]
    """(width, height) that pictures may be encoded at; each takes the one nearest to its shape."""
    preparation: str = "cover"
    """How a picture gets to its size; a name in tokenizer/images.py."""
    pictures: Path | None = None
    """Folder of relative picture paths. None: the folder of the record file."""
    skip_broken: bool = False
    """Leave broken records out and count them; otherwise the first one ends the preparation."""
    batch_size: int = 64
    num_workers: int = 4
    """Threads that open pictures."""


Loaded = tuple[np.ndarray, Size]
Draft = tuple[Item, Record, list[Future[Loaded]]]


class UnitPreparer:
    """Makes rows of units with one image tokenizer."""

    def __init__(self, tokenizer: UniTok, options: UnitOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.reading: tuple[str, int, Iterator[Item]] | None = None  # file, number of its next item, items

    def prepare(
        self, unit: Unit, *, advance: Callable[[int], object] = lambda count: None
    ) -> tuple[list[Row], list[LeftOut]]:
        """The rows of a unit, in order, and what was left out.

        Args:
            advance: is told how many more records are done.

        Raises:
            ValueError: a broken record, with its file and place, unless `skip_broken`.
        """
        rows: list[Row] = []
        left_out: list[LeftOut] = []
        with ThreadPoolExecutor(self.options.num_workers) as pool:
            waiting: list[Draft] = []
            for drafts in self._drafts(unit, pool, left_out):  # while these are opened, those before are encoded
                rows += self._finish(waiting, unit, left_out)
                advance(len(waiting))
                waiting = drafts
            rows += self._finish(waiting, unit, left_out)
        return rows, left_out

    def _drafts(self, unit: Unit, pool: ThreadPoolExecutor, left_out: list[LeftOut]) -> Iterator[list[Draft]]:
        """Records with their pictures on the way, as many as fill a batch."""
        path = Path(unit.path)
        folder = self.options.pictures or (path if path.is_dir() else path.parent)
        drafts: list[Draft] = []
        num_pictures = 0
        for item in self._items(unit):
            if isinstance(item.value, bytes) and not item.value.strip():
                continue
            try:
                record = IMPORTERS[unit.format](item.fields(), folder)
                self._check_codes(record)
            except BadRecord as error:
                self._leave_out(unit, item, error, left_out)
                continue
            drafts.append((item, record, [pool.submit(self._load, picture) for picture in record.pictures]))
            num_pictures += len(record.pictures)
            if num_pictures >= self.options.batch_size or len(drafts) >= RECORDS_AT_ONCE:
                yield drafts
                drafts, num_pictures = [], 0
        yield drafts

    def _items(self, unit: Unit) -> Iterator[Item]:
        """The unit's items. What is compressed has one entry, so it is read on from the unit before."""
        path = Path(unit.path)
        if is_entered_anywhere(path):
            yield from islice(read_items(path, offset=unit.offset, number=unit.number), unit.count)
            return
        before, self.reading = self.reading, None  # none while items are on their way, or if one of them is broken
        if before is None or before[0] != unit.path or before[1] > unit.number:
            before = (unit.path, 0, read_items(path))
        yield from islice(before[2], unit.number - before[1], unit.number - before[1] + unit.count)
        self.reading = (unit.path, unit.number + unit.count, before[2])

    def _finish(self, drafts: list[Draft], unit: Unit, left_out: list[LeftOut]) -> list[Row]:
        sound = []
        for item, record, futures in drafts:
            try:
                sound.append((item, record, [future.result() for future in futures]))
            except BadRecord as error:
                self._leave_out(unit, item, error, left_out)
        codes = iter(self._encode([loaded for _, _, pictures in sound for loaded in pictures]))
        return [Row(record.kind, _messages(record, codes), unit.path, item.place) for item, record, _ in sound]

    def _leave_out(self, unit: Unit, item: Item, error: BadRecord, left_out: list[LeftOut]) -> None:
        if not self.options.skip_broken:
            raise ValueError(f"{unit.path}, {item.place}: {error} (or leave such records out with --skip-broken)")
        left_out.append(LeftOut(unit.path, item.place, str(error)))

    def _check_codes(self, record: Record) -> None:
        sizes = self.tokenizer.config
        for part in (part for turn in record.turns for part in turn.parts if isinstance(part, CodesPart)):
            if part.codes_KN.shape[0] != sizes.num_codebooks or part.codes_KN.max(initial=0) >= sizes.codebook_size:
                raise BadRecord(
                    f"the record's codes are not this image tokenizer's: found {part.codes_KN.shape[0]} codebooks with "
                    f"codes up to {part.codes_KN.max(initial=0)}, it has {sizes.num_codebooks} of "
                    f"{sizes.codebook_size}; name the one that made them"
                )

    def _load(self, picture: Picture) -> Loaded:
        """A picture at its size, as bytes (H, W, 3)."""
        image: Image.Image = picture.open()
        width, height = nearest_size(image.size, self.options.sizes)
        processor = ImageProcessor(width=width, height=height, preparation=self.options.preparation)
        try:
            return np.asarray(processor.prepare(image)), (width, height)
        except (ValueError, OSError) as error:  # such as a shape that is nothing but a line
            size = f"{image.width} x {image.height}"
            raise BadRecord(f"a picture of {size} pixels cannot be resized: {error}; crop it") from error

    @torch.inference_mode()
    def _encode(self, loaded: Sequence[Loaded]) -> list[CodesPart]:
        """Codes of pictures in order, encoded in batches of one size."""
        by_size: dict[Size, list[int]] = defaultdict(list)
        for index, (_, size) in enumerate(loaded):
            by_size[size].append(index)
        parts: dict[int, CodesPart] = {}
        for indices in by_size.values():
            for begin in range(0, len(indices), self.options.batch_size):
                batch = indices[begin : begin + self.options.batch_size]
                pixels_BHW3 = torch.from_numpy(np.stack([loaded[index][0] for index in batch]))
                pixels_B3HW = pixels_BHW3.to(self.tokenizer.device).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
                codes_BKN = self.tokenizer.encode(pixels_B3HW).cpu().numpy().astype(np.uint16)
                grid = self.tokenizer.grid_of(pixels_B3HW)
                parts.update(
                    (index, CodesPart(codes_KN, grid)) for index, codes_KN in zip(batch, codes_BKN, strict=True)
                )
        return [parts[index] for index in range(len(loaded))]


def _messages(record: Record, codes: Iterator[CodesPart]) -> tuple[Message, ...]:
    """The record's messages, with codes in place of its pictures."""
    turns = []
    for turn in record.turns:
        parts = (next(codes) if isinstance(part, Picture) else part for part in turn.parts)
        turns.append(Message(turn.role, tuple(parts)))
    return tuple(turns)


# A whole preparation: plan, make the shards that are missing, and write the manifest when all are there.
#
# Any number of processes share the work (`torchrun`, `accelerate launch`), each makes every so many-th shard. Finished
# shards are never touched again, so a preparation that was interrupted goes on by running the same command.
#
#     DIR/prepare.json       what the folder was begun with; another tokenizer or shard size is refused
#     DIR/plan/*.json        which records go into which shard
#     DIR/shards/*.parquet
#     DIR/left_out.jsonl     broken records that were left out, with file, place and reason
#     DIR/manifest.json      written last; training reads nothing without it


SETTINGS = "prepare.json"
LEFT_OUT = "left_out.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a finished folder holds."""

    records: int
    shards: int
    left_out: int


def prepare_folder(
    sources: Sequence[Path],
    folder: Path,
    *,
    tokenizer: UniTok,
    options: UnitOptions,
    shard_size: int,
    format_name: str | None = None,
    processes: Processes | None = None,
) -> Totals:
    """Prepare sources into a folder; running it again goes on, and sources may be added."""
    processes = processes or Processes()
    codes_of = codes_made_by(tokenizer)
    files = find_files(sources, but_not_in=folder)
    if processes.is_first:
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        _check_settings(folder, codes_of, options, shard_size)
    processes.wait()
    for path in processes.share(files):
        plan_file(path, folder, shard_size=shard_size, format_name=format_name)
    processes.wait()
    units = read_units(folder)
    _make_missing(units, folder, UnitPreparer(tokenizer, options), codes_of, processes)
    processes.wait()
    if processes.is_first:
        for path in folder.rglob(f"*{UNFINISHED}"):
            path.unlink()  # of processes that were killed
        write_manifest(folder, [unit.shard for unit in units], codes_of)
    processes.wait()
    return _totals(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


def _make_missing(
    units: Sequence[Unit], folder: Path, preparer: UnitPreparer, codes_of: CodesOf, processes: Processes
) -> None:
    """The shards of this process that are not there yet."""
    mine = processes.share(units)
    missing = [unit for unit in mine if not (folder / SHARDS / unit.shard).is_file()]
    num_records, num_left = (sum(unit.count for unit in some) for some in (mine, missing))
    progress = tqdm(
        total=num_records,
        initial=num_records - num_left,
        desc="prepare" if processes.count == 1 else f"prepare (1 of {processes.count} processes)",
        unit=" records",
        disable=not processes.is_first,
    )
    with progress:
        for unit in missing:
            done = progress.n
            rows, left_out = preparer.prepare(unit, advance=progress.update)
            write_shard(folder / SHARDS / unit.shard, rows, codes_of=codes_of, left_out=left_out)
            progress.update(done + unit.count - progress.n)


def _check_settings(folder: Path, codes_of: CodesOf, options: UnitOptions, shard_size: int) -> None:
    """Refuse to go on with a folder that was begun otherwise."""
    wanted = {
        "version": VERSION,
        "tokenizer": asdict(codes_of),
        "sizes": [list(size) for size in options.sizes],
        "preparation": options.preparation,
        "shard_size": shard_size,
    }
    path = folder / SETTINGS
    if path.is_file():
        begun: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, value in wanted.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{folder} was begun with another {name.replace('_', ' ')}: found {begun.get(name)}, now {value}; "
                    "name another folder with --out"
                )
    write_json(path, wanted)


def write_manifest(folder: Path, names: Sequence[str], codes_of: CodesOf) -> dict[str, Any]:
    """Write what was left out, and then the manifest, which makes the folder a finished one."""
    shards, left_out = [], []
    for name in names:
        path = folder / SHARDS / name
        file = pq.read_metadata(path)
        left_out += read_facts(file.metadata, name)["left_out"]
        shards.append({"name": name, "rows": file.num_rows, "bytes": path.stat().st_size})
    write_lines(folder / LEFT_OUT, left_out)
    manifest = {
        "version": VERSION,
        "tokenizer": asdict(codes_of),
        "records": sum(shard["rows"] for shard in shards),
        "left_out": len(left_out),
        "shards": shards,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _totals(manifest: dict[str, Any]) -> Totals:
    return Totals(manifest["records"], len(manifest["shards"]), manifest["left_out"])


# Print samples as the model will learn them: what is learned in green, or in [[ ]] where there is no color.
#
# In: a prepared folder. Out: printed text, and the pictures of the samples, decoded from their codes, as files.
#
# Letters: K codebooks, N positions of an image.


GREEN, PLAIN = "\033[32m", "\033[0m"


def show_samples(
    folder: ShardFolder,
    count: int,
    *,
    tokenizer: UniTok,
    style: str,
    seed: int,
    pictures: Path,
    in_color: bool,
) -> None:
    """Print `count` random samples and save their pictures.

    Raises:
        ValueError: the codes are not this image tokenizer's.
    """
    folder.require_tokenizer(codes_made_by(tokenizer))
    rng = Random(seed)
    ends = np.cumsum(folder.num_rows)
    for number in range(1, count + 1):
        place = rng.randrange(len(folder))
        shard = int(np.searchsorted(ends, place, side="right"))
        row = folder.row(shard, place - int(ends[shard]) + int(folder.num_rows[shard]))
        segments = render(sample_of(row, rng, SampleOptions()), style)
        print(f"--- sample {number}: {row.kind} from {row.source}, {row.place}")
        print(as_text(segments, in_color=in_color))
        images = [segment.content for segment in segments if isinstance(segment.content, CodesPart)]
        for index, image in enumerate(images, start=1):
            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"sample-{number}-{index}.png"
            decode(tokenizer, image).save(path)
            print(f"    picture {index}: {path}")


def as_text(segments: list[Segment], *, in_color: bool) -> str:
    """The segments in order, the learned ones marked."""
    begin, end = (GREEN, PLAIN) if in_color else ("[[", "]]")
    text, num_images, was_learned = "", 0, False
    for segment in segments:
        if segment.supervised != was_learned:
            text += begin if segment.supervised else end
            was_learned = segment.supervised
        match segment.content:
            case Marker.BOS:
                text += "<s>"
            case Marker.EOS:
                text += "</s>"
            case CodesPart(grid=(rows, columns)):
                num_images += 1
                text += f"<picture {num_images}: {rows} x {columns}>"
            case ClassPart(index):
                text += f"<class {index}>"
            case str(words):
                text += words
    return text + (end if was_learned else "")


@torch.inference_mode()
def decode(tokenizer: UniTok, image: CodesPart) -> Image.Image:
    """The picture of its codes."""
    codes_1KN = torch.from_numpy(image.codes_KN.astype(np.int64))[None].to(tokenizer.device)
    return to_images(tokenizer.decode(codes_1KN, grid=image.grid))[0]


def prepare(arguments: argparse.Namespace) -> None:
    """Make the shards that are missing."""
    processes = Processes()
    tokenizer = load_image_tokenizer(arguments, processes)
    options = unit_options(arguments, tokenizer)
    totals = prepare_folder(
        arguments.sources,
        arguments.out,
        tokenizer=tokenizer,
        options=options,
        shard_size=arguments.shard_size,
        format_name=arguments.format,
        processes=processes,
    )
    if processes.is_first:
        made_by = describe(codes_made_by(tokenizer))
        print(f"{arguments.out}: {totals.records} records in {totals.shards} shards, codes of {made_by}")
        if totals.left_out:
            print(f"{totals.left_out} broken records were left out; see {arguments.out / LEFT_OUT}")


def show(arguments: argparse.Namespace) -> None:
    """Print samples of a prepared folder."""
    processes = Processes()
    if not processes.is_first:
        return
    folder = ShardFolder(str(arguments.out))
    tokenizer = load_image_tokenizer(arguments, processes)
    model = model_folder(arguments)
    style = MLLMConfig.from_pretrained(model).prompt_style if model else "native"
    show_samples(
        folder,
        arguments.show,
        tokenizer=tokenizer,
        style=style,
        seed=arguments.seed,
        pictures=arguments.out / "samples",
        in_color=sys.stdout.isatty(),
    )


def load_image_tokenizer(arguments: argparse.Namespace, processes: Processes) -> UniTok:
    """The image tokenizer of --image-tokenizer, or of --model, or of the toolkit's model."""
    named = arguments.image_tokenizer or arguments.model
    device = choose_device(arguments.device) if arguments.device else processes.device
    return find_image_tokenizer(str(named) if named else None, device=device)


def model_folder(arguments: argparse.Namespace) -> Path | None:
    """The model that was named; the toolkit's, where no image tokenizer was named either."""
    return find_model_folder(arguments.model) if arguments.model or not arguments.image_tokenizer else None


def unit_options(arguments: argparse.Namespace, tokenizer: UniTok) -> UnitOptions:
    """How to read and encode: what was typed, else what the model wants, else the tokenizer's size."""
    side = tokenizer.config.image_size
    sizes: tuple[Size, ...] = ((side, side),)
    preparation = "cover"
    if folder := model_folder(arguments):
        sizes = tuple(best_sizes(MLLMConfig.from_pretrained(folder)))
        preparation = read_preparation(folder / PROCESSOR_FILE)
    if arguments.size:
        sizes = (arguments.size,)
    preparation = arguments.preparation or preparation
    if preparation not in PREPARATIONS:
        raise ValueError(f"unknown preparation: found {preparation!r}; use one of {', '.join(sorted(PREPARATIONS))}")
    patch = tokenizer.config.patch_size
    if any(side % patch for size in sizes for side in size):
        raise ValueError(f"sides of pictures must be multiples of {patch}: found {sizes}; mend --size")
    return UnitOptions(
        sizes=sizes,
        preparation=preparation,
        pictures=arguments.images,
        skip_broken=arguments.skip_broken,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
