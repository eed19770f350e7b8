"""Raw samples: the files that hold them, read item by item from any shard's beginning, and the records made of them.

    .jsonl, .json            one JSON object per line, or one JSON array; .jsonl.gz and .jsonl.zst (also .gz, .zst) too
    .parquet                 rows as dicts
    .tar                     WebDataset: neighbouring members of one name are a sample
    a folder of images       each with a .txt of the same name, or in sub-folders by class
    a folder of codes        codes/*.npy and labels/*.npy, as LlamaGen extracts them

A record is a short dialogue whose images are files, bytes or codes. The kinds are learned differently:

    chat      the assistant's messages are learned
    document  one message of the assistant: everything is learned
    pair      the user's message holds one or two captions (short, long), the assistant's the image; either is learned
    draw      as a pair, but only the image is learned
    class     the user's message is the number of a class, the assistant's an image of it, or several views

`datasets` does not read these files: its streaming readers cannot start at a byte offset, force one schema on mixed
JSON records, and end at an invalid line without its number. Layouts of records are in train/data/importers.py. Nothing
is held in memory that grows with a file.
"""

from __future__ import annotations

import codecs
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from webdataset.tariterators import base_plus_ext

from mllm.conversation import CodesPart, Role, TextPart
from tokenizer.images import IMAGE_ENDINGS, read_image

