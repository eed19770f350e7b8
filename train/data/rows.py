"""Files of raw samples to rows, each a mapping of column names to values, from any shard's beginning.

    .jsonl, .json            one JSON object per line, one JSON array, or one object with a list (COCO)
    .csv, .tsv               with or without a line of column names
    .parquet, .arrow         and folders that `datasets.save_to_disk` wrote
    .tar                     WebDataset: neighbouring members of one name are a sample
    a folder of images       each with a .txt of the same name, or in sub-folders by class
    a folder of codes        codes/*.npy and labels/*.npy, as LlamaGen extracts them

All but Parquet and Arrow may be compressed (.gz, .zst, .tgz). `datasets` reads what it saved; its readers of the others
cannot start at a byte offset, force one schema on mixed records, and end at an invalid line without its number. What
columns mean is in train/data/columns.py. Nothing is held in memory that grows with a file, but COCO's one object.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from webdataset.tariterators import base_plus_ext

from mllm.files import TOO_DEEP, parse_json, read_json
from tokenizer.images import IMAGE_ENDINGS
from train.data.records import BadRecord

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar")
RECORD_ENDINGS = (*KINDS, *COMPRESSIONS, ".tgz")
"""Endings of files that can be read, in lower case; a compressed file without another one has JSON lines."""
CHUNK = 1 << 20
BETWEEN_RECORDS = " \t\r\n,"
ROWS_AT_ONCE = 64
"""Rows of a table that are in memory at once."""
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
CAPTIONS = ("txt", "caption")
"""Endings of a sample's caption."""
SAVED_DATASET = "state.json"
"""A file of each folder that `datasets.save_to_disk` wrote."""


@dataclass(frozen=True, slots=True)
class Item:
    """One raw sample."""

    place: str  # where it is in the file, for people
    offset: int  # where reading can begin again: a byte of the file, or how many items come before
    value: bytes | dict[str, Any] | BadRecord  # JSON text, a row, or why there is none

    def row(self) -> dict[str, Any]:
        """The sample as a mapping."""
        match self.value:
            case dict():
                return self.value
            case BadRecord():
                raise self.value
        try:
            row = parse_json(self.value)
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
    kind, compression = kind_of(path)
    in_lines = kind in (".csv", ".tsv") or (kind == ".json" and is_document(path, path.stat().st_mtime_ns))
    return compression is None and not in_lines


def read_items(path: Path, *, offset: int = 0, number: int = 0, contents: bool = True) -> Iterator[Item]:
    """Items from one that begins at `offset` and is the file's item `number` (counted from 0).

    Args:
        contents: without, members of tars are empty, which is many times faster.

    Raises:
        ValueError: the file is damaged, or of another kind than its ending says.
    """
    if not is_seekable(path):
        items = (Item(item.place, index, item.value) for index, item in enumerate(_items(path, 0, 0, contents)))
        return islice(items, offset, None)
    return _items(path, offset, number, contents)


def _items(path: Path, offset: int, number: int, contents: bool) -> Iterator[Item]:
    if path.is_dir():
        if (path / SAVED_DATASET).is_file():
            return _saved_rows(path, offset)
        return _codes_by_class(path) if holds_codes(path) else _images(path)
    kind, compression = kind_of(path)
    if compression and kind in (".parquet", ".arrow"):
        raise ValueError(f"{path} must not be compressed once more, got {path.suffix}; decompress it")
    match kind:
        case ".parquet":
            return _parquet_rows(path, offset)
        case ".arrow":
            return _saved_rows(path, offset)
        case ".tar":
            return _tar_samples(path, offset, contents=contents)
        case ".csv" | ".tsv":
            return _table_lines(path, "," if kind == ".csv" else "\t")
        case ".json" if not compression and is_document(path, path.stat().st_mtime_ns):
            return _document_rows(path)
    return _json_records(path, offset, number)


def _open(path: Path) -> IO[bytes]:
    """The content of a file, decompressed."""
    _, compression = kind_of(path)
    if compression is None:
        return path.open("rb")
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression), CHUNK)


# JSON


