"""Files to items: the same ones from the beginning and from any item on; damaged files are named."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from train.data.importers import find_format
from train.data.records import BadRecord, Item, read_items, read_tar

RECORDS = [{"text": f"text {number} " + "\u4f60" * number} for number in range(7)]


def write_tar(path: Path) -> None:
    """Samples of different members, between them a folder and a member without an ending."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("notes"))
        for number, record in enumerate(RECORDS):
            for ending in ["jpg", "txt", "json"][: 2 + number % 2]:
                content = record["text"].encode() if ending == "txt" else bytes([number])
                info = tarfile.TarInfo(f"./d/{number:03d}.{ending.upper() if number == 2 else ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write(path: Path) -> Path:
    """The records in the format that the ending names."""
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    match "".join(path.suffixes):
        case ".jsonl":
            path.write_bytes(lines.replace(b"\n", b"\n\n", 1))  # a blank line
        case ".json":
            path.write_text("\n " + json.dumps(RECORDS, indent=1, ensure_ascii=False), encoding="utf-8")
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case ".jsonl.zst":
            codec = pa.Codec("zstd")
            half = lines.index(b"\n") + 1  # two frames, as parallel compressors write them
            path.write_bytes(b"".join(codec.compress(part, asbytes=True) for part in (lines[:half], lines[half:])))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=3)
        case ".tar":
            write_tar(path)
        case "":
            path.mkdir()
            for number, record in enumerate(RECORDS):
                Image.new("RGB", (3, 3)).save(path / f"{number}.png")
                (path / f"{number}.txt").write_text(record["text"], encoding="utf-8")
    return path


NAMES = ("a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar", "folder")


def text_of(item: Item) -> str:
    fields = item.fields()
    text = fields.get("text", fields.get("txt", fields.get("caption")))
    return text.decode() if isinstance(text, bytes) else text


def test_items_come_in_order_from_any_item_on(tmp_path: Path) -> None:
    for name in NAMES:
        check_order(write(tmp_path / name))


def check_order(path: Path) -> None:
    items = list(read_items(path))
    told = [item for item in items if isinstance(item.value, dict) or item.value.strip()]
    assert [text_of(item) for item in told] == [record["text"] for record in RECORDS]
    for number, item in enumerate(items):
        again = list(read_items(path, offset=item.offset, number=number))
        assert [(one.place, one.value) for one in again] == [(one.place, one.value) for one in items[number:]]
    assert [item.place for item in read_items(path, contents=False)] == [item.place for item in items]


def test_records_of_an_array_may_lie_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    for size in (1, 2, 3, 17):
        monkeypatch.setattr("train.data.records.CHUNK", size)
        items = list(read_items(path))
        assert [item.value for item in items] == RECORDS
        for number, item in enumerate(items):
            assert [one.value for one in read_items(path, offset=item.offset, number=number)] == RECORDS[number:]


def test_an_array_may_be_empty_and_lacks_no_bracket(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(" [ ] ")
    assert list(read_items(path)) == []
    path.write_text('[{"text": "x"}')
    with pytest.raises(ValueError):
        list(read_items(path))


def test_places_are_those_that_people_count(tmp_path: Path) -> None:
    places = {name: [item.place for item in read_items(write(tmp_path / name))] for name in NAMES}
    assert places["a.jsonl"][2] == "line 3" and places["a.json"][2] == "record 3" and places["a.parquet"][2] == "row 3"
    assert places["a.tar"][2] == "./d/002" and places["folder"][2] == "2.png"


def test_the_format_is_found(tmp_path: Path) -> None:
    found = [find_format(write(tmp_path / name)) for name in NAMES]
    assert found == ["text"] * 5 + ["webdataset", "captions"]


def test_the_format_is_found_behind_a_broken_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('not JSON\n[1]\n{"text": "x"}\n')
    assert find_format(path) == "text"
    path.write_text('{"a": 1}\n' * 200)
    with pytest.raises(ValueError):
        find_format(path)


def test_broken_lines_are_no_reason_to_stop_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": \n[1]\n{"text": "x"}\n')
    first, second, third = read_items(path)
    for item in (first, second):
        with pytest.raises(BadRecord):
            item.fields()
    assert third.fields() == {"text": "x"}


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar"):
        path = write(tmp_path / name)
        content = path.read_bytes()
        end = len(content.rstrip(b"\0") if name == "a.tar" else content)
        for share in (0.5, 0.9):
            path.write_bytes(content[: int(share * end)])
            with pytest.raises(ValueError, match=name):
                list(read_items(path))


def test_a_tar_without_its_end_is_named(tmp_path: Path) -> None:
    """It was cut between two members, which tarfile does not mind."""
    path = write(tmp_path / "a.tar")
    with tarfile.open(path) as tar:
        end = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError):
        list(read_items(path))


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError):
        read_items(tmp_path / "a.csv")


def test_an_ending_that_comes_twice_begins_a_new_sample(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.txt", "a.png", "a.png", "a.txt", "b.WEBP"):
            tar.addfile(tarfile.TarInfo(name))
    found = [(sample.name, sorted(sample.members)) for sample in read_tar(path)]
    assert found == [("a", ["png", "txt"]), ("a", ["png", "txt"]), ("b", ["webp"])]
