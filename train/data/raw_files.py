"""Files of raw samples to rows, each a mapping of column names to values, from any item on.

    .jsonl, .json            one JSON object per line, one JSON array, or one object with a list (COCO)
    .csv, .tsv               with or without a line of column names
    .parquet, .arrow         and folders that `datasets.save_to_disk` wrote
    .tar                     WebDataset: neighbouring members of one name are a sample
    a folder of images       each with a .txt of the same name, or in sub-folders by class
    a folder of codes        codes/*.npy and labels/*.npy, as LlamaGen extracts them

All but Parquet and Arrow may be compressed (.gz, .zst, .tgz). `datasets` reads what it saved; its readers of the others
force one schema on mixed records and end at an invalid line without its number. What columns mean is in
train/data/formats.py. Nothing is held in memory that grows with a file, but COCO's one object.
"""

import codecs
import csv
import io
import json
import logging
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import numpy as np
import pyarrow
import pyarrow.parquet
from webdataset.tariterators import base_plus_ext

from mllm.files import TOO_DEEP, parse_json, read_json
from tokenizer.images import CAPTION_ENDINGS, IMAGE_ENDINGS, files_below, find_captions, unread_format
from train.data.records import BadRecord

logger = logging.getLogger(__name__)

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar")
RECORD_ENDINGS = (*KINDS, *COMPRESSIONS, ".tgz")
"""Endings of files that can be read, in lower case; a compressed file without another one has JSON lines."""
CHUNK = 1 << 20
BETWEEN_RECORDS = " \t\r\n,"
ROWS_AT_ONCE = 64  # rows of a table that are in memory at once
SAVED_DATASET = "state.json"  # a file of each folder that `datasets.save_to_disk` wrote


class RawItem(NamedTuple):
    """One raw sample."""

    place: str  # where it is in the file, for people
    value: bytes | dict[str, Any] | BadRecord  # JSON text, a row, or why there is none

    @property
    def is_blank(self) -> bool:
        return isinstance(self.value, bytes) and not self.value.strip()

    def row(self) -> dict[str, Any]:
        if isinstance(self.value, BadRecord):
            raise self.value
        try:
            row = parse_json(self.value) if isinstance(self.value, bytes) else self.value
        except ValueError as error:
            raise BadRecord(f"a record must be valid JSON: {error}; fix the line") from error
        if not isinstance(row, dict):
            raise BadRecord(f"a record must be a JSON object, got {type(row).__name__}; fix the line")
        return row


def kind_of(path: Path) -> tuple[str, str | None]:
    """The ending that says how a file is read, and its compression."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    last = endings[-1] if endings else ""
    if last == ".tgz":
        return ".tar", "gzip"
    if last in COMPRESSIONS:
        return (endings[0] if endings[0] in KINDS else ".jsonl"), COMPRESSIONS[last]
    if last not in KINDS:
        raise ValueError(f"the ending of {path} must be one of {', '.join(RECORD_ENDINGS)}, got {last!r}")
    return last, None


def is_seekable(path: Path) -> bool:
    """Whether reading can begin at an item without reading those before it."""
    if path.is_dir():
        return (path / SAVED_DATASET).is_file()
    return kind_of(path) in ((".parquet", None), (".arrow", None), (".tar", None))


def read_items(path: Path, first: int = 0, *, contents: bool = True) -> Iterator[RawItem]:
    """Items from number `first` on; without `contents` members of tars are empty, which is many times faster. Raises
    ValueError where the file is damaged, or of another kind than its ending says."""
    kind, compression = kind_of(path) if path.is_file() else ("", None)
    if compression and kind in (".parquet", ".arrow"):
        raise ValueError(f"{path} must not be compressed once more, got {path.suffix}; decompress it")
    with _damages_of(path):
        match kind:
            case ".parquet":
                yield from _parquet_rows(path, first)
            case ".tar":
                yield from _tar_samples(path, first, contents=contents)
            case ".arrow":
                yield from _saved_rows(path, first)
            case "" if (path / SAVED_DATASET).is_file():
                yield from _saved_rows(path, first)
            case "":
                yield from islice(_codes_by_class(path) if holds_codes(path) else _images(path), first, None)
            case ".csv" | ".tsv":
                yield from islice(_table_lines(path, "," if kind == ".csv" else "\t"), first, None)
            case ".json" if not compression and (items := _document(path, path.stat().st_mtime_ns)) is not None:
                yield from items[first:]
            case _:
                yield from islice(_json_records(path), first, None)


@contextmanager
def _damages_of(path: Path) -> Iterator[None]:
    """Within, errors of a file that is no text, or not complete, name it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got {error}; convert the file") from error
    except (EOFError, OSError, tarfile.TarError, pyarrow.ArrowInvalid) as error:
        kind = path.suffix.lstrip(".") or "data"
        raise ValueError(f"{path} must be a complete {kind} file: {error}; download or write it again") from error


