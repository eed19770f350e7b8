"""Files to items: the same ones from the beginning and from any item on; damaged files are named."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.train.data.raw_data import image_file, tar_of
from train.data.columns import find_format
from train.data.records import BadRecord
from train.data.rows import Item, read_items, read_tar

RECORDS = [{"text": f"text {number} " + "\u4f60" * number} for number in range(7)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
MARK = b"\xef\xbb\xbf"


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


SAMPLES = (
    {"notes": b""}
    | {  # a member without an ending
        f"./d/{number:03d}.{ending.upper() if number == 2 else ending}": (
            record["text"].encode() if ending == "txt" else bytes([number])
        )
        for number, record in enumerate(RECORDS)
        for ending in ["jpg", "txt", "json"][: 2 + number % 2]
    }
)
HALF = LINES.index(b"\n") + 1
CSV = "text,number\n" + "".join(f'"{record["text"]}\n",{number}\n' for number, record in enumerate(RECORDS))
TSV = "text\tnumber\n" + "".join(f'{record["text"]}\t"{number}\n' for number, record in enumerate(RECORDS))
FILES = {
    "a.jsonl": LINES.replace(b"\n", b"\n\n", 1),  # a blank line
    "a.json": ("\n " + json.dumps(RECORDS, indent=1, ensure_ascii=False)).encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES[:HALF]) + zstd(LINES[HALF:]),  # two frames, as parallel compressors write them
    "a.tar": tar_of(SAMPLES),
    "b.tar.gz": tar_of(SAMPLES, "w:gz"),
    "c.tgz": tar_of(SAMPLES, "w:gz"),
    "d.tar.zst": zstd(tar_of(SAMPLES)),
    "b.csv": MARK + CSV.encode(),
    "b.TSV": TSV.encode(),
    "b.JSON": MARK + json.dumps({"info": {}, "data": RECORDS}, indent=1).encode(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The records in every format, by name."""
    folder = tmp_path_factory.mktemp("rows")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "a.parquet", row_group_size=3)
    Dataset.from_list(RECORDS).save_to_disk(str(folder / "saved"))
    (folder / "b.arrow").write_bytes((folder / "saved" / "data-00000-of-00001.arrow").read_bytes())
    (folder / "folder").mkdir()
    for number, record in enumerate(RECORDS):
        (folder / "folder" / f"{number}.png").write_bytes(image_file(number))
        (folder / "folder" / f"{number}.txt").write_bytes((MARK if number == 3 else b"") + record["text"].encode())
    return {path.name: path for path in folder.iterdir()}


def text_of(item: Item) -> str:
    fields = item.row()
    return fields.get("text", fields.get("caption")).removesuffix("\n")


def test_captions_in_files_are_text_without_its_line_end(tmp_path: Path) -> None:
    captions = {"a": "caf\u00e9\r\n".encode(), "b": "caf\u00e9\r\n".encode("cp1252"), "c": "a".encode("utf-16")}
    for name, caption in captions.items():
        (tmp_path / f"{name}.png").write_bytes(image_file(1))
        (tmp_path / f"{name}.txt").write_bytes(caption)
    (tmp_path / "all.tar").write_bytes(tar_of({path.name: path.read_bytes() for path in sorted(tmp_path.glob("*.*"))}))
    for source in (tmp_path, tmp_path / "all.tar"):
        good, *wrong = read_items(source)
        assert good.row()["caption"] == "caf\u00e9" and len(wrong) == 2
        for item in wrong:
            with pytest.raises(BadRecord, match="UTF-8"):
                item.row()


def test_items_come_in_order_from_any_item_on(files: dict[str, Path]) -> None:
    assert len(files) == len(FILES) + 4
    for name, path in files.items():
        items = list(read_items(path))
        assert [text_of(item) for item in items if not item.is_blank] == [record["text"] for record in RECORDS], name
        for number in range(len(items)):
            assert list(read_items(path, number)) == items[number:], name
        assert [item.place for item in read_items(path, contents=False)] == [item.place for item in items]
        assert find_format(path) == ("captions" if "tar" in name or name in ("c.tgz", "folder") else "text")
        third = {"a.jsonl": "line 3", "a.json": "record 3", "a.parquet": "row 3", "a.tar": "./d/002", "folder": "2.png"}
        assert items[2].place == third.get(name, items[2].place)


