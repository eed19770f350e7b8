"""A whole preparation: plan, make the shards that are missing, and write the manifest when all are there.

Any number of processes share the work (`torchrun`, `accelerate launch`), each makes every so many-th shard. Finished
shards are never touched again, so a preparation that was interrupted goes on by running the same command.

    DIR/prepare.json       what the folder was begun with; another tokenizer or shard size is refused
    DIR/plan/*.json        which records go into which shard
    DIR/shards/*.parquet
    DIR/left_out.jsonl     broken records that were left out, with file, place and reason
    DIR/manifest.json      written last; training reads nothing without it
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from mllm.json_files import write_json, write_lines
from mllm.whole_file import UNFINISHED
from tokenizer.model import UniTok
from train.data.prepare_plan import Unit, find_files, plan_file, read_units
from train.data.prepare_unit import UnitOptions, UnitPreparer
from train.data.processes import Processes
from train.data.shard_folder import MANIFEST, SHARDS
from train.data.shard_format import VERSION, CodesOf, codes_made_by, read_facts, write_shard

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