def _open(path: Path) -> IO[bytes]:
    """The content of a file, decompressed."""
    _, compression = kind_of(path)
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression), CHUNK)


def _open_text(path: Path) -> IO[bytes]:
    """The content of a file of text, without its byte order mark."""
    with _open(path) as stream:
        head = stream.read(3)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} must be text in UTF-8, got UTF-16; convert the file")
    stream = _open(path)
    stream.read(3 if head == codecs.BOM_UTF8 else 0)
    return stream


def _json_records(path: Path) -> Iterator[RawItem]:
    """Lines, or the elements of one array."""
    with _open_text(path) as stream:
        if _skip_to_first(stream) == b"[":
            yield from _array_records(path, io.TextIOWrapper(stream, encoding="utf-8"))
            return
    with _open_text(path) as stream:
        yield from (RawItem(f"line {number}", line) for number, line in enumerate(stream, start=1))


def _skip_to_first(stream: IO[bytes]) -> bytes:
    """The first byte that is no space, which is read."""
    while (head := stream.read(1)).isspace():
        pass
    return head


def _array_records(path: Path, text: TextIO) -> Iterator[RawItem]:
    """Elements of one JSON array, parsed one by one; its bracket has been read."""
    parser, buffer, place, number = json.JSONDecoder(), "", 0, 1
    while True:
        while place < len(buffer) and buffer[place] in BETWEEN_RECORDS:
            place += 1
        if buffer.startswith("]", place):
            return
        try:
            value, place = parser.raw_decode(buffer, place)
        except (ValueError, RecursionError) as error:
            is_deep = isinstance(error, RecursionError)
            chunk = "" if is_deep else text.read(CHUNK)
            if not chunk:
                reason = TOO_DEEP if is_deep else error
                raise ValueError(f"{path} must be a JSON array: {reason} (record {number}); fix it") from error
            buffer, place = buffer[place:] + chunk, 0
            continue
        yield RawItem(f"record {number}", value if isinstance(value, dict) else json.dumps(value).encode())
        number += 1


@lru_cache(maxsize=1)
def _document(path: Path, _changed: int) -> list[RawItem] | None:
    """What a .json file holds that is one object: COCO's annotations, each with the fields of its image; the elements
    of its only list of objects; or a record of its own. None: it has lines, or is an array."""
    with _open_text(path) as stream:
        head, first, second = _skip_to_first(stream), stream.readline(), stream.readline()
    if head != b"{" or second.strip().startswith(b"{"):
        return None
    try:
        document, is_line = parse_json(head + first), True
    except ValueError:
        try:
            document, is_line = read_json(path), False
        except ValueError:
            return None
    is_record = {"conversations", "messages", "image_info", "texts"} & document.keys()
    lists = {name: value for name, value in document.items() if isinstance(value, list) and value and not is_record}
    lists = {name: value for name, value in lists.items() if all(isinstance(element, dict) for element in value)}
    if {"annotations", "images"} <= lists.keys():
        images = {image.get("id"): image for image in lists["images"]}
        rows = [{**images.get(annotation.get("image_id"), {}), **annotation} for annotation in lists["annotations"]]
        if left := images.keys() - {annotation.get("image_id") for annotation in lists["annotations"]}:
            logger.warning("%s: %d of %d images left out, as they have no annotation", path, len(left), len(images))
        return [RawItem(f"annotation {number}", row) for number, row in enumerate(rows, start=1)]
    if len(lists) > 1:
        raise ValueError(f"{path} must have one list of records, got {', '.join(lists)}; write one record per line")
    if not lists and is_line:
        return None
    rows = next(iter(lists.values()), [document])
    return [RawItem(f"record {number}", row) for number, row in enumerate(rows, start=1)]