def test_records_of_an_array_may_lie_across_chunks(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 17):
        monkeypatch.setattr("train.data.rows.CHUNK", size)
        assert [item.value for item in read_items(files["a.json"])] == RECORDS


def test_json_is_lines_an_array_or_a_record_and_a_table_may_have_semicolons(tmp_path: Path) -> None:
    for ending, content, expected in (
        ("json", b" [ ] ", []),
        ("json", json.dumps(RECORDS[0], indent=1).encode(), RECORDS[:1]),
        ("json", LINES, RECORDS),
        ("json", b'{"text": "x", "tags": []}', [{"text": "x", "tags": []}]),
        ("csv", MARK + b'file;text\r\na.png;"a circle; red"\r\n', [{"file": "a.png", "text": "a circle; red"}]),
    ):
        (tmp_path / f"a.{ending}").write_bytes(content)
        assert [item.row() for item in read_items(tmp_path / f"a.{ending}")] == expected


def test_broken_records_are_no_reason_to_stop_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": \n[1]\n{"text": "caf\xe9"}\n' + b'{"a":' * 100_000 + b'\n{"text": "x"}\n')
    *broken, last = read_items(path)
    assert len(broken) == 4 and last.row() == {"text": "x"} and find_format(path) == "text"
    path = tmp_path / "a.csv"
    path.write_text('text,n\none,1\n"three\nlines",3\n\ntwo\n')
    *good, short = read_items(path)
    assert [item.row()["text"] for item in good] == ["one", "three\nlines"]
    assert [item.place for item in (*good, short)] == ["line 2", "line 4", "line 6"]
    for item in (*broken, short):
        with pytest.raises(BadRecord):
            item.row()


def test_damaged_files_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(files["a.tar"]) as tar:
        between_members = tar.getmembers()[3].offset  # which tarfile takes for the end
    contents = {
        "a.xls": b"a,b",
        "open.json": b'[{"text": "x"}',
        "latin.json": b'[{"text": "caf\xe9"}]',
        "latin.csv": b"text,n\ncaf\xe9,1",
        "open.csv": b'text,n\none,"1\n',
        "deep.json": b"[" * 100_000,
        "a.parquet.gz": b"",
        "between.tar": FILES["a.tar"][:between_members],
    }
    for name in ("a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar"):
        whole = files[name].read_bytes()
        end = len(whole.rstrip(b"\0") if name == "a.tar" else whole)
        contents |= {f"{share}-{name}": whole[: int(share * end)] for share in (0.5, 0.9)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            list(read_items(tmp_path / name))


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    array, some_lines = b' \n[{"text": "x"},\n {"text": "x"}]', b'{"text": "x"}\n{"text": "x"}\n'
    contents = {"a.json": array, "a.jsonl": some_lines, "a.jsonl.gz": some_lines, "a.json.zst": array}
    for name, content in {**contents, "a.csv": b"text,n\nx,1\nx,2\n"}.items():
        path, compress = tmp_path / name, {".gz": gzip.compress, ".zst": zstd}
        path.write_bytes(compress.get(path.suffix, bytes)(MARK + content))
        assert [item.row()["text"] for item in read_items(path)] == ["x", "x"] and find_format(path) == "text", name
        path.write_bytes(compress.get(path.suffix, bytes)(content.decode().encode("utf-16")))
        with pytest.raises(ValueError, match=f"{name}.*UTF-16"):
            list(read_items(path))


def test_members_of_one_name_are_a_sample(tmp_path: Path) -> None:
    """Dots belong to a name where all its members have them; an ending that comes twice begins a new sample."""
    path = tmp_path / "names.tar"
    names = "v1.0.png v1.0.txt v1.1.txt v1.1.png w.depth.png w.jpg w.txt w.seg.png a.txt a.png".split()
    with tarfile.open(path, "w") as tar:
        for name in (*names, "a.png", "a.txt", "b.WEBP"):
            tar.addfile(tarfile.TarInfo(name))
    assert [f"{sample.name}: {' '.join(sorted(sample.members))}" for sample in read_tar(path)] == [
        "v1.0: png txt",
        "v1.1: png txt",
        "w: depth.png jpg seg.png txt",
        "a: png txt",
        "a: png txt",
        "b: webp",
    ]


def test_images_of_coco_without_an_annotation_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(3)]
    annotations = [{"image_id": 1, "caption": "a circle"}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert len(list(read_items(tmp_path / "captions.json"))) == 1
    assert "2 of 3 images have no annotation" in caplog.text
