"""Which shards a preparation makes: each input file is cut into units of a fixed number of records, one shard each.

The plan of a file is made once and kept (DIR/plan/), so the cut never depends on how many processes work or how often
they are interrupted. A file that has changed since is refused: its shards would no longer fit together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mllm.json_files import write_json
from train.data.importers.containers import PICTURE_ENDINGS, known, read_items
from train.data.importers.formats import IMPORTERS, find_format

PLAN = "plan"
HEAD = 1 << 16
"""Bytes at both ends of a file by which a change is noticed, with its size."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The records of one shard."""

    path: str
    format: str
    number: int  # items of the file that come before
    offset: int  # where reading begins (train/data/importers/containers.py)
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