def _table_lines(path: Path, delimiter: str) -> Iterator[RawItem]:
    """Lines of a table. Where the first one holds content, columns are called 0, 1, ..., or image and caption where two
    can be told apart (CC3M, CC12M). A tab-separated file has no quotes; spreadsheets may separate by semicolons."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    with _open_text(path) as stream:
        if delimiter == "," and b"," not in (head := stream.readline(CHUNK)):
            delimiter = ";" if b";" in head else delimiter
    with _open_text(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        lines = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
        try:
            names = next(lines, [])
            left: Iterator[list[str]] = lines
            if any(not name.strip() or _is_image(name) or name.count(" ") > 2 for name in names):
                left, kinds = chain([names], lines), ["image" if _is_image(name) else "caption" for name in names]
                names = kinds if sorted(kinds) == ["caption", "image"] else [str(index) for index in range(len(names))]
            for cells in filter(None, left):
                row: dict[str, Any] | BadRecord = dict(zip(names, cells, strict=False))
                if len(cells) != len(names):
                    row = BadRecord(f"a line must have {len(names)} columns, got {len(cells)}; quote or fix the line")
                yield RawItem(f"line {lines.line_num}", row)
        except csv.Error as error:
            raise ValueError(f"{path} must be a table, got {error} near line {lines.line_num}; fix the file") from error


def _is_image(cell: str) -> bool:
    return "://" in cell or cell.lower().endswith(IMAGE_ENDINGS)


def _parquet_rows(path: Path, first: int) -> Iterator[RawItem]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows_before, number = number, number + file.metadata.row_group(group).num_rows
            if number > first:
                batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group])
                rows = enumerate((row for batch in batches for row in batch.to_pylist()), start=rows_before)
                yield from (RawItem(f"row {index + 1}", row) for index, row in rows if index >= first)


def _saved_rows(path: Path, first: int) -> Iterator[RawItem]:
    """Rows of a folder that `save_to_disk` wrote, or of one of its files."""
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(path)) if path.is_dir() else Dataset.from_file(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} must be a complete saved data set: {error}; copy or save it again") from error
    tables = dataset.skip(first).with_format("arrow").iter(ROWS_AT_ONCE)  # images stay bytes
    rows = enumerate((row for table in tables for row in table.to_pylist()), start=first + 1)
    yield from (RawItem(f"row {number}", row) for number, row in rows)


class TarMember(NamedTuple):
    """A file inside a tar."""

    offset: int
    size: int
    data: bytes = b""  # where it was read already


class TarSample(NamedTuple):
    """Neighbouring members of one name."""

    name: str
    members: dict[str, TarMember]  # by their endings, in lower case


def read_tar(path: Path, first: int = 0, *, contents: bool = False) -> Iterator[TarSample]:
    """The samples of a tar from number `first` on; an ending that a sample already has begins a new one. A name ends at
    its first dot, as in WebDataset, unless all its neighbours of that name have more dots (v1.2.jpg). Without contents
    only headers are read. webdataset's own reader tells no offsets, so nothing can be skipped."""
    sample, number, is_plain = TarSample("", {}), -1, kind_of(path)[1] is None
    with _damages_of(path), _open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r:" if is_plain else "r|") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                name, ending = base_plus_ext(info.name) if info.isfile() else (None, "")
                if name is None:
                    continue
                ending = ending.lower()
                if not _continues(sample, name, ending):
                    if number >= first:
                        yield _named(sample)
                    sample, number = TarSample(name, {}), number + 1
                file = tar.extractfile(info) if contents and number >= first else None
                sample.members[ending] = TarMember(info.offset_data, info.size, file.read() if file else b"")
            # tarfile takes a file that ends in the middle of a header for a complete one
            if is_plain and path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends too early")
    if number >= first:
        yield _named(sample)


def _continues(sample: TarSample, name: str, ending: str) -> bool:
    """Whether a member belongs to the sample of the members before it."""
    if name != sample.name or ending in sample.members:
        return False
    is_simple = "." not in ending or any("." not in other for other in sample.members)
    return is_simple or next(iter(sample.members)).rpartition(".")[0] == ending.rpartition(".")[0]


