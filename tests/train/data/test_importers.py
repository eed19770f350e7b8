"""Every format to records: what is said and shown in which order, and one sentence for each way to be broken."""

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


def summary(record: Record) -> list[tuple[str, list[Any]]]:
    """Roles and parts; images by the names of their files, codes by their first column and grid."""

    def short(part: Any) -> Any:
        match part:
            case TextPart(text):
                return text
            case ImageFile(path):
                return path.name
            case ImageBytes(data=data):
                return len(data)
            case TenViews(image):
                return f"ten views of {short(image)}"
            case CodesPart(codes, grid):
                return codes[:, 0].tolist(), grid

    return [(turn.role, [short(part) for part in turn.parts]) for turn in record.turns]


def read(fields: dict[str, Any], folder: Path = Path("images")) -> Record:
    return IMPORTERS[format_of(fields)](fields, folder)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(stream, "PNG")
    return stream.getvalue()


GOOD: dict[str, tuple[dict[str, Any], str, list[tuple[str, list[Any]]]]] = {
    "chat": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "image", "path": "d/a.png"}, {"type": "text", "text": "What is it?"}],
                },
                {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": "Make it a dog."},
                {"role": "assistant", "content": [{"type": "image", "path": "b.png"}]},
            ]
        },
        "chat",
        [
            ("user", ["Be brief.", "a.png", "What is it?"]),
            ("assistant", ["A cat."]),
            ("user", ["Make it a dog."]),
            ("assistant", ["b.png"]),
        ],
    ),
    "chat with listed images": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "path": None, "text": None}, {"type": "image"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Two.", "path": None}]},
            ],
            "images": ["a.png", {"bytes": png(), "path": None}],
        },
        "chat",
        [("user", ["a.png", len(png())]), ("assistant", ["Two."])],
    ),
    "chat of one message": (
        {"messages": [{"role": "assistant", "content": "Once upon a time"}]},
        "document",
        [("assistant", ["Once upon a time"])],
    ),
    "llava": (
        {
            "image": ["a.png", "b.png"],
            "conversations": [
                {"from": "human", "value": "<image>\nand <image> differ how?"},
                {"from": "gpt", "value": "In color."},
            ],
        },
        "chat",
        [("user", ["a.png", "and", "b.png", "differ how?"]), ("assistant", ["In color."])],
    ),
    "llava without a image": (
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        "chat",
        [("user", ["Hello"]), ("assistant", ["Hi"])],
    ),
    "webdataset": (
        {"__key__": "000", "jpg": png(), "txt": b"a red thing"},
        "pair",
        [("user", ["a red thing"]), ("assistant", [len(png())])],
    ),
    "imagefolder": (
        {"file_name": "a.png", "text": "a red thing"},
        "pair",
        [("user", ["a red thing"]), ("assistant", ["a.png"])],
    ),
    "unitok T2I": (
        {"data_type": "T2I", "text": "short", "InVL_caption": "long", "vqcode_256": json.dumps(CODES)},
        "draw",
        [("user", ["short", "long"]), ("assistant", [([1, 5], (2, 2))])],
    ),
    "unitok I2T": (
        {"data_type": "I2T", "text": "short", "InVL_caption": "no", "vqcode_256": json.dumps(CODES)},
        "chat",
        [("user", [([1, 5], (2, 2))]), ("assistant", ["short"])],
    ),
    "unitok finetune": (
        {
            "data_type": "mllm_finetune",
            "text": json.dumps([{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]),
            "vqcode_256": json.dumps(CODES),
        },
        "chat",
        [("user", [([1, 5], (2, 2)), "What?"]), ("assistant", ["That."])],
    ),
    "liquid text": (
        {"data_type": "text_pretrain", "text": "words", "vqcode_512": "no", "vqcode_multi768": "no"},
        "document",
        [("assistant", ["words"])],
    ),
    "liquid image that is wide": (
        {
            "data_type": "image_text",
            "text": "wide",
            "vqcode_512": "no",
            "vqcode_multi768": [9, 8, 7, 6, 5, 4, 3, 2],
            "width": 64,
            "height": 32,
        },
        "pair",
        [("user", ["wide"]), ("assistant", [([9], (2, 4))])],
    ),
    "mmc4": (
        {
            "text_list": ["One.", "Two."],
            "image_info": [
                {"image_name": "b.png", "matched_text_index": 1},
                {"image_name": "a.png", "matched_text_index": 0},
                {"image_name": "c.png", "matched_text_index": 1},
            ],
        },
        "document",
        [("assistant", ["a.png", "One.", "b.png", "c.png", "Two."])],
    ),
    "obelics": (
        {"texts": [None, "One.", None], "images": ["a.png", None, "b.png"]},
        "document",
        [("assistant", ["a.png", "One.", "b.png"])],
    ),
    "class": (
        {"image": "a.png", "class": 3},
        "class",
        [("user", ["3"]), ("assistant", ["ten views of a.png"])],
    ),
    "text": ({"text": "words", "id": 3}, "document", [("assistant", ["words"])]),
}


def test_a_record_is_read() -> None:
    for name, (fields, kind, expected) in GOOD.items():
        record = read(fields)
        assert (record.kind, summary(record)) == (kind, expected), name


TURNS = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]
BROKEN: dict[str, dict[str, Any]] = {
    "unknown keys": {"a": 1},
    "chat is no list": {"messages": "hi"},
    "chat ends with the user": {"messages": [{"role": "user", "content": "hi"}]},
    "chat has a tool": {"messages": [{"role": "tool", "content": "hi"}]},
    "chat has a video": {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
    "chat content is a number": {"messages": [{"role": "user", "content": 3}]},
    "chat lacks a image": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    "chat has images left": {"messages": [{"role": "assistant", "content": "hi"}], "images": ["a.png"]},
    "chat is silent": {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "hi"}]},
    "llava lacks a image": {"conversations": TURNS},
    "llava has a narrator": {"conversations": [{"from": "narrator", "value": "x"}]},
    "llava is no list": {"conversations": "x"},
    "tar without caption": {"__key__": "0", "jpg": b""},
    "caption is empty": {"image": "a.png", "caption": " "},
    "caption is a number": {"image": "a.png", "text": 3},
    "image is a number": {"image": 3, "caption": "x"},
    "bytes are no base64": {"image": {"bytes": "?"}, "caption": "x"},
    "data URL in plain": {"image": "data:image/svg,x", "caption": "x"},
    "URL is not on disk": {"image": "https://a.org/b.png", "caption": "x"},
    "no codes": {"data_type": "T2I", "text": "x", "vqcode_256": "no"},
    "no caption": {"data_type": "I2T", "text": "no", "vqcode_256": json.dumps(CODES)},
    "codes are no JSON": {"data_type": "T2I", "text": "x", "vqcode_256": "[["},
    "codes are ragged": {"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2], [3]]"},
    "codes are negative": {"data_type": "T2I", "text": "x", "vqcode_256": "[[-1]]"},
    "codes are no square": {"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2]]"},
    "turns are no JSON": {"data_type": "mllm_finetune", "text": "hello"},
    "mmc4 names no text": {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]},
    "mmc4 is no list": {"text_list": "x", "image_info": []},
    "obelics differs": {"texts": ["x"], "images": []},
    "obelics has both": {"texts": ["x"], "images": ["a.png"]},
    "class is a word": {"image": "a.png", "class": "cat"},
    "text is empty": {"text": " "},
    "text is a number": {"text": 3},
}


def test_a_broken_record_is_refused() -> None:
    for name, fields in BROKEN.items():
        with pytest.raises(BadRecord):
            read(fields)
            pytest.fail(name)


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
