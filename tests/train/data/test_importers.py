"""Every format to records: what is said and shown in which order; and every way to be invalid is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm.conversation import CodesPart, TextPart
from train.data.importers import IMPORTERS, format_of
from train.data.records import BadRecord, ImageBytes, ImageFile, Record, TenViews

CODES = [[1, 2, 3, 4], [5, 6, 7, 8]]


def shown(part: Any) -> str:
    """Images by the names of their files, codes by their first column and grid."""
    match part:
        case TextPart(text):
            return text
        case ImageFile(path):
            return path.name
        case ImageBytes(data=data):
            return f"{len(data)} bytes"
        case TenViews(image):
            return f"ten views of {shown(image)}"
        case CodesPart(codes_KN, grid):
            return f"{codes_KN[:, 0].tolist()} {grid}"
    raise TypeError(part)


def summary(record: Record) -> str:
    turns = (f"{turn.role}[{' | '.join(map(shown, turn.parts))}]" for turn in record.turns)
    return " ".join([record.kind, *turns])


def read(fields: dict[str, Any], folder: Path = Path("images")) -> Record:
    return IMPORTERS[format_of(fields)](fields, folder)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(stream, "PNG")
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
= chat user[a.png | 5 bytes] assistant[Two.]

{"messages": [{"role": "assistant", "content": "Once upon a time"}]}
= document assistant[Once upon a time]

{"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image>\nand <image> differ how?"},
                                                {"from": "gpt", "value": "In color."}]}
= chat user[a.png | and | b.png | differ how?] assistant[In color.]

{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
= chat user[Hello] assistant[Hi]

{"file_name": "a.png", "text": "a red thing"}
= pair user[a red thing] assistant[a.png]

{"image": "a.png", "class": 3}
= class user[3] assistant[ten views of a.png]

{"data_type": "T2I", "text": "short", "InVL_caption": "long", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}
= draw user[short | long] assistant[[1, 5] (2, 2)]

{"data_type": "I2T", "text": "short", "InVL_caption": "no", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}
= chat user[[1, 5] (2, 2)] assistant[short]

{"data_type": "mllm_finetune", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]",
 "text": "[{\"from\": \"human\", \"value\": \"<image>\\nWhat?\"}, {\"from\": \"gpt\", \"value\": \"That.\"}]"}
= chat user[[1, 5] (2, 2) | What?] assistant[That.]

{"data_type": "text_pretrain", "text": "words", "vqcode_512": "no", "vqcode_multi768": "no"}
= document assistant[words]

{"data_type": "image_text", "text": "wide", "vqcode_512": "no", "vqcode_multi768": [9, 8, 7, 6, 5, 4, 3, 2],
 "width": 64, "height": 32}
= pair user[wide] assistant[[9] (2, 4)]

{"text_list": ["One.", "Two."], "image_info": [{"image_name": "b.png", "matched_text_index": 1},
 {"image_name": "a.png", "matched_text_index": 0}, {"image_name": "c.png", "matched_text_index": 1}]}
= document assistant[a.png | One. | b.png | c.png | Two.]

{"texts": [null, "One.", null], "images": ["a.png", null, "b.png"]}
= document assistant[a.png | One. | b.png]

{"text": "words", "id": 3}
= document assistant[words]
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
{"__key__": "0", "jpg": ""}
{"image": "a.png", "caption": " "}
{"image": "a.png", "text": 3}
{"image": 3, "caption": "x"}
{"image": {"bytes": "?"}, "caption": "x"}
{"image": "data:image/svg,x", "caption": "x"}
{"image": "https://a.org/b.png", "caption": "x"}
{"image": "a.png", "class": "cat"}
{"data_type": "T2I", "text": "x", "vqcode_256": "no"}
{"data_type": "I2T", "text": "no", "vqcode_256": "[[1, 2, 3, 4], [5, 6, 7, 8]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[["}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2], [3]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[-1]]"}
{"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2]]"}
{"data_type": "mllm_finetune", "text": "hello"}
{"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}
{"text_list": "x", "image_info": []}
{"texts": ["x"], "images": []}
{"texts": ["x"], "images": ["a.png"]}
{"text": " "}
{"text": 3}
"""


def test_a_record_is_read() -> None:
    for block in RECORDS.strip().split("\n\n"):
        record, _, expected = block.partition("\n= ")
        assert summary(read(json.loads(record))) == expected
    sample = {"__key__": "000", "jpg": png(), "txt": b"a red thing"}
    assert summary(read(sample)) == f"pair user[a red thing] assistant[{len(png())} bytes]"


def test_an_invalid_record_is_refused() -> None:
    for line in INVALID.strip().splitlines():
        with pytest.raises(BadRecord):
            read(json.loads(line))
            pytest.fail(line)


def test_images_come_from_paths_bytes_and_urls_on_disk(tmp_path: Path) -> None:
    for name in ("a.png", "a.org/d/b c.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    text = base64.b64encode(png()).decode()
    for value in (
        "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").as_uri(),
        "https://a.org/d/b%20c.png?size=3",
        "https://elsewhere.org/x/c.png",
        png(),
        {"bytes": png(), "path": "x.png"},
        {"bytes": None, "path": "a.png"},
        {"bytes": text},
        {"url": f"data:image/png;base64,{text}"},
    ):
        record = read({"image": value, "caption": "x"}, tmp_path)
        assert record.images[0].open().size == (5, 4), value


def test_a_url_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "images").mkdir()
    with pytest.raises(BadRecord):
        read({"image": "https://../../secret.png", "caption": "x"}, tmp_path / "images")


def test_an_image_that_cannot_be_read_is_a_broken_record(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png()[:20])
    for value in (
        "none.png",
        "broken.png",
        b"nonsense",
        "~nobody-of-this-name/a.png",
        "iVBORw0KGgo" * 500,  # the bytes themselves, as text
        "https://a.org/" + "d" * 5000,
    ):
        with pytest.raises(BadRecord) as caught:
            read({"image": value, "caption": "x"}, tmp_path).images[0].open()
        assert len(str(caught.value)) < 400 or "://" in str(value)


def test_codes_keep_their_order() -> None:
    fields = {"data_type": "image_text", "text": "x", "vqcode_256": json.dumps(CODES)}
    part = read(fields).turns[1].parts[0]
    assert isinstance(part, CodesPart) and part.codes_KN.dtype == np.uint16 and part.codes_KN.tolist() == CODES