def _named(sample: TarSample) -> TarSample:
    """With the dots that belong to its name."""
    rest = next(iter(sample.members)).rpartition(".")[0]
    if any("." not in ending for ending in sample.members):
        return sample
    members = {ending.removeprefix(f"{rest}."): member for ending, member in sample.members.items()}
    return TarSample(f"{sample.name}.{rest}", members)


def read_member(path: Path, member: TarMember) -> bytes:
    """The bytes of a file inside a tar that is not compressed."""
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _tar_samples(path: Path, first: int, *, contents: bool) -> Iterator[RawItem]:
    """The image of a sample, with the caption and class next to it; without a caption what its .json says."""
    for sample in read_tar(path, first, contents=contents):
        name = sample.name.encode("utf-8", "replace").decode()
        files = {ending: member.data for ending, member in sample.members.items()}
        try:
            yield RawItem(name, _tar_row(name, files) if contents else {})
        except BadRecord as error:
            yield RawItem(name, error)


def _tar_row(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    texts = {ending: _words_of(files[ending]) for ending in (*CAPTION_ENDINGS, "cls") if ending in files}
    caption = next((texts[ending] for ending in CAPTION_ENDINGS if ending in texts), None)
    row = {}
    if caption is None and "json" in files:
        row = RawItem(name, files["json"].removeprefix(codecs.BOM_UTF8)).row()
    image = next((ending for ending in files if f".{ending}" in IMAGE_ENDINGS), None)
    if image is not None:
        row["image"] = {"bytes": files[image], "path": f"{name}.{image}"}
    if caption is not None:
        row["caption"] = caption
    if "cls" in texts:
        row["class"] = texts["cls"].strip()
    if image is None and (wrong := unread_format(f".{ending}" for ending in files)):
        raise BadRecord(wrong)
    if image is None or len(row) == 1:
        raise BadRecord(
            "a sample must have an image and, next to it in the tar, a .txt, .caption, .json or .cls, got "
            f"{', '.join(files)}; add what is missing, or write the tar in the order of names: "
            "find FOLDER -type f | sort | tar -cf NEW.tar -T -"
        )
    return row


def _words_of(data: bytes) -> str:
    """A caption in a file of its own, without the line end that editors put there."""
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        start = data[error.start : error.start + 8]
        raise BadRecord(f"a caption must be text in UTF-8, got the bytes {start!r}; convert the file") from error


def holds_codes(path: Path) -> bool:
    """Whether a folder is one of codes by class."""
    return (path / "codes").is_dir() and (path / "labels").is_dir()


def _images(path: Path) -> Iterator[RawItem]:
    """Images in the order of their names, with captions from files next to them and classes from sub-folders."""
    subfolders = sorted(child.name for child in path.glob("[!.]*") if child.is_dir())
    number_of = {name: index for index, name in enumerate(subfolders)}
    files = files_below(path)
    captions = find_captions(files)
    for file in files:
        if file.suffix.lower() not in IMAGE_ENDINGS:
            continue
        inside = file.relative_to(path)
        row: dict[str, Any] = {"image": str(file.resolve())}
        if file in captions:
            try:
                row["caption"] = _words_of(captions[file].read_bytes())
            except BadRecord as error:
                yield RawItem(str(inside), error)
                continue
        if len(inside.parts) > 1:
            row["subfolder"] = number_of[inside.parts[0]]
        yield RawItem(str(inside), row)


def _codes_by_class(path: Path) -> Iterator[RawItem]:
    """Classes with the codes (S, K, N) of S views of an image, from files of one or many images."""
    for file in sorted((path / "codes").glob("[!.]*.npy")):
        labels_file = path / "labels" / file.name
        if not labels_file.is_file():
            raise ValueError(f"{file} must have a file of labels, got no {labels_file}; extract the codes again")
        codes_ESKN, labels_E = np.load(file, mmap_mode="r"), np.load(labels_file).reshape(-1)
        if codes_ESKN.ndim != 4 or len(codes_ESKN) != len(labels_E):
            raise ValueError(
                f"{file} must hold (images, views, codebooks, positions) for {len(labels_E)} labels, got "
                f"{codes_ESKN.shape}; extract the codes again"
            )
        for number, (codes_SKN, label) in enumerate(zip(codes_ESKN, labels_E, strict=True), start=1):
            yield RawItem(f"codes/{file.name}, image {number}", {"class": int(label), "codes": codes_SKN})
