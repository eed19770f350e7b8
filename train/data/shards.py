"""One shard: a Parquet file of records whose pictures are codes.

    kind      chat, document, pair or draw (train/data/records.py)
    messages  role and parts; a part is a text, or the number of an image of this row
    images    rows, columns and codes (uint16, the K x N table row by row) of each image
    source    the file that the record came from
    place     where in that file

The file's metadata carries what the codes are (`CodesOf`), the version of this schema and the records that were left
out. Files are written whole or not at all. Knows no folders of shards, no importers and no training.

Letters: K codebooks, N positions of an image.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mllm.conversation import CodesPart, Message, TextPart
from mllm.files import whole_file
from tokenizer.unitok import UniTok
from train.data.records import Kind

VERSION = 1
"""Of the schema; goes up when a reader of the old one would misread the new one."""
METADATA = b"mllm_shard"
"""Key of a shard's facts in the metadata of its schema."""
ROWS_PER_GROUP = 32
"""Small, because rows are read one at a time and in any order."""

_PART = pa.struct([("text", pa.string()), ("image", pa.int32())])
_MESSAGE = pa.struct([("role", pa.string()), ("parts", pa.list_(_PART))])
_IMAGE = pa.struct([("rows", pa.uint16()), ("columns", pa.uint16()), ("codes", pa.list_(pa.uint16()))])
SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("images", pa.list_(_IMAGE)),
        ("source", pa.string()),
        ("place", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class CodesOf:
    """Which image tokenizer made the codes."""

    fingerprint: str
    num_codebooks: int
    codebook_size: int


def codes_made_by(tokenizer: UniTok) -> CodesOf:
    """What the codes of this tokenizer are."""
    return CodesOf(tokenizer.fingerprint(), tokenizer.config.num_codebooks, tokenizer.config.codebook_size)


@dataclass(frozen=True, slots=True)
class Row:
    """One prepared record."""

    kind: Kind
    messages: tuple[Message, ...]  # parts are texts and codes
    source: str
    place: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A broken record that was left out because that was allowed."""

    source: str
    place: str
    reason: str


def write_shard(path: Path, rows: Sequence[Row], *, codes_of: CodesOf, left_out: Sequence[LeftOut] = ()) -> None:
    """Write a shard, whole or not at all."""
    facts = {"version": VERSION, **asdict(codes_of), "left_out": [asdict(record) for record in left_out]}
    schema = SCHEMA.with_metadata({METADATA: json.dumps(facts).encode()})
    table = pa.Table.from_pylist([_to_columns(row) for row in rows], schema=schema)
    with whole_file(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _to_columns(row: Row) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    messages = []
    for message in row.messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            match part:
                case TextPart(text):
                    parts.append({"text": text})
                case CodesPart():
                    parts.append({"image": len(images)})
                    rows, columns = part.grid
                    images.append({"rows": rows, "columns": columns, "codes": part.codes_KN.reshape(-1)})
                case _:
                    raise TypeError(f"a prepared record holds texts and codes, got {type(part).__name__}")
        messages.append({"role": message.role, "parts": parts})
    return {"kind": row.kind, "messages": messages, "images": images, "source": row.source, "place": row.place}


def read_facts(metadata: dict[bytes, bytes] | None, name: str) -> dict[str, Any]:
    """What a shard's metadata says of it."""
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise ValueError(f"{name} is no shard: found no metadata of `mllm prepare` in it; prepare the data anew")
    return json.loads(text)


def row_of(table: pa.Table, index: int, *, num_codebooks: int) -> Row:
    """One row of a table of a shard."""
    fields = {name: table.column(name)[index] for name in table.column_names}
    images = [_codes_part(image, num_codebooks) for image in fields["images"]]
    messages = tuple(
        Message(
            message["role"],
            tuple(
                TextPart(part["text"]) if part["image"] is None else images[part["image"]] for part in message["parts"]
            ),
        )
        for message in fields["messages"].as_py()
    )
    return Row(fields["kind"].as_py(), messages, fields["source"].as_py(), fields["place"].as_py())


def _codes_part(image: pa.StructScalar, num_codebooks: int) -> CodesPart:
    codes: np.ndarray = image["codes"].values.to_numpy()
    return CodesPart(codes.reshape(num_codebooks, -1), (image["rows"].as_py(), image["columns"].as_py()))


# A prepared folder as training reads it: any row of any shard, after refusing what would train wrongly.
#
#     DIR/manifest.json            version, tokenizer, totals, and name, rows and bytes of each shard; written last
#     DIR/shards/*.parquet         see train/data/shards.py
#
# In: a folder, or the URL of one (`hf://datasets/NAME/PROJECT/FOLDER`, or what else fsspec opens). Out: rows. Open
# files
# and the row groups read last are kept, a fixed number of each; the list of shards is all that grows with the data.


MANIFEST = "manifest.json"
SHARDS = "shards"
OPEN_FILES = 24
"""More than the shards that rows are drawn from at a time (train/data/packing.py)."""
ROW_GROUPS = 256
"""About 130 KB each with the released tokenizer's codes."""

T = TypeVar("T")


class ShardFolder:
    """Rows by shard and index."""

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self.files, self.root = fsspec.core.url_to_fs(self.path)
        manifest = self._read_manifest()
        self.codes_of = CodesOf(**manifest["tokenizer"])
        self.names = [shard["name"] for shard in manifest["shards"]]
        self.num_rows = np.array([shard["rows"] for shard in manifest["shards"]], dtype=np.int64)
        self._check_sizes({shard["name"]: shard["bytes"] for shard in manifest["shards"]})
        if not self.num_rows.sum():
            raise ValueError(f"{self.path} holds no record: found {len(self.names)} empty shards; prepare some data")
        self._forget_open_files()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("open_files", "row_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_open_files()

    def _forget_open_files(self) -> None:
        self.process = os.getpid()
        self.open_files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self.row_groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self.num_rows.sum())

    def require_tokenizer(self, codes_of: CodesOf) -> None:
        """Refuse codes that this image tokenizer did not make.

        Raises:
            ValueError: another fingerprint, or another number or size of codebooks.
        """
        if self.codes_of != codes_of:
            raise ValueError(
                f"{self.path} was prepared with another image tokenizer: found {describe(self.codes_of)}, "
                f"the recipe's is {describe(codes_of)}; prepare the data again with the recipe's"
            )

    def row(self, shard: int, index: int) -> Row:
        """One row."""
        if self.process != os.getpid():  # a forked worker shares the place in an open file with its parent
            self._forget_open_files()
        file = _cached(self.open_files, shard, OPEN_FILES, self._open)
        group, inside = divmod(index, file.metadata.row_group(0).num_rows)  # all but the last are of one size
        table = _cached(self.row_groups, (shard, group), ROW_GROUPS, lambda key: file.read_row_group(key[1]))
        return row_of(table, inside, num_codebooks=self.codes_of.num_codebooks)

    def _open(self, shard: int) -> pq.ParquetFile:
        name = self.names[shard]
        try:
            file = pq.ParquetFile(self.files.open(self._place(SHARDS, name)))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"shard {name} of {self.path} is damaged: {error}; remove it and prepare again") from error
        facts = read_facts(file.metadata.metadata, name)
        made_by = CodesOf(*(facts[field] for field in CodesOf.__slots__))
        if (facts["version"], made_by, file.metadata.num_rows) != (VERSION, self.codes_of, self.num_rows[shard]):
            raise ValueError(
                f"shard {name} of {self.path} is not the one of the manifest: found {file.metadata.num_rows} rows of "
                f"{describe(made_by)}; remove it and prepare again"
            )
        return file

    def _read_manifest(self) -> dict[str, Any]:
        try:
            with self.files.open(self._place(MANIFEST), "rb") as file:
                manifest = json.loads(file.read())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.path} is no finished folder of shards: found no {MANIFEST}; run `mllm prepare` to its end"
            ) from None
        if manifest.get("version") != VERSION:
            raise ValueError(
                f"{self.path} was prepared by another version: found {manifest.get('version')}, this toolkit reads "
                f"{VERSION}; prepare the data again"
            )
        return manifest

    def _check_sizes(self, expected: dict[str, int]) -> None:
        """Shards that are missing or were cut short, found before training rather than in the middle of it."""
        listed = self.files.ls(self._place(SHARDS), detail=True) if expected else []
        found = {PurePosixPath(entry["name"]).name: entry["size"] for entry in listed}
        for name, size in expected.items():
            if found.get(name) != size:
                state = f"{found[name]} bytes" if name in found else "no such file"
                raise ValueError(
                    f"shard {name} of {self.path} is not whole: found {state}, the manifest says {size} bytes; "
                    "copy it again, or remove it and prepare again"
                )

    def _place(self, *names: str) -> str:
        return "/".join([self.root.rstrip("/"), *names])


def _cached(cache: OrderedDict[Any, T], key: Any, size: int, make: Callable[[Any], T]) -> T:
    """The value of a key, made if it is not there; the one used longest ago makes room."""
    if key not in cache:
        cache[key] = make(key)
        if len(cache) > size:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def describe(codes_of: CodesOf) -> str:
    """A tokenizer in words."""
    return f"{codes_of.fingerprint} ({codes_of.num_codebooks} codebooks of {codes_of.codebook_size})"
