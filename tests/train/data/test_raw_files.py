"""Files to items and items to records: from any item on, in every layout; what is damaged or invalid is named."""

import base64
import dataclasses
import gzip
import json
import re
import tarfile
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from mllm.conversation import CodesPart, TextPart
from tests.train.data.raw_data import image_file, tar_of
from train.data.formats import find_format, format_of, read_record, renamed
from train.data.raw_files import RawItem, read_items, read_tar
from train.data.records import BadRecord, RawImage, Record

RECORDS = [{"text": f"text {number} " + "\u4f60" * number} for number in range(7)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
MARK, PNG = b"\xef\xbb\xbf", image_file(0)


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


def text_of(item: RawItem) -> str:
    fields = item.row()
    return fields.get("text", fields.get("caption")).removesuffix("\n")


def test_items_come_in_order_from_any_item_on(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
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
    for size in (1, 2, 3, 17):  # records of an array may lie across chunks
        monkeypatch.setattr("train.data.raw_files.CHUNK", size)
        assert [item.value for item in read_items(files["a.json"])] == RECORDS


def test_json_is_lines_an_array_or_a_record_and_a_table_may_have_semicolons(tmp_path: Path) -> None:
    for ending, content, expected in (
        ("json", b" [ ] ", []),
        ("json", json.dumps(RECORDS[0], indent=1).encode(), RECORDS[:1]),
        ("json", MARK + LINES, RECORDS),
        ("json", MARK + b' \n[{"text": "x"},\n {"text": "x"}]', [{"text": "x"}] * 2),
        ("jsonl", MARK + b'{"text": "x"}\n{"text": "x"}\n', [{"text": "x"}] * 2),
        ("csv", MARK + b'file;text\r\na.png;"a circle; red"\r\n', [{"file": "a.png", "text": "a circle; red"}]),
    ):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(content)
        assert [item.row() for item in read_items(path)] == expected
        path.write_bytes((MARK + b"x" + content[3:]).decode().encode("utf-16"))
        with pytest.raises(ValueError, match=f"{ending}.*UTF-16"):
            list(read_items(path))


def test_broken_records_are_no_reason_to_stop_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": \n[1]\n{"text": "caf\xe9"}\n' + b'{"a":' * 100_000 + b'\n{"text": "x"}\n')
    *broken, last = read_items(path)
    assert len(broken) == 4 and last.row() == {"text": "x"} and find_format(path) == "text"
    captions = {"a": "caf\u00e9\r\n".encode(), "b": "caf\u00e9\r\n".encode("cp1252"), "c": "a".encode("utf-16")}
    members = {
        f"{name}.{ending}": data for name, text in captions.items() for ending, data in (("png", b""), ("txt", text))
    }
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    good, *others = read_items(tmp_path / "a.tar")
    assert good.row()["caption"] == "caf\u00e9" and len(others) == 2
    path = tmp_path / "a.csv"
    path.write_text('text,n\none,1\n"three\nlines",3\n\ntwo\n')
    *good, short = read_items(path)
    assert [item.row()["text"] for item in good] == ["one", "three\nlines"]
    assert [item.place for item in (*good, short)] == ["line 2", "line 4", "line 6"]
    for item in (*broken, *others, short):
        with pytest.raises(BadRecord):
            item.row()


def test_damaged_files_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(files["a.tar"]) as tar:
        between_members = tar.getmembers()[3].offset  # which tarfile takes for the end
    contents = {
        "a.xls": b"a,b",
        "open.json": b'[{"text": "x"}',
        "latin.json": b'[{"text": "caf\xe9"}]',
        "open.csv": b'text,n\none,"1\n',
        "deep.json": b"[" * 100_000,
        "between.tar": FILES["a.tar"][:between_members],
    }
    for name in ("a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar"):
        whole = files[name].read_bytes().rstrip(b"\0")
        contents |= {f"{share}-{name}": whole[: int(share * len(whole))] for share in (0.5, 0.9)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            list(read_items(tmp_path / name))


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


def shown(part: Any) -> str:
    """Images by the names of their files."""
    match part:
        case TextPart(text):
            return text
        case RawImage(has_views=True):
            return f"ten views of {shown(dataclasses.replace(part, has_views=False))}"
        case RawImage(bytes(data)):
            return f"{len(data)} bytes"
        case RawImage(source):
            return source if isinstance(source, str) else source.name
        case CodesPart(codes_KN, grid):
            assert codes_KN.dtype == np.uint16
            return f"{codes_KN.tolist()} {grid}"
    raise TypeError(part)


def summary(record: Record) -> str:
    said = (f"{message.role}[{' | '.join(map(shown, message.parts))}]" for message in record.messages)
    return " ".join([record.kind, *said])


def read(fields: dict[str, Any], folder: Path = Path("images")) -> Record:
    return read_record(format_of(fields), fields, folder)


READ = r"""
{"messages": [{"role": "system", "content": "Be brief."},
              {"role": "user", "content": [{"type": "image", "path": "d/a.png"},
                                           {"type": "text", "text": "What is it?"}]},
              {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Make it a dog."},
              {"role": "assistant", "content": [{"type": "image", "path": "b.png"}]}]}
= chat user[Be brief. | a.png | What is it?] assistant[A cat.] user[Make it a dog.] assistant[b.png]

{"messages": [{"role": "user", "content": [{"type": "image", "path": null, "text": null}, {"type": "image"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "Two.", "path": null}]}],
 "images": ["a.png", {"bytes": "aGVsbG8=", "path": null}]}
= chat user[a.png | data:image;base64,aGVsbG8=] assistant[Two.]

{"messages": [{"role": "user", "content": [{"type": "image", "base64": "aGVsbG8=", "path": null}]},
              {"role": "assistant", "content": "Two."}]}
= chat user[data:image;base64,aGVsbG8=] assistant[Two.]

{"messages": [{"role": "user", "content": "<image>\nand <image> differ how?"},
              {"role": "assistant", "content": "In color."}], "images": ["a.png", "b.png"]}
= chat user[a.png | and | b.png | differ how?] assistant[In color.]

{"query": "<image>How many?", "response": "One.", "images": ["a.png"]}
= chat user[a.png | How many?] assistant[One.]

{"text": "Once.", "images": []}
= document assistant[Once.]

{"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image>\nand <image> differ how?"},
                                                {"from": "gpt", "value": "In color."}]}
= chat user[a.png | and | b.png | differ how?] assistant[In color.]

{"data_type": "I2T", "text": "short", "InVL_caption": "no", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}
= chat user[[[1, 2, 3, 4], [5, 6, 7, 8]] (2, 2)] assistant[short]

{"data_type": "mllm_finetune", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]",
 "text": "[{\"from\": \"human\", \"value\": \"<image>\\nWhat?\"}, {\"from\": \"gpt\", \"value\": \"That.\"}]"}
= chat user[[[1, 2, 3, 4], [5, 6, 7, 8]] (2, 2) | What?] assistant[That.]

{"data_type": "image_text", "text": "wide", "vqcode_512": "no", "vqcode_multi768": [9, 8, 7, 6, 5, 4, 3, 2],
 "width": 64, "height": 32}
= pair user[wide] assistant[[[9, 8, 7, 6, 5, 4, 3, 2]] (2, 4)]

{"text_list": ["One.", "Two."], "image_info": [{"image_name": "b.png", "matched_text_index": 1},
 {"image_name": "a.png", "matched_text_index": 0}, {"image_name": "c.png", "matched_text_index": 1}]}
= document assistant[a.png | One. | b.png | c.png | Two.]

{"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
              {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"}]}
= chat user[c] assistant[d]
"""
INVALID = r"""
{"a": 1}
{"messages": "hi"}
{"messages": [{"role": "user", "content": "hi"}]}
{"messages": [{"role": "tool", "content": "hi"}]}
{"messages": [{"role": "user", "content": [{"type": "video"}]}]}
{"messages": [{"role": "user", "content": [{"type": "image"}]}]}
{"messages": [{"role": "assistant", "content": "hi"}], "images": ["a.png"]}
{"messages": [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "x"}], "images": ["a"]}
{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "hi"}]}
{"conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]}
{"conversations": [{"from": "narrator", "value": "x"}]}
{"image": "a.png", "caption": " "}
{"image": 3, "caption": "x"}
{"image": "https://a.org/b.png", "caption": "x"}
{"image": "a.png", "class": "cat"}
{"data_type": "I2T", "text": "no", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[["}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2], [3]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[-1]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2]]"}
{"image": "a.png", "question": "x", "answer": {}}
{"images": ["a.png"], "texts": [{"user": "x"}]}
{"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}
{"texts": ["x"], "images": ["a.png"]}
{"text": "bad \ud83d"}
{"codes": [[[-1]]], "class": 3}
"""


def test_records_are_read_and_invalid_ones_refused() -> None:
    for block in READ.strip().split("\n\n"):
        record, _, expected = block.partition("\n= ")
        assert summary(read(json.loads(record))) == expected
    for line in INVALID.strip().splitlines():
        with pytest.raises(BadRecord):
            read(json.loads(line))
            pytest.fail(line)
    asked = read_record("instruct", {"question": "x", "answer": "y", "image": "a.png"}, Path("images"))
    assert summary(asked) == "chat user[a.png | x] assistant[y]"


PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
ON_THE_PAGE = """
captions.tar: pair user[a red circle] assistant[RED]
captions.tar: pair user[a red circle on white] assistant[RED]
captions.tar: pair user[a red cat] assistant[RED]
captions: pair user[a red circle] assistant[a.png]
captions: pair user[A red circle.] assistant[a.png]
captions.csv: pair user[a red circle, small] assistant[a.png]
captions.tsv: pair user[a red circle] assistant[a.png]
captions.tsv: pair user[a blue circle] assistant[b.png]
captions.json: pair user[a red circle] assistant[a.png]
captions.json: pair user[a circle] assistant[a.png]
captions.parquet: pair user[a red circle] assistant[RED]
captions.parquet: pair user[a blue circle] assistant[BLUE]
edit.parquet: chat user[RED | make it blue] assistant[BLUE]
edit.parquet: chat user[BLUE | make it red] assistant[RED]
edit: chat user[a.png | make it blue] assistant[b.png]
edit: chat user[a.png | make it blue] assistant[b.png]
vqa: chat user[a.png | What color is it?] assistant[red]
vqa: chat user[a.png | How many?] assistant[1]
instruct: chat user[Name the color. | a red circle] assistant[red]
instruct: chat user[Name the color. | a red circle] assistant[red]
classes: class user[3] assistant[ten views of a.png]
classes: class user[0] assistant[ten views of b.png]
classes.tar: class user[3] assistant[ten views of RED]
chat: chat user[a.png | What is it?] assistant[A red circle.]
chat: chat user[a.png | Make it blue.] assistant[b.png]
llava.json: chat user[a.png | What is it?] assistant[A red circle.]
llava.json: chat user[Who are you?] assistant[A model.]
cauldron.parquet: chat user[RED | What color?] assistant[Red.]
cauldron.parquet: chat user[BLUE | What color?] assistant[Blue.]
mmc4: document assistant[A circle. | a.png | It is red.]
mmc4: document assistant[b.png | It is blue.]
obelics: document assistant[A circle. | a.png | It is red.]
obelics: document assistant[b.png | It is blue.]
text: document assistant[Once upon a time there was a circle.]
text: document assistant[It was red.]
codes: draw user[a circle | a large red circle] assistant[[[1, 2, 3, 4], [5, 6, 7, 8]] (2, 2)]
codes: document assistant[Once upon a time]
"""


def samples_of(page: Path) -> list[tuple[str, str, str]]:
    blocks = [
        (*language.partition(".")[::2], text)
        for language, text in re.findall(r"^```([\w.]+)\n(.*?)^```$", page.read_text(), re.M | re.S)
    ]
    return [(layout, ending or "jsonl", text) for layout, ending, text in blocks if layout not in ("sh", "yaml")]


def write_sample(path: Path, text: str, images: dict[str, bytes]) -> None:
    """A sample of the page as a file of its layout."""
    match path.suffix:
        case ".tar":
            parts = (line.partition(" ") for line in text.splitlines())
            path.write_bytes(tar_of({name: words.encode() or images["a.png"] for name, _, words in parts}))
        case ".parquet":
            rows = [json.loads(line, object_hook=partial(with_bytes, images)) for line in text.splitlines()]
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            path.write_text(text)


def with_bytes(images: dict[str, bytes], value: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": images[value["bytes"]], "path": None} if "bytes" in value else value


def test_the_samples_of_the_page_are_read_from_files(tmp_path: Path) -> None:
    images = {"a.png": PNG, "b.png": image_file(1)}
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
    found = []
    for number, (layout, ending, text) in enumerate(samples_of(PAGE)):
        path = tmp_path / f"{number}.{ending}"
        write_sample(path, text, images)
        assert find_format(path) == layout
        for item in read_items(path):
            record = read_record(layout, item.row(), tmp_path)
            assert all(part.open().width == 30 for part in record.parts if isinstance(part, RawImage)), item
            found.append(f"{layout}{'' if ending == 'jsonl' else f'.{ending}'}: {summary(record)}")
    text = "\n".join(found)
    for name, content in (("RED", images["a.png"]), ("BLUE", images["b.png"])):
        text = text.replace(f"{len(content)} bytes", name)
    assert text == ON_THE_PAGE.strip()


def test_columns_go_by_the_names_of_map_and_unknown_ones_are_named(tmp_path: Path) -> None:
    row = {"meta": {"words": "a red thing"}, "file": "a.png"}
    mapped = renamed(row, {"caption": "meta.words", "image": "file"})
    assert summary(read(dict(mapped))) == "pair user[a red thing] assistant[a.png]"
    with pytest.raises(BadRecord, match="nothing"):
        renamed(row, {"caption": "nothing"})
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2}\n' * 150)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PNG)
    for name, said in (("a.jsonl", "unknown: line 1: .* got a, b"), ("images", r"a\.png: .* a \.txt of the same name")):
        with pytest.raises(ValueError, match=said):
            find_format(tmp_path / name)
    for row, said in (({"image": "a.png", "subfolder": 0}, r"write a \.txt"), ({"image": "a.png", "x": 1}, "--map")):
        with pytest.raises(BadRecord, match=said):  # one of the later records
            read_record("captions", row, tmp_path)


def test_images_come_from_paths_bytes_and_urls_on_disk_or_the_record_is_broken(tmp_path: Path) -> None:
    """Also from below one sub-folder, never from outside of the folder."""
    folder = tmp_path / "images"
    for name in ("a.png", "a.org/d/b c.png", "c.png", "val2014/d.png", "i/b.org/x/e.png", "one/f.png", "two/f.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "broken.png").write_bytes(PNG[:20])
    text = base64.b64encode(PNG).decode()
    for value in (
        *("a.png", ".\\a.png", "a.org\\d\\b c.png", str(folder / "a.png"), (folder / "a.png").as_uri(), "./d.png"),
        *("https://a.org/d/b%20c.png?size=3", "https://elsewhere.org/x/c.png", "https://b.org/x/e.png", PNG),
        *({"bytes": PNG, "path": "x.png"}, {"bytes": None, "path": "a.png"}, {"bytes": text}),
        *({"url": f"data:image/png;base64,{text}"}, {"base64": text}, {"base64": f"data:image/png;base64,{text}"}),
        f"DATA:image/png;base64,{text}",
    ):
        assert read({"image": value, "caption": "x"}, folder).parts[-1].open().width == 30, value
    for value in (
        *("https://../../secret.png", "none.png", "broken.png", "f.png", b"nonsense", "~nobody-of-this-name/a.png"),
        *("iVBORw0KGgo" * 500, "https://[a.org/b.png", "https://a.org/%00.png", "data:image/svg,x", {"bytes": "?"}),
    ):
        with pytest.raises(BadRecord):
            read({"image": value, "caption": "x"}, folder).parts[-1].open()


def test_image_names_are_found_in_the_other_normal_form_of_unicode(tmp_path: Path) -> None:
    composed, decomposed = (normalize(form, "\u00e9t\u00e9.png") for form in ("NFC", "NFD"))
    for named, there in ((composed, decomposed), (decomposed, composed)):
        for place in ("", "val2014/", "a.org/"):
            folder = tmp_path / f"{len(named)}{place}"
            (folder / place).mkdir(parents=True)
            (folder / place / there).write_bytes(PNG)
            for value in (f"https://a.org/{named}",) if place == "a.org/" else (named, str(folder / place / named)):
                assert read({"image": value, "caption": "x"}, folder).parts[-1].open().width == 30, value
