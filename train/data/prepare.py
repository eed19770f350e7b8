"""`mllm prepare`: raw records in, a folder of shards with a code for every image out; and samples of such a folder.

Each input file is cut into shard tasks of a fixed number of records, and each task makes one shard
(train/data/shards.py). The tasks of a file are found once and kept in DIR/tasks/; a file that has changed since is
refused. Any number of processes share the work (`torchrun`, `accelerate launch`). Finished shards are never touched
again, so running the same command resumes, and sources may be added.

Threads open and resize images while those before them are encoded. Which images share a batch depends on the task
alone, so a shard that is made again comes out the same.

Letters: H W pixels, K codebooks, N positions.
"""

import hashlib
import logging
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor

from mllm.checkpoint import choose_device, find_image_tokenizer, find_model_folder
from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, ImageSize, Marker, Message, Segment, render
from mllm.files import counted, only_writer, read_json, write_image, write_json
from mllm.processor import read_preparation
from mllm.sequence import Size, best_sizes, nearest_size
from tokenizer.codes import fingerprint
from tokenizer.images import (
    IMAGE_ENDINGS,
    PREPARATIONS,
    ImageProcessor,
    files_below,
    find_captions,
    to_bytes,
    to_images,
    unread_format,
)
from tokenizer.unitok import EncodedImage, UniTok, decode_images, encode_images
from train.data import raw_files, shards
from train.data.formats import COLUMNS, LAYOUTS, find_format, read_record, renamed
from train.data.mixture import choose_sample
from train.data.raw_files import RECORD_ENDINGS, RawItem, read_items
from train.data.records import BadRecord, RawImage, Record, ten_views
from train.data.shards import CodeSource, LeftOut, ShardFolder, ShardTask

logger = logging.getLogger(__name__)

OLD_TASKS = "plan"
"""Where the tasks of each file were kept; such folders are renamed, and have "units" for "tasks"."""
HEAD = 1 << 16  # bytes at both ends of a file by which a change is noticed, with its size
RECORDS_AT_ONCE = 256  # records without images that are read before the next are begun
MAX_WAIT = timedelta(days=7)  # processes wait for the slowest at the end of a long preparation
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # hold no records
GREEN, PLAIN = "\033[32m", "\033[0m"
MARKS = {Marker.BOS: "<s>", Marker.EOS: "</s>", Marker.PLAN: "<plan>"}


# The job: which shards there are


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """How records are read and images are encoded."""

    sizes: tuple[Size, ...]  # (width, height) that images may be encoded at; each takes the one nearest to its shape
    preparation: str = "cover"  # how an image gets to its size; a name in tokenizer/images.py
    image_folder: Path | None = None  # folder of relative image paths. None: the folder of the record file.
    columns: Mapping[str, str] = field(default_factory=dict)  # names in train/data/formats.py to those of the data
    skip_broken: bool = False  # leave invalid records out and count them; otherwise the first one ends the preparation
    batch_size: int = 64
    num_workers: int = 4  # threads that open images


