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
from datasets import Dataset
from PIL import Image

from train.data.columns import find_format
from train.data.records import BadRecord
from train.data.rows import Item, read_items, read_tar

RECORDS = [{"text": f"text {number} " + "\u4f60" * number} for number in range(7)]


def write_tar(path: Path, mode: str = "w") -> None:
    """Samples of different members, between them a folder and a member without an ending."""
    with tarfile.open(path, mode) as tar:
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
        case ".tar.gz" | ".tgz":
            write_tar(path, "w:gz")
        case ".tar.zst":
            write_tar(path.with_suffix(""))
            path.write_bytes(pa.Codec("zstd").compress(path.with_suffix("").read_bytes(), asbytes=True))
        case ".csv":
            rows = "".join(f'"{record["text"]}\n",{number}\n' for number, record in enumerate(RECORDS))
            path.write_bytes(b"\xef\xbb\xbf" + f"text,number\n{rows}".encode())
        case ".TSV":
            rows = "".join(f'{record["text"]}\t"{number}\n' for number, record in enumerate(RECORDS))
            path.write_text(f"text\tnumber\n{rows}", encoding="utf-8")
        case ".JSON":
            path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"info": {}, "data": RECORDS}, indent=1).encode())
        case ".arrow":
            path.write_bytes(write(path.with_name("saved")).joinpath("data-00000-of-00001.arrow").read_bytes())
        case "" if path.name == "saved":
            Dataset.from_list(RECORDS).save_to_disk(str(path))
        case "":
            path.mkdir()
            for number, record in enumerate(RECORDS):
                Image.new("RGB", (3, 3)).save(path / f"{number}.png")
                (path / f"{number}.txt").write_text(record["text"], encoding="utf-8")
    return path


NAMES = ("a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar", "folder")
MORE_NAMES = ("b.tar.gz", "c.tgz", "d.tar.zst", "b.csv", "b.TSV", "b.JSON", "b.arrow", "saved")


def text_of(item: Item) -> str:
    fields = item.row()
    return fields.get("text", fields.get("caption")).removesuffix("\n")


def test_items_come_in_order_from_any_item_on(tmp_path: Path) -> None:
    for name in (*NAMES, *MORE_NAMES):
        if name != "saved":  # that one is written for the arrow file
            write(tmp_path / name)
        check_order(tmp_path / name)


def check_order(path: Path) -> None:
    items = list(read_items(path))
    told = [item for item in items if isinstance(item.value, dict) or item.value.strip()]
    assert [text_of(item) for item in told] == [record["text"] for record in RECORDS]
    for number in range(len(items)):
        assert list(read_items(path, number)) == items[number:]
    assert [item.place for item in read_items(path, contents=False)] == [item.place for item in items]


def test_records_of_an_array_may_lie_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json")
    for size in (1, 2, 3, 17):
        monkeypatch.setattr("train.data.rows.CHUNK", size)
        items = list(read_items(path))
        assert [item.value for item in items] == RECORDS


def test_an_array_may_be_empty_and_lacks_no_bracket(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS[0], indent=1))  # a single record
    assert [item.row() for item in read_items(path)] == RECORDS[:1]
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
    assert found == ["text"] * 5 + ["captions"] * 2


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
            item.row()
    assert third.row() == {"text": "x"}


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
    (tmp_path / "a.xls").write_text("a,b")
    with pytest.raises(ValueError):
        list(read_items(tmp_path / "a.xls"))


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    for name, content in (
        ("a.json", b'[{"text": "x"}, {"text": "x"}]'),
        ("b.json", b' \n[{"text": "x"},\n {"text": "x"}]'),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x"}\n'),
        ("a.jsonl.gz", b'{"text": "x"}\n{"text": "x"}\n'),
        ("a.json.zst", b'[{"text": "x"}, {"text": "x"}]'),
        ("a.csv", b"text,n\nx,1\nx,2\n"),
    ):
        path = tmp_path / name
        compress = {".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}
        path.write_bytes(compress.get(path.suffix, bytes)(mark + content))
        check = [item.row()["text"] for item in read_items(path)]
        assert check == ["x", "x"] and find_format(path) == "text", name
        path.write_bytes(compress.get(path.suffix, bytes)(content.decode().encode("utf-16")))
        with pytest.raises(ValueError, match=f"{name}.*UTF-16"):
            list(read_items(path))
    (tmp_path / "f").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "f" / "a.png")
    (tmp_path / "f" / "a.txt").write_bytes(mark + b"x")
    assert next(read_items(tmp_path / "f")).row()["caption"] == "x"


def test_what_is_not_utf_8_or_too_deep_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("a.json", '[{"text": "caf\xe9"}]'),
        ("a.csv", "text,n\ncaf\xe9,1"),
        ("b.json", "[" * 100_000),
    ):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=name):
            list(read_items(tmp_path / name))
    (tmp_path / "a.jsonl").write_bytes('{"text": "caf\xe9"}\n'.encode("latin-1") + b'{"a":' * 100_000 + b"\n[1]\n")
    for item in read_items(tmp_path / "a.jsonl"):
        with pytest.raises(BadRecord):
            item.row()


def test_a_line_of_a_table_with_other_columns_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\none,1\ntwo\n\n"three\nlines",3\n')
    first, second, third = read_items(tmp_path / "a.csv")
    assert (first.row(), third.row()["text"]) == ({"text": "one", "n": "1"}, "three\nlines")
    assert [first.place, second.place, third.place] == ["line 2", "line 3", "line 6"]
    with pytest.raises(BadRecord, match="2 columns"):
        second.row()
    (tmp_path / "b.csv").write_text('text,n\none,"1\n')
    with pytest.raises(ValueError, match="b.csv"):
        list(read_items(tmp_path / "b.csv"))


def test_dots_belong_to_the_name_of_a_sample_where_all_its_members_have_them(tmp_path: Path) -> None:
    path = tmp_path / "dots.tar"
    names = ("v1.0.png", "v1.0.txt", "v1.1.txt", "v1.1.png", "w.depth.png", "w.jpg", "w.txt", "w.seg.png", "x.png")
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    found = [(sample.name, sorted(sample.members)) for sample in read_tar(path)]
    assert found == [
        ("v1.0", ["png", "txt"]),
        ("v1.1", ["png", "txt"]),
        ("w", ["depth.png", "jpg", "seg.png", "txt"]),
        ("x", ["png"]),
    ]


def test_an_ending_that_comes_twice_begins_a_new_sample(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.txt", "a.png", "a.png", "a.txt", "b.WEBP"):
            tar.addfile(tarfile.TarInfo(name))
    found = [(sample.name, sorted(sample.members)) for sample in read_tar(path)]
    assert found == [("a", ["png", "txt"]), ("a", ["png", "txt"]), ("b", ["webp"])]