def _json_records(path: Path, offset: int, number: int) -> Iterator[Item]:
    """Lines, or the elements of one array; offsets are bytes."""
    try:
        with _open(path) as stream:
            begin, head = _first_byte(path, stream)
        with _open(path) as stream:
            if kind_of(path)[1] is None:
                stream.seek(offset or begin)
            else:
                stream.read(begin)
            if head == b"[":
                yield from _array_records(path, stream, offset or begin, number)
                return
            offset = offset or begin
            for line in stream:
                yield Item(f"line {number + 1}", offset, line)
                number, offset = number + 1, offset + len(line)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} must be a complete file: {error}; download or write it again") from error


def _first_byte(path: Path, stream: IO[bytes]) -> tuple[int, bytes]:
    """Where the first line, or the first record of an array, begins, and the first byte that is no space."""
    head = stream.read(3)
    if head.startswith(UTF16):
        raise ValueError(f"{path} must be text in UTF-8, got UTF-16; convert the file")
    mark = len(codecs.BOM_UTF8) if head == codecs.BOM_UTF8 else 0
    begin, head = 0, head[mark:] or stream.read(CHUNK)
    while head and not head.strip():
        begin, head = begin + len(head), stream.read(CHUNK)
    begin += len(head) - len(head.lstrip())
    first = head.strip()[:1]
    return (mark + begin + 1 if first == b"[" else mark), first


def _array_records(path: Path, stream: IO[bytes], offset: int, number: int) -> Iterator[Item]:
    """Elements of one JSON array, parsed one by one."""
    parser, decoder = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    buffer, place, is_over = "", 0, False
    while True:
        begin = place
        while place < len(buffer) and buffer[place] in BETWEEN_RECORDS:
            place += 1
        offset += place - begin  # each character between records is one byte
        try:
            if buffer.startswith("]", place):
                return
            value, end = parser.raw_decode(buffer, place)
        except (ValueError, RecursionError) as error:
            is_deep = isinstance(error, RecursionError)
            if is_over or is_deep:
                reason = TOO_DEEP if is_deep else error
                raise ValueError(f"{path} must be a JSON array: {reason} (record {number + 1}); fix it") from error
            chunk = stream.read(CHUNK)
            is_over = not chunk
            try:
                buffer, place = buffer[place:] + decoder.decode(chunk, final=is_over), 0
            except UnicodeDecodeError as decoding:
                raise ValueError(f"{path} must be text in UTF-8, got {decoding}; convert the file") from decoding
            continue
        yield Item(f"record {number + 1}", offset, value if isinstance(value, dict) else json.dumps(value).encode())
        offset += len(buffer[place:end].encode("utf-8", "surrogatepass"))
        number, place = number + 1, end


@lru_cache(maxsize=64)
def is_document(path: Path, _changed: int) -> bool:
    """Whether a .json file is one object with lists of objects, as COCO's, rather than lines."""
    with path.open("rb") as stream:
        if _first_byte(path, stream)[1] != b"{":
            return False
        stream.seek(0)
        first, second = stream.readline().decode("utf-8-sig", "replace"), stream.readline()
        if second.strip().startswith(b"{"):
            return False
    try:
        return bool(_lists_of(parse_json(first)))
    except ValueError:
        try:
            return bool(_lists_of(parse_json(path.read_text(encoding="utf-8-sig"))))
        except ValueError:
            return False


def _lists_of(document: Any) -> dict[str, list[dict[str, Any]]]:
    """The lists of objects of a document; nothing where it is a record of its own."""
    lists = {name: value for name, value in document.items() if isinstance(value, list) and value}
    lists = {name: value for name, value in lists.items() if all(isinstance(element, dict) for element in value)}
    is_record = {"conversations", "messages", "image_info", "texts"} & document.keys()
    return {} if is_record else lists


def _document_rows(path: Path) -> Iterator[Item]:
    """COCO's annotations, each with the fields of its image; else the elements of the only list."""
    lists = _lists_of(read_json(path))
    if {"annotations", "images"} <= lists.keys():
        images = {image.get("id"): image for image in lists["images"]}
        for number, annotation in enumerate(lists["annotations"]):
            yield Item(f"annotation {number + 1}", number, {**images.get(annotation.get("image_id"), {}), **annotation})
        return
    if len(lists) != 1:
        raise ValueError(f"{path} must have one list of records, got {', '.join(lists)}; write one record per line")
    for number, row in enumerate(next(iter(lists.values()))):
        yield Item(f"record {number + 1}", number, row)