def prepare_folder(
    sources: Sequence[Path],
    folder: Path,
    *,
    tokenizer: UniTok,
    options: PrepareOptions,
    shard_size: int,
    format_name: str | None = None,
) -> dict[str, Any]:
    """Prepare sources into a folder, whose manifest is returned; running it again resumes."""
    state, code_source = process_state(), CodeSource.of(tokenizer)
    files = find_files(sources, but_not_in=folder)
    with only_writer(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            settings = {
                "version": shards.VERSION,
                "tokenizer": asdict(code_source),
                "sizes": [list(size) for size in options.sizes],
                "preparation": options.preparation,
                "shard_size": shard_size,
                "columns": dict(options.columns) or None,
            }
            shards.check_settings(folder, settings)
            if (folder / OLD_TASKS).is_dir():
                (folder / OLD_TASKS).rename(folder / shards.TASKS)
        state.wait_for_everyone()
        for path in files[state.process_index :: state.num_processes]:
            _find_tasks(path, folder, shard_size=shard_size, format_name=format_name, columns=options.columns)
        state.wait_for_everyone()
        maker = ShardMaker(tokenizer, options)
        return shards.make_shards(folder, read_tasks(folder), maker.make, code_source, state=state)


def process_state() -> PartialState:
    """This process among those that share the work; alone without a launcher."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=MAX_WAIT)


def find_files(sources: Sequence[Path], *, but_not_in: Path | None = None) -> list[Path]:
    """The files of records that sources name; a folder stands for all in it, or is a folder of images, of codes, or of
    a saved data set. Files in it that are not read are logged."""
    files: list[Path] = []
    for source in sources:
        out = but_not_in and but_not_in.resolve()
        if out in (source.resolve(), *source.resolve().parents) and source.is_dir():
            raise ValueError(f"--out must be outside of the sources, got {but_not_in} for {source}; name another")
        if source.is_dir():
            files += _files_in(source, out)
        elif source.is_file():
            raw_files.kind_of(source)  # refuses other endings
            files.append(source)
        else:
            raise FileNotFoundError(f"source {source} not found; give files of records or folders of them")
    for path in files:
        if not str(path).isascii() and str(path).encode("utf-8", "replace").decode() != str(path):
            raise ValueError(f"the name of a source must be UTF-8, got {str(path)!r}; rename it")
    return list(dict.fromkeys(path.resolve() for path in files))


def _files_in(source: Path, out: Path | None) -> list[Path]:
    """The files of a folder that are read; of those that img2dataset writes, the ones that hold the images."""
    inside = [path for path in files_below(source) if out not in path.resolve().parents]
    saved = {path.parent for path in inside if path.name == raw_files.SAVED_DATASET}
    inside = [path for path in inside if saved.isdisjoint(path.parents)]
    images = [path for path in inside if path.suffix.lower() in IMAGE_ENDINGS]
    captions = find_captions(inside)
    records = [path for path in inside if path.name.lower().endswith(RECORD_ENDINGS)]
    stems = {path: re.sub(r"(_stats)?\.(json|parquet|tar|tar\.\w+|tgz)$", "", str(path).lower()) for path in records}
    stated = {stem for path, stem in stems.items() if path.name.endswith("_stats.json")}
    described = {stem for path, stem in stems.items() if ".tar" in path.name.lower() or path.name.endswith(".tgz")}
    described |= stated & {str(image.parent).lower() for image in images}
    about = {
        *(path for path in records if path.name in ABOUT_DATA or path.name.endswith("_stats.json")),
        *(path for path, stem in stems.items() if stem in described and path.suffix in (".parquet", ".json")),
        *(image.with_suffix(".json") for image in images),
    }
    records = [path for path in records if path not in about]
    has_codes = raw_files.holds_codes(source)
    wrong = unread_format(path.suffix.lower() for path in inside)
    if not (records or saved or images or has_codes):
        if wrong:
            raise ValueError(f"{source}: {wrong}")
        raise ValueError(f"{source} must hold images or files of {', '.join(RECORD_ENDINGS)}, got neither")
    is_read = {*records, *images, *captions.values()}
    unread = [path for path in inside if path not in is_read and not (has_codes and path.suffix == ".npy")]
    unread += [path for path in sorted(source.rglob("*")) if path.is_symlink() and not path.is_file()]
    if records or saved:  # which name their images; others have captions of their own
        unread += captions
    if unread:
        names = ", ".join(path.name for path in unread[:5]) + (" ..." if len(unread) > 5 else "")
        logger.warning("%s: not read: %s (%d in all)%s", source, names, len(unread), f"; {wrong}" if wrong else "")
    return [*records, *sorted(saved)] or [source]


def _find_tasks(
    path: Path, folder: Path, *, shard_size: int, format_name: str | None, columns: Mapping[str, str]
) -> None:
    """Write the tasks of a file, or check that those that are there fit it."""
    target = folder / shards.TASKS / f"{_key_of(path)}.json"
    state = _fingerprint_of(path)
    if target.is_file():
        stored = read_json(target)
        tasks = stored.get("tasks", stored.get("units"))
        is_read_alike = format_name is None or all(task["format"] == format_name for task in tasks)
        if stored["fingerprint"] == state and is_read_alike:
            return
        if any((folder / shards.SHARDS / task["shard"]).is_file() for task in tasks):
            raise ValueError(
                f"{path} and its --format {tasks[0]['format']} must stay as they were when {folder} was started; "
                "choose another output folder"
            )
    format_name = format_name or find_format(path, columns)
    num_items = sum(1 for _ in read_items(path, contents=False))
    if not num_items:
        logger.warning("%s holds no records", path)
    tasks = []
    for index, number in enumerate(range(0, num_items, shard_size)):
        shard, count = f"{_key_of(path)}-{index:05d}.parquet", min(shard_size, num_items - number)
        tasks.append(ShardTask(shard, str(path), format_name, number, count)._asdict())
    write_json(target, {"path": str(path), "fingerprint": state, "tasks": tasks})


def read_tasks(folder: Path) -> list[ShardTask]:
    """All tasks of a folder, in one order for all processes."""
    files = [read_json(path) for path in sorted((folder / shards.TASKS).glob("*.json"))]
    tasks = [task for file in files for task in file.get("tasks", file.get("units"))]
    return [ShardTask(*(task[name] for name in ShardTask._fields)) for task in tasks]


def _key_of(path: Path) -> str:
    """A readable name that no other file has."""
    stem = "".join(char if char.isalnum() else "_" for char in path.name.split(".")[0])[:40]
    return f"{stem}-{fingerprint([str(path)])[:10]}"


def _fingerprint_of(path: Path) -> str:
    """Changes when the file does: of its size, beginning and end; of a folder, of its names."""
    if path.is_dir():
        return fingerprint(["\n".join(sorted(str(file.relative_to(path)) for file in path.rglob("*")))])
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - HEAD))
        return fingerprint([str(size), head, file.read(HEAD)])


# The work: the records of one task


class Pending(NamedTuple):
    """A record whose images are being opened."""

    item: RawItem
    record: Record
    images: list[Future[list[Tensor]]]  # of each image, itself or its views: uint8 (3, H, W)


class ShardMaker:
    """Makes the rows of tasks with one image tokenizer."""

    def __init__(self, tokenizer: UniTok, options: PrepareOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.known: dict[bytes, EncodedImage] = {}  # by the hash of their pixels
        self.reading: tuple[str, int, Iterator[RawItem]] | None = None  # file, number of its next item, items

    def make(self, task: ShardTask, advance: Callable[[int], object]) -> tuple[list[Record], list[LeftOut]]:
        """The records of a task, in order, and what was left out. `advance` is told how many more records are done.
        Raises ValueError at an invalid record, with its file and place, unless `skip_broken`."""
        made: list[Record] = []
        left_out: list[LeftOut] = []
        self.known.clear()  # shards do not depend on those before
        with ThreadPoolExecutor(self.options.num_workers) as pool:
            before: list[Pending] = []
            for group in self._groups(task, pool, left_out):  # while these are opened, those before are encoded
                made += self._finish(before, task, left_out)
                advance(len(before))
                before = group
            made += self._finish(before, task, left_out)
        return made, left_out

    def _groups(self, task: ShardTask, pool: ThreadPoolExecutor, left_out: list[LeftOut]) -> Iterator[list[Pending]]:
        """Records whose images are being opened, as many as fill a batch."""
        path = Path(task.path)
        folder = self.options.image_folder or (path if path.is_dir() else path.parent)
        group: list[Pending] = []
        num_images = 0
        for item in self._items(task):
            if item.is_blank:
                continue
            try:
                record = read_record(task.format, renamed(item.row(), self.options.columns), folder)
                self._check_codes(record)
            except BadRecord as error:
                self._leave_out(task, item, error, left_out)
                continue
            images = [pool.submit(self._load, part) for part in record.parts if isinstance(part, RawImage)]
            group.append(Pending(item, record, images))
            num_images += len(images)
            if num_images >= self.options.batch_size or len(group) >= RECORDS_AT_ONCE:
                yield group
                group, num_images = [], 0
        yield group

    def _items(self, task: ShardTask) -> Iterator[RawItem]:
        """The task's items, read on from the task before where that is in the same file: a tar has no index, a row
        group of Parquet no beginnings of rows, and other files can only be read from their beginning."""
        path = Path(task.path)
        before, self.reading = self.reading, None  # none while items are being read, or if one of them is invalid
        seeks = raw_files.is_seekable(path)
        if before is None or before[0] != task.path or before[1] > task.number or (seeks and before[1] < task.number):
            first = task.number if seeks else 0
            before = (task.path, first, read_items(path, first))
        yield from islice(before[2], task.number - before[1], task.number - before[1] + task.count)
        self.reading = (task.path, task.number + task.count, before[2])

    def _finish(self, group: list[Pending], task: ShardTask, left_out: list[LeftOut]) -> list[Record]:
        valid = []
        for item, record, futures in group:
            try:
                valid.append((item, record, [future.result() for future in futures]))
            except BadRecord as error:
                self._leave_out(task, item, error, left_out)
        codes = self._encode([pixels_3HW for _, _, images in valid for views in images for pixels_3HW in views])
        made = []
        for item, record, images in valid:
            coded = iter([[CodesPart(*next(codes)) for _ in views] for views in images])
            messages = []
            for message in record.messages:
                parts: Any = (next(coded) if isinstance(part, RawImage) else [part] for part in message.parts)
                messages.append(Message(message.role, tuple(chain.from_iterable(parts))))
            made.append(Record(record.kind, tuple(messages), task.path, item.place))
        return made

    def _encode(self, loaded: list[Tensor]) -> Iterator[EncodedImage]:
        """The codes of images; one that occurs again in the task is not encoded again."""
        names = [hashlib.sha256(bytes(f"{tuple(p.shape)}", "ascii") + p.numpy().tobytes()).digest() for p in loaded]
        new = {name: pixels for name, pixels in zip(names, loaded, strict=True) if name not in self.known}
        codes = encode_images(list(new.values()), self.tokenizer, batch_size=self.options.batch_size)
        self.known |= dict(zip(new, codes, strict=True))
        return iter([self.known[name] for name in names])

    def _leave_out(self, task: ShardTask, item: RawItem, error: BadRecord, left_out: list[LeftOut]) -> None:
        if not self.options.skip_broken:
            raise ValueError(f"{task.path}, {item.place}: {error} (or leave such records out with --skip-broken)")
        reason = str(error).encode("utf-8", "backslashreplace").decode()  # it may quote half of a surrogate pair
        left_out.append(LeftOut(task.path, item.place, reason))

    def _check_codes(self, record: Record) -> None:
        sizes = self.tokenizer.config
        for codes_KN in (part.codes_KN for part in record.parts if isinstance(part, CodesPart)):
            if codes_KN.shape[0] != sizes.num_codebooks or codes_KN.max(initial=0) >= sizes.codebook_size:
                raise BadRecord(
                    f"codes must be those of the image tokenizer, {sizes.num_codebooks} codebooks of "
                    f"{sizes.codebook_size}, got {codes_KN.shape[0]} codebooks with codes up to "
                    f"{codes_KN.max(initial=0)}; name the image tokenizer that made them"
                )

    def _load(self, image: RawImage) -> list[Tensor]:
        """An image at its size, or its views, as bytes (3, H, W)."""
        opened = image.open()
        if image.has_views:
            size = min(nearest_size((1, 1), self.options.sizes))
            return [to_bytes(view) for view in ten_views(opened, size)]
        width, height = nearest_size(opened.size, self.options.sizes)
        processor = ImageProcessor(width=width, height=height, preparation=self.options.preparation)
        return [to_bytes(processor.prepare(opened))]


# Samples as the model will learn them


def as_text(segments: list[Segment], *, in_color: bool) -> str:
    """The segments in order, the learned ones marked."""
    begin, end = (GREEN, PLAIN) if in_color else ("[[", "]]")
    text, num_images, was_learned = "", 0, False
    for segment in segments:
        if segment.supervised != was_learned:
            text += begin if segment.supervised else end
            was_learned = segment.supervised
        match segment.content:
            case Marker() as marker:
                text += MARKS[marker]
            case ImageSize((rows, columns)):
                text += f"<size {rows} x {columns}>"
            case CodesPart(grid=(rows, columns)):
                num_images += 1
                text += f"<image {num_images}: {rows} x {columns}>"
            case ClassPart(index):
                text += "<no class>" if index is None else f"<class {index}>"
            case str(words):
                text += words
            case content:
                raise TypeError(f"a segment must be text, a marker, a size, a class or codes, got {content!r}")
    return text + (end if was_learned else "")


# The verb


def prepare(options: Namespace) -> None:
    tokenizer, how = _image_tokenizer(options), {"shard_size": options.shard_size, "format_name": options.format}
    reading = _prepare_options(options, tokenizer)
    manifest = prepare_folder(options.sources, options.out, tokenizer=tokenizer, options=reading, **how)
    if process_state().is_main_process:
        source = CodeSource.of(tokenizer)
        made = f"{counted(manifest['records'], 'record')} in {counted(len(manifest['shards']), 'shard')}"
        print(f"{options.out}: {made}, codes of {source}")
        if manifest["left_out"]:
            print(f"{counted(manifest['left_out'], 'broken record')} left out; see {options.out / shards.LEFT_OUT}")


def show(options: Namespace) -> None:
    """Print random samples of a prepared folder as the model will learn them, what is learned in green (or in [[ ]]),
    and save their images, decoded from codes."""
    if not process_state().is_main_process:
        return
    folder, tokenizer, model = ShardFolder(options.out), _image_tokenizer(options), _model_folder(options)
    folder.require_tokenizer(CodeSource.of(tokenizer))
    style, rng = MLLMConfig.from_pretrained(model).prompt_style if model else "native", Random(options.seed)
    for number in range(1, options.show + 1):
        record = folder[rng.randrange(len(folder))]
        segments = render(choose_sample(record, rng, prompt_dropout=0.1, describe_share=0.0), style)
        print(f"--- sample {number}: {record.kind} from {record.source}, {record.place}")
        print(as_text(segments, in_color=sys.stdout.isatty()))
        codes = [segment.content for segment in segments if isinstance(segment.content, CodesPart)]
        encoded = [EncodedImage(part.codes_KN, part.grid) for part in codes]
        for index, pixels_3HW in enumerate(decode_images(encoded, tokenizer, batch_size=1), start=1):
            path = options.out / "samples" / f"sample-{number}-{index}.png"
            write_image(path, to_images(pixels_3HW[None])[0])
            print(f"    image {index}: {path}")


def _image_tokenizer(options: Namespace) -> UniTok:
    """The image tokenizer of --image-tokenizer, or of --model, or of the bundled model."""
    named = options.image_tokenizer or options.model
    device = choose_device(options.device) if options.device else process_state().device
    return find_image_tokenizer(str(named) if named else None, device=device)


def _model_folder(options: Namespace) -> Path | None:
    """The model that was named; the bundled one, where no image tokenizer was named either."""
    return find_model_folder(options.model) if options.model or not options.image_tokenizer else None


def _prepare_options(options: Namespace, tokenizer: UniTok) -> PrepareOptions:
    """How to read and encode: what was given, else what the model wants, else the tokenizer's size."""
    side, patch = tokenizer.config.image_size, tokenizer.config.patch_size
    folder = _model_folder(options)
    preparation = options.preparation or (read_preparation(folder) if folder else "cover")
    sizes: tuple[Size, ...] = (options.size or (side, side),)
    if folder and not options.size:
        sizes = tuple(best_sizes(MLLMConfig.from_pretrained(folder)))
    if preparation not in PREPARATIONS:
        raise ValueError(f"--preparation must be one of {', '.join(sorted(PREPARATIONS))}, got {preparation!r}")
    if any(side % patch for size in sizes for side in size):
        raise ValueError(f"--size must be multiples of {patch}, got {sizes[0][0]}x{sizes[0][1]}; change it")
    return PrepareOptions(
        sizes=sizes,
        preparation=preparation,
        image_folder=options.images,
        columns=_columns(options.map),
        skip_broken=options.skip_broken,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )


def _columns(text: str | None) -> dict[str, str]:
    """The pairs of --map."""
    pairs = [pair.strip().partition("=") for pair in (text or "").split(",") if text]
    known = {*COLUMNS, *(name for layout in LAYOUTS.values() for columns in layout.columns for name in columns)}
    for name, _, column in pairs:
        if name not in known or not column:
            raise ValueError(f"--map must be NAME=COLUMN with a name of {', '.join(sorted(known))}, got {text!r}")
    return {name: column for name, _, column in pairs}
