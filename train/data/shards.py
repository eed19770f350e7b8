"""A prepared folder: Parquet shards of records whose images are codes, written task by task and read row by row.

    DIR/manifest.json      version, tokenizer, totals, and name, rows and bytes of each shard; written last
    DIR/prepare.json       settings that the folder was started with; others are refused
    DIR/left_out.jsonl     invalid records that were left out, with file, place and reason
    DIR/shards/*.parquet   one row per record:
        kind      chat, document, pair, draw or class (train/data/records.py), or episode (train/data/world.py)
        messages  role and parts; a part is a text, or the index of an image of this row
        images    rows, columns and codes (uint16, the K x N table row by row) of each image
        source    the file that the record came from
        place     where in that file

The metadata of a shard says which image tokenizer made its codes, the version of this schema, and what was left out.
Shards appear under their names only when they are complete, so writing can be interrupted at any moment and run again.
This is the only store of codes: prepared data, the synthetic world and images by class are all read from such folders.

Letters: K codebooks, N positions of an image.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from fsspec.implementations.dirfs import DirFileSystem
from tqdm import tqdm

from mllm.conversation import CodesPart, Message, TextPart
from mllm.files import UNFINISHED, read_json, whole_file, write_json, write_lines
from tokenizer.unitok import UniTok
from train.data.records import Record

VERSION = 1  # of the schema; goes up when a reader of the old one would misread the new one
METADATA = b"mllm_shard"  # key of a shard's facts in the metadata of its schema
ROWS_PER_GROUP = 32  # small, because rows are read one at a time and in any order
OPEN_FILES = 24  # more than the shards that rows are drawn from at a time (train/data/mixture.py)
ROW_GROUPS = 256  # row groups in memory, of about 130 KB each with the released tokenizer's codes
MANIFEST, SETTINGS, LEFT_OUT, SHARDS, TASKS = "manifest.json", "prepare.json", "left_out.jsonl", "shards", "tasks"

TEXT = pa.string()
_PART = pa.struct({"text": TEXT, "image": pa.int32()})
_MESSAGE = pa.struct({"role": TEXT, "parts": pa.list_(_PART)})
_IMAGE = pa.struct({"rows": pa.uint16(), "columns": pa.uint16(), "codes": pa.list_(pa.uint16())})
_ROW = {"kind": TEXT, "messages": pa.list_(_MESSAGE), "images": pa.list_(_IMAGE), "source": TEXT, "place": TEXT}


@dataclass(frozen=True, slots=True)
class CodeSource:
    """Which image tokenizer made the codes."""

    fingerprint: str
    num_codebooks: int
    codebook_size: int

    @classmethod
    def of(cls, tokenizer: UniTok) -> CodeSource:
        return cls(tokenizer.fingerprint(), tokenizer.config.num_codebooks, tokenizer.config.codebook_size)

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.num_codebooks} codebooks of {self.codebook_size})"


class LeftOut(NamedTuple):
    """An invalid record that was left out because that was allowed."""

    source: str
    place: str
    reason: str


class ShardTask(NamedTuple):
    shard: str  # name of its file
    path: str  # where the records come from
    format: str
    number: int  # records of that source that come before
    count: int  # type: ignore[assignment]  # hides that of tuples


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Record what a folder is made with, or refuse to continue one whose shards were made with something else."""
    path = folder / SETTINGS
    before = read_json(path) if path.is_file() else settings
    for name in settings | before:
        if before.get(name) != settings.get(name):
            if any((folder / SHARDS).glob("*.parquet")):
                raise ValueError(
                    f"{name.replace('_', ' ')} of {folder} must stay {before.get(name)}, as it was started with, got "
                    f"{settings.get(name)}; choose another output folder or remove this one"
                )
            shutil.rmtree(folder / TASKS, ignore_errors=True)  # nothing was made yet: it begins again
    write_json(path, settings)