# Tables


def _table_lines(path: Path, delimiter: str) -> Iterator[Item]:
    """Lines of a table. Where the first one holds content, columns are called 0, 1, ..., or image and caption where two
    can be told apart (CC3M, CC12M). A tab-separated file has no quotes."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    with _open(path) as stream:
        _first_byte(path, stream)
    try:
        with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
            names = next(lines, [])
            if any(not name.strip() or _is_image(name) or name.count(" ") > 2 for name in names):
                lines_left: Iterator[list[str]] = chain([names], lines)
                kinds = ["image" if _is_image(name) else "caption" for name in names]
                pair = len(names) == 2 and len(set(kinds)) == 2
                names = kinds if pair else [str(index) for index in range(len(names))]
            else:
                lines_left = lines
            for number, cells in enumerate(line for line in lines_left if line):
                row: dict[str, Any] | BadRecord = dict(zip(names, cells, strict=False))
                if len(cells) != len(names):
                    row = BadRecord(f"a line must have {len(names)} columns, got {len(cells)}; quote or fix the line")
                yield Item(f"line {lines.line_num}", number, row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got {error}; convert the file") from error
    except (csv.Error, EOFError, OSError) as error:
        raise ValueError(f"{path} must be a table, got {error} near line {lines.line_num}; fix the file") from error


def _is_image(cell: str) -> bool:
    return "://" in cell or cell.lower().endswith(IMAGE_ENDINGS)


def _parquet_rows(path: Path, first: int) -> Iterator[Item]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} must be a complete Parquet file: {error}; download or write it again") from error
    with file:
        number = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if number + num_rows > first:
                batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group])
                rows = (row for batch in batches for row in batch.to_pylist())
                for index, row in enumerate(rows, start=number):
                    if index >= first:
                        yield Item(f"row {index + 1}", index, row)
            number += num_rows


def _saved_rows(path: Path, first: int) -> Iterator[Item]:
    """Rows of a folder that `save_to_disk` wrote, or of one of its files."""
    from datasets import Dataset, load_from_disk

    try:
        dataset = load_from_disk(str(path)) if path.is_dir() else Dataset.from_file(str(path))
    except (OSError, ValueError, KeyError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path} must be a complete saved data set: {error}; copy or save it again") from error
    tables = dataset.skip(first).with_format("arrow").iter(ROWS_AT_ONCE)  # images stay bytes
    for number, row in enumerate((row for table in tables for row in table.to_pylist()), start=first):
        yield Item(f"row {number + 1}", number, row)


# Tars


class TarMember(NamedTuple):
    """A file inside a tar."""

    offset: int
    size: int
    data: bytes | None = None  # where it was read already


class TarSample(NamedTuple):
    """Neighbouring members of one name."""

    offset: int
    name: str
    members: dict[str, TarMember]  # by their endings, in lower case


def read_tar(path: Path, offset: int = 0, *, contents: bool = False) -> Iterator[TarSample]:
    """The samples of a tar from one that begins at `offset`; an ending that a sample already has begins a new one.

    A name ends at its first dot, as in WebDataset, unless all its neighbours of that name have more dots (v1.2.jpg).
    Without contents only headers are read. webdataset's own reader is not used as it tells no offsets, so it cannot
    resume.
    """
    sample: TarSample | None = None
    is_plain = kind_of(path)[1] is None
    try:
        with _open(path) as stream:
            if is_plain:
                stream.seek(offset)
            with tarfile.open(fileobj=stream, mode="r:" if is_plain else "r|") as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                    name, ending = base_plus_ext(info.name) if info.isfile() else (None, None)
                    if name is None:
                        continue
                    file = tar.extractfile(info) if contents else None
                    member = TarMember(info.offset_data, info.size, file.read() if file else None)
                    ending = ending.lower()
                    if sample is None or not _continues(sample, name, ending):
                        if sample is not None:
                            yield _named(sample)
                        sample = TarSample(info.offset, name, {})
                    sample.members[ending] = member
                # tarfile takes a file that ends in the middle of a header for a complete one
                if is_plain and path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("it ends too early")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} must be a complete tar: {error}; download or write it again") from error
    if sample is not None:
        yield _named(sample)


def _continues(sample: TarSample, name: str, ending: str) -> bool:
    """Whether a member belongs to the sample of the members before it."""
    if name != sample.name or ending in sample.members:
        return False
    is_simple = "." not in ending or any("." not in other for other in sample.members)
    return is_simple or next(iter(sample.members)).rpartition(".")[0] == ending.rpartition(".")[0]


def _named(sample: TarSample) -> TarSample:
    """With the dots that belong to its name."""
    if any("." not in ending for ending in sample.members):
        return sample
    rest = next(iter(sample.members)).rpartition(".")[0]
    members = {ending.removeprefix(f"{rest}."): member for ending, member in sample.members.items()}
    return TarSample(sample.offset, f"{sample.name}.{rest}", members)


def read_member(path: Path, member: TarMember) -> bytes:
    """The bytes of a file inside a tar."""
    if member.data is not None:
        return member.data
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _tar_samples(path: Path, offset: int, *, contents: bool) -> Iterator[Item]:
    """The image of a sample, the caption and the class beside it; else what its .json says."""
    for sample in read_tar(path, offset, contents=contents):
        name = sample.name.encode("utf-8", "replace").decode()
        if not contents:
            yield Item(name, sample.offset, {})
            continue
        files = {ending: member.data or b"" for ending, member in sample.members.items()}
        caption = next((files[ending].decode("utf-8-sig", "replace") for ending in CAPTIONS if ending in files), None)
        row: dict[str, Any] | BadRecord = {}
        if caption is None and "json" in files:
            row = _json_member(files["json"])
        if isinstance(row, dict):
            image = next((ending for ending in files if f".{ending}" in IMAGE_ENDINGS), None)
            if image is not None:
                row["image"] = {"bytes": files[image], "path": f"{name}.{image}"}
            if caption is not None:
                row["caption"] = caption
            if "cls" in files:
                row["class"] = files["cls"].decode("utf-8", "replace").strip()
            if image is None or len(row) == 1:
                row = BadRecord(
                    f"a sample must have an image and a .txt, .caption, .json or .cls, got {', '.join(files)}; add "
                    "what is missing"
                )
        yield Item(name, sample.offset, row)


def _json_member(content: bytes) -> dict[str, Any] | BadRecord:
    try:
        return Item("", 0, content.removeprefix(codecs.BOM_UTF8)).row()
    except BadRecord as error:
        return error


# Folders


def holds_codes(path: Path) -> bool:
    """Whether a folder is one of codes by class."""
    return (path / "codes").is_dir() and (path / "labels").is_dir()


def _images(path: Path) -> Iterator[Item]:
    """Images in the order of their names, with captions from files beside them and classes from sub-folders."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    subfolders = sorted(child.name for child in path.iterdir() if child.is_dir())
    number_of = {name: index for index, name in enumerate(subfolders)}
    for number, file in enumerate(files):
        inside = file.relative_to(path)
        row: dict[str, Any] = {"image": str(file.resolve())}
        for ending in CAPTIONS:
            if (caption := file.with_suffix(f".{ending}")).is_file():
                row["caption"] = caption.read_text(encoding="utf-8-sig", errors="replace")
                break
        if inside.parts[0] in number_of:
            row["subfolder"] = number_of[inside.parts[0]]
        yield Item(str(inside), number, row)


def _codes_by_class(path: Path) -> Iterator[Item]:
    """Classes with the codes (S, K, N) of S views of an image, from files of one or many images."""
    number = 0
    for file in sorted((path / "codes").glob("[!.]*.npy")):
        labels_file = path / "labels" / file.name
        if not labels_file.is_file():
            raise FileNotFoundError(f"{file} must have a file of labels, got no {labels_file}; extract the codes again")
        codes_ESKN, labels_E = np.load(file, mmap_mode="r"), np.load(labels_file).reshape(-1)
        if codes_ESKN.ndim != 4 or len(codes_ESKN) != len(labels_E):
            raise ValueError(
                f"{file} must hold (images, views, codebooks, positions) for {len(labels_E)} labels, got "
                f"{codes_ESKN.shape}; extract the codes again"
            )
        for index, (codes_SKN, label) in enumerate(zip(codes_ESKN, labels_E, strict=True)):
            yield Item(f"codes/{file.name}, image {index + 1}", number, {"class": int(label), "codes": codes_SKN})
            number += 1
