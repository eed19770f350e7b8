"""Reading prepared folders, and refusing those that would train wrongly."""

import json
import multiprocessing
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests.train.data.raw_data import content, pair, prepared
from train.data.shards import MANIFEST, ROWS_PER_GROUP, SHARDS, VERSION, CodeSource, ShardFolder

CODE_SOURCE = CodeSource("0123", 3, 16)
SIZES = (ROWS_PER_GROUP * 2 + 5, 0, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [[pair([f"caption {i}"], CODE_SOURCE, 100 * n + i) for i in range(size)] for n, size in enumerate(SIZES)]
    return prepared(tmp_path / "out", shards, CODE_SOURCE)


def test_rows_come_back_as_they_were_written_from_any_file_system_and_by_any_reader_of_parquet(folder: Path) -> None:
    fsspec.filesystem("memory").put(str(folder), "/data/out", recursive=True)
    here, there = ShardFolder(folder), ShardFolder("memory://data/out")
    assert len(here) == sum(SIZES) and here.code_source == CODE_SOURCE
    places = [(shard, row) for shard, size in enumerate(SIZES) for row in range(size)]
    for number, (shard, row) in enumerate(places):
        expected = content(pair([f"caption {row}"], CODE_SOURCE, 100 * shard + row))
        assert content(here.row(shard, row)) == content(here[number]) == content(there[number]) == expected
    path = folder / SHARDS / "00000.parquet"
    images = pq.ParquetFile(path).schema_arrow.field("images").type.value_type
    assert images.field("codes").type == pa.list_(pa.uint16()), "half of the size of 32 bits"
    rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    assert next(iter(rows))["messages"][0]["parts"][0]["text"] == "caption 0"


def test_an_unfinished_exchanged_or_damaged_folder_and_another_tokenizer_are_refused(folder: Path) -> None:
    manifest, shard = folder / MANIFEST, folder / SHARDS / "00000.parquet"
    whole, facts = shard.read_bytes(), json.loads(manifest.read_text())
    newer = json.dumps({**facts, "version": VERSION + 1})
    for damage in (lambda: manifest.write_text(newer), lambda: shard.write_bytes(whole[:-7]), manifest.unlink):
        damage()
        with pytest.raises((ValueError, FileNotFoundError)):
            ShardFolder(folder)
        manifest.write_text(json.dumps(facts))
        shard.write_bytes(whole)
    for other in (CodeSource("4567", 3, 16), CodeSource("0123", 2, 16), CodeSource("0123", 3, 17)):
        with pytest.raises(ValueError):
            ShardFolder(folder).require_tokenizer(other)
    shard.write_bytes(whole[:-20] + bytes(20))  # of the size that the manifest says
    with pytest.raises(ValueError):
        ShardFolder(folder).row(0, 0)


def test_a_forked_worker_opens_files_of_its_own(folder: Path) -> None:
    """Parent and child share the place in a file that was open before the fork."""
    read = ShardFolder(folder)
    read.row(0, 0)
    parents = read.open_shard(0)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def look() -> None:
        row = read.row(0, 1)
        queue.put((read.open_shard(0) is parents, content(row)))

    child = context.Process(target=look)
    child.start()
    child.join()
    assert queue.get() == (False, content(pair(["caption 1"], CODE_SOURCE, 1)))
    assert read.open_shard(0) is parents