def make_shards(
    folder: Path,
    tasks: Sequence[ShardTask],
    make: Callable[[ShardTask, Callable[[int], object]], tuple[list[Record], list[LeftOut]]],
    code_source: CodeSource,
    *,
    state: PartialState,
) -> dict[str, Any]:
    """Write the shards that are missing, each process its share, and then the manifest, which is returned. `make`: the
    records of a task, in order, and what was left out; it reports progress, in records, to its second argument."""
    share = tasks[state.process_index :: state.num_processes]
    missing = [task for task in share if not (folder / SHARDS / task.shard).is_file()]
    total, num_missing = (sum(task.count for task in some) for some in (share, missing))
    how = {"desc": f"prepare {folder.name}", "unit": " records"}
    is_quiet = not missing or not state.is_main_process
    with tqdm(total=total, initial=total - num_missing, disable=is_quiet, **how) as progress:
        for task in missing:
            done = progress.n
            records, left_out = make(task, progress.update)
            write_shard(folder / SHARDS / task.shard, records, code_source, left_out)
            progress.update(done + task.count - progress.n)
    state.wait_for_everyone()
    if state.is_main_process:
        for path in folder.rglob(f"*{UNFINISHED}"):
            path.unlink()  # of processes that were killed
        write_manifest(folder, [task.shard for task in tasks], code_source)
    state.wait_for_everyone()
    return read_json(folder / MANIFEST)


