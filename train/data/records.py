"""What an importer makes of one raw sample, before its pictures are codes.

A record is a short dialogue whose pictures are files, bytes or codes. Four kinds of records are told apart, because
they are learned differently:

    chat      the assistant's messages are learned
    document  one message of the assistant: everything is learned
    pair      the user's message holds one or two captions (short, long), the assistant's the picture; either is learned
    draw      as a pair, but only the picture is learned

Knows no file formats, no tokenizer and no shards.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow
import pyarrow.parquet
from PIL import Image

from mllm.conversation import CodesPart, Role, TextPart
from tokenizer.images import open_image

Kind = Literal["chat", "document", "pair", "draw"]
KINDS: tuple[str, ...] = get_args(Kind)
LONGEST_PATH = 240
"""Letters of a path that are shown; a picture's bytes may stand in its place."""


class BadRecord(ValueError):
    """One sample is broken; the others are not. The reader adds where it stands."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that is not read yet."""

    path: Path

    def open(self) -> Image.Image:
        try:
            return open_image(self.path)
        except (ValueError, OSError) as error:
            path, reason = str(self.path), getattr(error, "strerror", None)  # such as: name too long, not allowed
            sentence = f"cannot open picture {path}; {reason}; give the path of a file" if reason else str(error)
            raise BadRecord(sentence.replace(path, shortened(path))) from error


@dataclass(frozen=True, slots=True)
class PictureBytes:
    """A picture file in memory."""

    data: bytes
    name: str

    def open(self) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(self.data))
            image.load()
            return image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadRecord(f"cannot read picture {self.name}: {error}; save it anew or leave it out") from error


Picture = PictureFile | PictureBytes
RecordPart = TextPart | CodesPart | PictureFile | PictureBytes


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[RecordPart, ...]


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Pictures that are not codes yet, in order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, PictureFile | PictureBytes)]


def chat_record(turns: Sequence[Turn]) -> Record:
    """A dialogue that something can be learned from."""
    roles = [turn.role for turn in turns]
    alternating = [("user", "assistant")[index % 2] for index in range(len(roles))]
    if not roles or roles != alternating or roles[-1] != "assistant":
        raise BadRecord(
            f"roles must alternate from 'user' on and end with 'assistant': found {roles}; merge or drop messages"
        )
    for turn in turns:
        if not has_content(turn.parts):
            raise BadRecord(f"a message is empty: found nothing in one of {turn.role!r}; give text or a picture")
    return Record("chat", tuple(turns))


def document_record(parts: Sequence[RecordPart]) -> Record:
    """Text and pictures that follow each other, without a question."""
    kept = tuple(part for part in parts if not (isinstance(part, TextPart) and not part.text.strip()))
    if not kept:
        raise BadRecord("a document is empty: found neither text nor pictures; leave it out")
    return Record("document", (Turn("assistant", kept),))


def pair_record(captions: Sequence[str], picture: RecordPart, *, kind: Kind = "pair") -> Record:
    """A picture and what is said of it, the short caption first."""
    texts = tuple(TextPart(caption) for caption in captions if caption.strip())
    if not texts:
        raise BadRecord(f"a picture has no caption: found {list(captions)}; write one or leave the picture out")
    return Record(kind, (Turn("user", texts), Turn("assistant", (picture,))))


def shortened(path: str) -> str:
    return path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH] + "..."


def has_content(parts: Sequence[RecordPart]) -> bool:
    return any(not isinstance(part, TextPart) or part.text.strip() for part in parts)


# Files that hold many samples: raw items in order, each with its place, from any unit's beginning.
#
#     .jsonl, .json            one JSON object a line, or one JSON array; .jsonl.gz, .jsonl.zst (also .zst) alike
#     .parquet                 rows as dicts
#     .tar                     WebDataset: members of one name are a sample
#     a folder                 pictures, each with a .txt of the same name
#
# In: a path and where to start. Out: `Item`s. Nothing is held that grows with the file. Knows no record layouts.


PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LINE_ENDINGS = (".jsonl", ".json", ".gz", ".zst")
CHUNK = 1 << 20
BETWEEN_RECORDS = " \t\r\n,"
PARQUET_ROWS = 64
"""Rows that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Item:
    """One raw sample."""

    place: str  # where it stands in the file, for people
    offset: int  # where reading can begin again: a byte of the file, or how many items come before
    value: bytes | dict[str, Any]  # JSON text, or fields

    def fields(self) -> dict[str, Any]:
        """The sample as a mapping."""
        if isinstance(self.value, dict):
            return self.value
        try:
            fields = json.loads(self.value)
        except ValueError as error:
            raise BadRecord(f"this is no JSON: {error}; mend the line") from error
        if not isinstance(fields, dict):
            raise BadRecord(f"a record must be a JSON object: found {type(fields).__name__}; mend the line")
        return fields


def read_items(path: Path, *, offset: int = 0, number: int = 0, contents: bool = True) -> Iterator[Item]:
    """Items from one that begins at `offset` and is the file's item `number` (counted from 0).

    Args:
        contents: without, members of tars are empty, which is many times faster.
    """
    if path.is_dir():
        return islice(_folder_items(path), offset, None)
    match path.suffix.lower():
        case ".parquet":
            return _parquet_items(path, offset)
        case ".tar":
            return _tar_items(path, offset, contents=contents)
        case ".gz" | ".zst":
            return islice(_compressed_lines(path), offset, None)
        case ".jsonl" | ".json":
            if _is_array(path):
                return _array_items(path, offset or _array_begin(path), number)
            return _plain_lines(path, offset, number)
        case ending:
            raise ValueError(f"no importer reads {path}: found the ending {ending!r}; give {', '.join(known())} files")


def is_entered_anywhere(path: Path) -> bool:
    """Whether reading can begin at an item without reading those before it."""
    return not path.is_dir() and path.suffix.lower() not in (".gz", ".zst")


def known() -> tuple[str, ...]:
    """Endings of files that can be read."""
    return (*LINE_ENDINGS, ".parquet", ".tar")


def _plain_lines(path: Path, offset: int, number: int) -> Iterator[Item]:
    stream = path.open("rb")
    stream.seek(offset)
    return _lines(stream, number=number, offset=offset, counts_bytes=True)


def _lines(stream: Any, *, number: int, offset: int, counts_bytes: bool) -> Iterator[Item]:
    with stream:
        for line in stream:
            yield Item(f"line {number + 1}", offset, line)
            number += 1
            offset += len(line) if counts_bytes else 1


def _compressed_lines(path: Path) -> Iterator[Item]:
    try:
        yield from _lines(_open_compressed(path), number=0, offset=0, counts_bytes=False)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is no whole compressed file: {error}; fetch or write it anew") from error


def _open_compressed(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), CHUNK)


def _array_begin(path: Path) -> int:
    with path.open("rb") as stream:
        begin = 0
        while (head := stream.read(CHUNK)) and b"[" not in head:
            begin += len(head)
        return begin + head.index(b"[") + 1


def _is_array(path: Path) -> bool:
    with path.open("rb") as stream:
        while head := stream.read(CHUNK):
            if head.strip():
                return head.lstrip()[:1] == b"["
    return False


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
            offset += place - begin  # what lies between records is one byte a character
            try:
                if buffer.startswith("]", place):
                    return
                value, end = parser.raw_decode(buffer, place)
            except ValueError as error:
                if is_over:
                    raise ValueError(f"{path} is no JSON array: {error} (record {number + 1}); mend it") from error
                chunk = stream.read(CHUNK)
                is_over = not chunk
                buffer, place = buffer[place:] + decoder.decode(chunk, final=is_over), 0
                continue
            yield Item(f"record {number + 1}", offset, value if isinstance(value, dict) else json.dumps(value).encode())
            offset += len(buffer[place:end].encode())
            number, place = number + 1, end


def _parquet_items(path: Path, first: int) -> Iterator[Item]:
    with open_parquet(path) as file:
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


def open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}; fetch or write it anew") from error


def _tar_items(path: Path, offset: int, *, contents: bool) -> Iterator[Item]:
    """Samples of a tar: neighbouring members of one name; `__key__` is the name, other keys are the endings."""
    sample: dict[str, Any] = {}
    begin = offset
    for member_begin, key, ending, content in _tar_members(path, offset, contents=contents):
        if sample and (key != sample["__key__"] or ending in sample):
            yield Item(sample["__key__"], begin, sample)
            sample = {}
        if not sample:
            sample, begin = {"__key__": key}, member_begin
        sample[ending] = content
    if sample:
        yield Item(sample["__key__"], begin, sample)


def _tar_members(path: Path, offset: int, *, contents: bool) -> Iterator[tuple[int, str, str, bytes]]:
    """Offset, sample name, ending and content of each file in a tar."""
    from webdataset.tariterators import base_plus_ext

    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
                    key, ending = base_plus_ext(member.name) if member.isfile() else (None, None)
                    if key is not None:
                        file = tar.extractfile(member) if contents else None
                        yield member.offset, key, ending.lower(), file.read() if file else b""
                # tarfile takes a file that ends in the middle of a header for a whole one
                if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("it ends too early")
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is no whole tar file: {error}; fetch or write it anew") from error


def _folder_items(path: Path) -> Iterator[Item]:
    """Pictures with captions beside them, in the order of their names."""
    names = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS)
    for number, picture in enumerate(names):
        caption = picture.with_suffix(".txt")
        fields = {"image": str(picture.resolve())}
        if caption.is_file():
            fields["caption"] = caption.read_text(encoding="utf-8", errors="replace")
        yield Item(str(picture.relative_to(path)), number, fields)
