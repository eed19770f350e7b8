"""Every layout to records: what is said and shown in which order; and every way to be invalid is refused."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mllm.conversation import CodesPart, TextPart
from tests.train.data.raw_data import tar_of
from train.data.columns import find_format, format_of, read_record, renamed
from train.data.records import BadRecord, RawImage, Record
from train.data.rows import read_items


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


def png(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), color).save(stream, "PNG")
    return stream.getvalue()


RECORDS = r"""
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

{"messages": [{"role": "assistant", "content": "Once upon a time"}]}
= document assistant[Once upon a time]

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

{"image": "a.png", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]}
= chat user[a.png | What?] assistant[That.]
"""
INVALID = r"""
{"a": 1}
{"messages": "hi"}
{"messages": [{"role": "user", "content": "hi"}]}
{"messages": [{"role": "tool", "content": "hi"}]}
{"messages": [{"role": "user", "content": [{"type": "video"}]}]}
{"messages": [{"role": "user", "content": 3}]}
{"messages": [{"role": "user", "content": [{"type": "image"}]}]}
{"messages": [{"role": "assistant", "content": "hi"}], "images": ["a.png"]}
{"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "hi"}]}
{"conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]}
{"conversations": [{"from": "narrator", "value": "x"}]}
{"conversations": "x"}
{"jpg": "a.png"}
{"image": "a.png", "caption": " "}
{"image": "a.png", "text": 3}
{"image": 3, "caption": "x"}
{"image": "https://a.org/b.png", "caption": "x"}
{"image": "a.png", "class": "cat"}
{"data_type": "T2I", "text": "x", "vqcode_256": "no"}
{"data_type": "I2T", "text": "no", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[["}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2], [3]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[-1]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2]]"}
{"data_type": "mllm_finetune", "text": "hello"}
{"image": "a.png", "question": "x", "answer": {}}
{"source": "a.png", "instruction": 3, "target": 5}
{"images": 5, "texts": [{"user": "x", "assistant": "y"}]}
{"images": ["a.png"], "texts": [{"user": "x"}]}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "images": 5}
{"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}
{"text_list": "x", "image_info": []}
{"texts": ["x"], "images": []}
{"texts": ["x"], "images": ["a.png"]}
{"text": " "}
{"text": 3}
{"text": "bad \ud83d"}
{"image": "a.png", "caption": "bad \ud83d"}
{"codes": 5, "class": 3}
{"codes": [[[-1]]], "class": 3}
"""


def test_records_are_read_and_invalid_ones_refused() -> None:
    for block in RECORDS.strip().split("\n\n"):
        record, _, expected = block.partition("\n= ")
        assert summary(read(json.loads(record))) == expected
    for line in INVALID.strip().splitlines():
        with pytest.raises(BadRecord):
            read(json.loads(line))
            pytest.fail(line)
    with pytest.raises(BadRecord, match="^conversations must be a list of objects, got None"):
        read_record("llava", {"image": "a.png"}, Path())


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
    """Layout, ending and text of each sample."""
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
    images = {"a.png": png("red"), "b.png": png("blue")}
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
    found = []
    for number, (layout, ending, text) in enumerate(samples_of(PAGE)):
        path = tmp_path / f"{number}.{ending}"
        write_sample(path, text, images)
        assert find_format(path) == layout
        for item in read_items(path):
            record = read_record(layout, item.row(), tmp_path)
            assert all(part.open().size == (5, 4) for part in record.parts if isinstance(part, RawImage)), item
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
    (tmp_path / "images" / "a.png").write_bytes(png())
    for name, said in (("a.jsonl", "jsonl is unknown: .* got a, b"), ("images", r"write a \.txt of the same name")):
        with pytest.raises(ValueError, match=said):
            find_format(tmp_path / name)


def test_images_come_from_paths_bytes_and_urls_on_disk_or_the_record_is_broken(tmp_path: Path) -> None:
    """Also from below one sub-folder, never from outside of the folder."""
    folder = tmp_path / "images"
    for name in ("a.png", "a.org/d/b c.png", "c.png", "val2014/d.png", "i/b.org/x/e.png", "one/f.png", "two/f.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "broken.png").write_bytes(png()[:20])
    text = base64.b64encode(png()).decode()
    for value in (
        *("a.png", ".\\a.png", "a.org\\d\\b c.png", str(folder / "a.png"), (folder / "a.png").as_uri(), "./d.png"),
        *("https://a.org/d/b%20c.png?size=3", "https://elsewhere.org/x/c.png", "https://b.org/x/e.png", png()),
        *({"bytes": png(), "path": "x.png"}, {"bytes": None, "path": "a.png"}, {"bytes": text}),
        {"url": f"data:image/png;base64,{text}"},
    ):
        record = read({"image": value, "caption": "x"}, folder)
        assert record.parts[-1].open().size == (5, 4), value
    for value in (
        *("https://../../secret.png", "none.png", "broken.png", "f.png", b"nonsense", "~nobody-of-this-name/a.png"),
        *("iVBORw0KGgo" * 500, "https://a.org/" + "d" * 5000),  # the bytes themselves, as text
        *("https://[a.org/b.png", "https://a.org/%00.png", "data:image/png;base64,\u00e9", "data:image/svg,x"),
        {"bytes": "?"},
    ):
        with pytest.raises(BadRecord) as caught:
            read({"image": value, "caption": "x"}, folder).parts[-1].open()
        assert len(str(caught.value)) < 400 or "://" in str(value)