def write_shard(path: Path, records: Sequence[Record], code_source: CodeSource, left_out: Sequence[LeftOut]) -> None:
    """Write a complete shard, or nothing."""
    facts = {"version": VERSION, **asdict(code_source), "left_out": [each._asdict() for each in left_out]}
    schema = pa.schema(_ROW, metadata={METADATA: json.dumps(facts).encode()})
    table = pa.Table.from_pylist([_to_columns(record) for record in records], schema=schema)
    with whole_file(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd", row_group_size=ROWS_PER_GROUP)


def write_manifest(folder: Path, names: Sequence[str], code_source: CodeSource) -> None:
    """Write what was left out, and then the manifest, which marks the folder as finished."""
    shards, left_out = [], []
    for name in names:
        path = folder / SHARDS / name
        file = pq.read_metadata(path)
        left_out += _read_facts(file.metadata, name)["left_out"]
        shards.append({"name": name, "rows": file.num_rows, "bytes": path.stat().st_size})
    write_lines(folder / LEFT_OUT, left_out)
    if not any(shard["rows"] for shard in shards):
        first = f", {left_out[0]['place']}: {left_out[0]['reason']}" if left_out else ""
        raise ValueError(f"{folder} must get records, got none ({len(left_out)} left out{first}); check the sources")
    totals = {"records": sum(shard["rows"] for shard in shards), "left_out": len(left_out), "shards": shards}
    write_json(folder / MANIFEST, {"version": VERSION, "tokenizer": asdict(code_source), **totals})


def _to_columns(record: Record) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    messages = []
    for message in record.messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            match part:
                case TextPart(text):
                    parts.append({"text": text})
                case CodesPart(codes_KN, (rows, columns)):
                    parts.append({"image": len(images)})
                    images.append({"rows": rows, "columns": columns, "codes": codes_KN.reshape(-1)})
                case _:
                    raise TypeError(f"parts of a prepared record must be texts or codes, got {type(part).__name__}")
        messages.append({"role": message.role, "parts": parts})
    fields = {"kind": record.kind, "source": record.source, "place": record.place}
    return {**fields, "messages": messages, "images": images}


class ShardFolder:
    """Records of a finished folder by number. Files and row groups that were read last are kept open or in memory; with
    `in_memory` all are, for random access to the whole folder. `path` may be the URL of a folder
    (`hf://datasets/NAME/PROJECT/FOLDER`, or any other that fsspec opens)."""

    def __init__(self, path: str | Path, *, in_memory: bool = False) -> None:
        self.path, self.in_memory = str(path), in_memory
        files, root = fsspec.core.url_to_fs(self.path)
        self.files = DirFileSystem(root, files)
        manifest = self._read_manifest()
        self.code_source = CodeSource(**manifest["tokenizer"])
        self.names = [shard["name"] for shard in manifest["shards"]]
        self.num_rows = np.array([shard["rows"] for shard in manifest["shards"]], dtype=np.int64)
        self.ends = np.cumsum(self.num_rows)
        self._check_sizes({shard["name"]: shard["bytes"] for shard in manifest["shards"]})
        self._make_caches()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ShardFolder, in_memory=self.in_memory), (self.path,)

    def _make_caches(self) -> None:
        self.process = os.getpid()
        self.open_shard = lru_cache(None if self.in_memory else OPEN_FILES)(self._open_shard)
        self.row_group = lru_cache(None if self.in_memory else ROW_GROUPS)(
            lambda shard, group: self.open_shard(shard).read_row_group(group)
        )

    def __len__(self) -> int:
        return int(self.num_rows.sum())

    def __getitem__(self, index: int) -> Record:
        """Record `index`, counted over all shards."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return self.row(shard, index - int(self.ends[shard] - self.num_rows[shard]))

    def row(self, shard: int, index: int) -> Record:
        if self.process != os.getpid():  # a forked worker shares the position in an open file with its parent
            self._make_caches()
        group, inside = divmod(index, self.open_shard(shard).metadata.row_group(0).num_rows)  # all but the last alike
        table = self.row_group(shard, group)
        kind, said, source, place = (table[name][inside].as_py() for name in ("kind", "messages", "source", "place"))
        images = [self._codes_part(image) for image in table["images"][inside]]
        messages = []
        for message in said:
            parts = (images[p["image"]] if p["text"] is None else TextPart(p["text"]) for p in message["parts"])
            messages.append(Message(message["role"], tuple(parts)))
        return Record(kind, tuple(messages), source, place)

    def _codes_part(self, image: pa.StructScalar) -> CodesPart:
        codes: np.ndarray = image["codes"].values.to_numpy()
        grid = image["rows"].as_py(), image["columns"].as_py()
        return CodesPart(codes.reshape(self.code_source.num_codebooks, -1), grid)

    def require_tokenizer(self, code_source: CodeSource) -> None:
        """Refuse codes that this image tokenizer did not make."""
        if self.code_source != code_source:
            raise ValueError(
                f"the codes in {self.path} must be of the chosen image tokenizer, {code_source}, got those of "
                f"{self.code_source}; name the one that they were prepared with, or prepare the data again"
            )

    def _open_shard(self, shard: int) -> pq.ParquetFile:
        name = self.names[shard]
        try:
            file = pq.ParquetFile(self.files.open(f"{SHARDS}/{name}"))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"shard {name} of {self.path} is damaged: {error}; remove it and prepare again") from error
        facts = _read_facts(file.metadata.metadata, name)
        made_by = CodeSource(*(facts[field] for field in CodeSource.__slots__))
        if (facts["version"], made_by, file.metadata.num_rows) != (VERSION, self.code_source, self.num_rows[shard]):
            raise ValueError(
                f"shard {name} of {self.path} must be the one of the manifest, got {file.metadata.num_rows} rows of "
                f"{made_by}; remove it and prepare again"
            )
        return file

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self.files.cat(MANIFEST))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.path} must be a finished folder of shards, got no {MANIFEST}; run `mllm prepare` to its end"
            ) from None
        if manifest.get("version") != VERSION:
            raise ValueError(
                f"the schema of {self.path} must be of version {VERSION}, got {manifest.get('version')}; "
                "prepare the data again"
            )
        return manifest

    def _check_sizes(self, expected: dict[str, int]) -> None:
        """Find shards that are missing or truncated before training rather than in the middle of it."""
        listed = self.files.ls(SHARDS, detail=True) if expected else []
        found = {PurePosixPath(entry["name"]).name: entry["size"] for entry in listed}
        for name, size in expected.items():
            if found.get(name) != size:
                state = f"{found[name]} bytes" if name in found else "no such file"
                raise ValueError(
                    f"shard {name} of {self.path} must have {size} bytes, got {state}; copy it again, or remove it "
                    "and prepare again"
                )


def _read_facts(metadata: dict[bytes, bytes] | None, name: str) -> dict[str, Any]:
    if metadata is None or METADATA not in metadata:
        raise ValueError(f"{name} must be a shard, got a file without its metadata; prepare the data again")
    return json.loads(metadata[METADATA])
