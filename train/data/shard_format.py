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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mllm.conversation import CodesPart, Message, TextPart
from mllm.whole_file import whole_file
from tokenizer.model import UniTok
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