Kind = Literal["chat", "document", "pair", "draw", "class"]
MAX_PATH = 240
"""Characters of a path that are shown; an image's bytes may be in its place."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
RECORD_ENDINGS = (".jsonl", ".json", *COMPRESSIONS, ".parquet", ".tar")
"""Endings of files that can be read."""
CHUNK = 1 << 20
BETWEEN_RECORDS = " \t\r\n,"
PARQUET_ROWS = 64
"""Rows that are in memory at once."""
ENLARGEMENT = 1.1  # LlamaGen's extraction: crops of the size out of a square 1.1 times as large


class BadRecord(ValueError):
    """One sample is invalid; the others are not. The reader adds its file and place."""


# Records


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that is not read yet."""

    path: Path

    def open(self) -> Image.Image:
        try:
            path = str(self.path)
            return read_image(self.path, name=path if len(path) <= MAX_PATH else path[:MAX_PATH] + "...")
        except (ValueError, FileNotFoundError) as error:
            raise BadRecord(str(error)) from error


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image file in memory."""

    data: bytes
    name: str

    def open(self) -> Image.Image:
        try:
            return read_image(self.data, name=f"image {self.name}")
        except ValueError as error:
            raise BadRecord(str(error)) from error


@dataclass(frozen=True, slots=True)
class TenViews:
    """Ten crops of one image; each becomes a part of its own."""

    image: ImageFile | ImageBytes


RawImage = ImageFile | ImageBytes | TenViews
RecordPart = TextPart | CodesPart | RawImage


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[RecordPart, ...]


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    turns: tuple[Turn, ...]

    @property
    def parts(self) -> list[RecordPart]:
        """All parts, in order."""
        return [part for turn in self.turns for part in turn.parts]

    @property
    def images(self) -> list[RawImage]:
        """Images that are not codes yet, in order."""
        return [part for part in self.parts if isinstance(part, RawImage)]


def chat_record(turns: Sequence[Turn]) -> Record:
    """A dialogue that something can be learned from."""
    roles = [turn.role for turn in turns]
    alternating = [("user", "assistant")[index % 2] for index in range(len(roles))]
    if not roles or roles != alternating or roles[-1] != "assistant":
        raise BadRecord(
            f"roles must alternate, starting with user and ending with assistant, got {roles}; merge or drop messages"
        )
    for turn in turns:
        if not any(not isinstance(part, TextPart) or part.text.strip() for part in turn.parts):
            raise BadRecord(f"a message must hold text or an image, got an empty one of {turn.role!r}; fill it")
    return Record("chat", tuple(turns))


def document_record(parts: Sequence[RecordPart]) -> Record:
    """Text and images that follow each other, without a question."""
    kept = tuple(part for part in parts if not (isinstance(part, TextPart) and not part.text.strip()))
    if not kept:
        raise BadRecord("a document must hold text or images, got none; leave it out")
    return Record("document", (Turn("assistant", kept),))


def pair_record(captions: Sequence[str], image: RecordPart, *, kind: Kind = "pair") -> Record:
    """An image and its captions, the short one first."""
    texts = tuple(TextPart(caption) for caption in captions if caption.strip())
    if not texts:
        raise BadRecord(f"an image must have a caption, got {list(captions)}; write one or leave the image out")
    return Record(kind, (Turn("user", texts), Turn("assistant", (image,))))


def ten_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Four corners and the middle of the enlarged middle square, then their mirror images."""
    image, large = read_image(image), int(size * ENLARGEMENT)
    scale = large / min(image.size)
    resized = image.resize(
        (max(large, round(image.width * scale)), max(large, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - large) // 2, (resized.height - large) // 2
    free = large - size
    corners = [(0, 0), (free, 0), (0, free), (free, free), (free // 2, free // 2)]
    views = [resized.crop((left + x, top + y, left + x + size, top + y + size)) for x, y in corners]
    return views + [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]


# Files


@dataclass(frozen=True, slots=True)
class Item:
    """One raw sample."""

    place: str  # where it is in the file, for people
    offset: int  # where reading can begin again: a byte of the file, or how many items come before
    value: bytes | dict[str, Any]  # JSON text, or fields

    def fields(self) -> dict[str, Any]:
        """The sample as a mapping."""
        if isinstance(self.value, dict):
            return self.value
        try:
            fields = json.loads(self.value)
        except ValueError as error:
            raise BadRecord(f"a record must be valid JSON: {error}; fix the line") from error
        if not isinstance(fields, dict):
            raise BadRecord(f"a record must be a JSON object, got {type(fields).__name__}; fix the line")
        return fields


def read_items(path: Path, *, offset: int = 0, number: int = 0, contents: bool = True) -> Iterator[Item]:
    """Items from one that begins at `offset` and is the file's item `number` (counted from 0).

    Args:
        contents: without, members of tars are empty, which is many times faster.
    """
    if path.is_dir():
        return islice(_code_items(path) if holds_codes(path) else _image_items(path), offset, None)
    match path.suffix.lower():
        case ".parquet":
            return _parquet_items(path, offset)
        case ".tar":
            return _tar_items(path, offset, contents=contents)
        case ".gz" | ".zst" as ending:
            return islice(_compressed_lines(path, COMPRESSIONS[ending]), offset, None)
        case ".jsonl" | ".json":
            begin = _array_begin(path)
            return _plain_lines(path, offset, number) if begin is None else _array_items(path, offset or begin, number)
        case ending:
            raise ValueError(f"the ending of {path} must be one of {', '.join(RECORD_ENDINGS)}, got {ending!r}")


def is_seekable(path: Path) -> bool:
    """Whether reading can begin at an item without reading those before it."""
    return not path.is_dir() and path.suffix.lower() not in COMPRESSIONS


def holds_codes(path: Path) -> bool:
    """Whether a folder is one of codes by class."""
    return (path / "codes").is_dir() and (path / "labels").is_dir()


def _plain_lines(path: Path, offset: int, number: int) -> Iterator[Item]:
    with path.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            yield Item(f"line {number + 1}", offset, line)
            number, offset = number + 1, offset + len(line)


def _compressed_lines(path: Path, compression: str) -> Iterator[Item]:
    try:
        with io.BufferedReader(pyarrow.input_stream(str(path), compression=compression), CHUNK) as stream:
            for number, line in enumerate(stream):
                yield Item(f"line {number + 1}", number, line)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} must be a complete compressed file: {error}; download or write it again") from error


def _array_begin(path: Path) -> int | None:
    """Where the first record of a JSON array is; None in a file of lines."""
    begin = 0
    with path.open("rb") as stream:
        while head := stream.read(CHUNK):
            if head.strip():
                spaces = len(head) - len(head.lstrip())
                return begin + spaces + 1 if head[spaces : spaces + 1] == b"[" else None
            begin += len(head)
    return None


def _array_items(path: Path, offset: int, number: int) -> Iterator[Item]:
    """Objects of one JSON array, parsed one by one; offsets are bytes."""
    parser, decoder = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    buffer, place, is_over = "", 0, False
    with path.open("rb") as stream:
        stream.seek(offset)
        while True:
            begin = place
            while place < len(buffer) and buffer[place] in BETWEEN_RECORDS:
                place += 1
            offset += place - begin  # each character between records is one byte
            try:
                if buffer.startswith("]", place):
                    return
                value, end = parser.raw_decode(buffer, place)
            except ValueError as error:
                if is_over:
                    raise ValueError(f"{path} must be a JSON array: {error} (record {number + 1}); fix it") from error
                chunk = stream.read(CHUNK)
                is_over = not chunk
                buffer, place = buffer[place:] + decoder.decode(chunk, final=is_over), 0
                continue
            yield Item(f"record {number + 1}", offset, value if isinstance(value, dict) else json.dumps(value).encode())
            offset += len(buffer[place:end].encode())
            number, place = number + 1, end


def _parquet_items(path: Path, first: int) -> Iterator[Item]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} must be a complete Parquet file: {error}; download or write it again") from error
    with file:
        number = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if number + num_rows > first:
                batches = file.iter_batches(PARQUET_ROWS, row_groups=[group])
                rows = (row for batch in batches for row in batch.to_pylist())
                for index, row in enumerate(rows, start=number):
                    if index >= first:
                        yield Item(f"row {index + 1}", index, row)
            number += num_rows


class TarMember(NamedTuple):
    """A file inside a tar."""

    offset: int
    size: int


class TarSample(NamedTuple):
    """Neighbouring members of one name."""

    offset: int
    name: str
    members: dict[str, TarMember]  # by their endings, in lower case


def read_tar(path: Path, offset: int = 0) -> Iterator[TarSample]:
    """The samples of a tar from one that begins at `offset`; an ending that a sample already has begins a new one.

    Only headers are read. webdataset's own reader is not used as it tells no offsets, so it cannot resume.
    """
    sample = None
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                    name, ending = base_plus_ext(info.name) if info.isfile() else (None, None)
                    if name is None:
                        continue
                    ending = ending.lower()
                    if sample is None or name != sample.name or ending in sample.members:
                        if sample is not None:
                            yield sample
                        sample = TarSample(info.offset, name, {})
                    sample.members[ending] = TarMember(info.offset_data, info.size)
                # tarfile takes a file that ends in the middle of a header for a complete one
                if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("it ends too early")
    except tarfile.TarError as error:
        raise ValueError(f"{path} must be a complete, uncompressed tar: {error}; download or write it again") from error
    if sample is not None:
        yield sample


def read_member(path: Path, member: TarMember) -> bytes:
    """The bytes of a file inside a tar."""
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _tar_items(path: Path, offset: int, *, contents: bool) -> Iterator[Item]:
    for sample in read_tar(path, offset):
        files = {ending: read_member(path, member) if contents else b"" for ending, member in sample.members.items()}
        yield Item(sample.name, sample.offset, {"__key__": sample.name, **files})


def _image_items(path: Path) -> Iterator[Item]:
    """Images in the order of their names, with captions from files beside them and classes from sub-folders."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    subfolders = sorted(child.name for child in path.iterdir() if child.is_dir())
    number_of = {name: index for index, name in enumerate(subfolders)}
    for number, file in enumerate(files):
        caption, inside = file.with_suffix(".txt"), file.relative_to(path)
        fields: dict[str, Any] = {"image": str(file.resolve())}
        if caption.is_file():
            fields["caption"] = caption.read_text(encoding="utf-8", errors="replace")
        if inside.parts[0] in number_of:
            fields["subfolder"] = number_of[inside.parts[0]]
        yield Item(str(inside), number, fields)


def _code_items(path: Path) -> Iterator[Item]:
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
