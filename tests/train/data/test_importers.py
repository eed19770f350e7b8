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
from train.data.records import BadRecord, PictureBytes, PictureFile, Record

CODES = [[1, 2, 3, 4], [5, 6, 7, 8]]


def outline(record: Record) -> list[tuple[str, list[Any]]]:
    """Roles and parts; pictures by the names of their files, codes by their first column and grid."""

    def short(part: Any) -> Any:
        match part:
            case TextPart(text):
                return text
            case PictureFile(path):
                return path.name
            case PictureBytes(data=data):
                return len(data)
            case CodesPart(codes, grid):
                return codes[:, 0].tolist(), grid

    return [(turn.role, [short(part) for part in turn.parts]) for turn in record.turns]


def read(fields: dict[str, Any], folder: Path = Path("pictures")) -> Record:
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
    "llava without a picture": (
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
    "liquid picture that is wide": (
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
    "text": ({"text": "words", "id": 3}, "document", [("assistant", ["words"])]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_record_is_read(name: str) -> None:
    fields, kind, expected = GOOD[name]
    record = read(fields)
    assert (record.kind, outline(record)) == (kind, expected)


TURNS = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown keys": ({"a": 1}, "no format has these keys"),
    "chat is no list": ({"messages": "hi"}, "messages must be a list"),
    "chat ends with the user": ({"messages": [{"role": "user", "content": "hi"}]}, "roles must alternate"),
    "chat has a tool": ({"messages": [{"role": "tool", "content": "hi"}]}, "unknown role: found 'tool'"),
    "chat has a video": (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "unknown item in a message",
    ),
    "chat content is a number": ({"messages": [{"role": "user", "content": 3}]}, "content must be a string or a list"),
    "chat lacks a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "an image item has no picture",
    ),
    "chat has pictures left": (
        {"messages": [{"role": "assistant", "content": "hi"}], "images": ["a.png"]},
        "found 1 images that no message shows",
    ),
    "chat is silent": (
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "hi"}]},
        "a message is empty",
    ),
    "llava lacks a picture": ({"conversations": TURNS}, "1 image markers but 0 images"),
    "llava has a narrator": ({"conversations": [{"from": "narrator", "value": "x"}]}, "unknown speaker"),
    "llava is no list": ({"conversations": "x"}, "conversations must be a list"),
    "tar without caption": ({"__key__": "0", "jpg": b""}, "needs a picture and a .txt: found jpg"),
    "caption is empty": ({"image": "a.png", "caption": " "}, "a picture has no caption"),
    "caption is a number": ({"image": "a.png", "text": 3}, "a picture has no caption"),
    "picture is a number": ({"image": 3, "caption": "x"}, "a picture has no file: found 3"),
    "bytes are no base64": ({"image": {"bytes": "?"}, "caption": "x"}, "not base64"),
    "data URL in plain": ({"image": "data:image/svg,x", "caption": "x"}, "not base64"),
    "URL is not on disk": ({"image": "https://a.org/b.png", "caption": "x"}, "download it first, nothing is fetched"),
    "no codes": ({"data_type": "T2I", "text": "x", "vqcode_256": "no"}, "has no codes"),
    "no caption": ({"data_type": "I2T", "text": "no", "vqcode_256": json.dumps(CODES)}, "a picture has no caption"),
    "codes are no JSON": ({"data_type": "T2I", "text": "x", "vqcode_256": "[["}, "vqcode_256 is no JSON"),
    "codes are ragged": ({"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2], [3]]"}, "no table of codes"),
    "codes are negative": ({"data_type": "T2I", "text": "x", "vqcode_256": "[[-1]]"}, "no table of codes"),
    "codes are no square": ({"data_type": "T2I", "text": "x", "vqcode_256": "[[1, 2]]"}, "2 positions are no square"),
    "turns are no JSON": ({"data_type": "mllm_finetune", "text": "hello"}, "text is no JSON"),
    "mmc4 names no text": (
        {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]},
        "matched_text_index names no text: found 1 of 1",
    ),
    "mmc4 is no list": ({"text_list": "x", "image_info": []}, "text_list must be a list"),
    "obelics differs": ({"texts": ["x"], "images": []}, "found 1 and 0"),
    "obelics has both": ({"texts": ["x"], "images": ["a.png"]}, "found both or none at 0"),
    "text is empty": ({"text": " "}, "a document is empty"),
    "text is a number": ({"text": 3}, "a text must be a string"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named_in_one_sentence(name: str) -> None:
    fields, sentence = BROKEN[name]
    with pytest.raises(BadRecord, match=sentence):
        read(fields)


def test_pictures_come_from_paths_bytes_and_urls_on_disk(tmp_path: Path) -> None:
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
        assert record.pictures[0].open().size == (5, 4), value


def test_a_url_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "pictures").mkdir()
    with pytest.raises(BadRecord, match="not on disk"):
        read({"image": "https://../../secret.png", "caption": "x"}, tmp_path / "pictures")


def test_a_picture_that_cannot_be_read_is_a_broken_record(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png()[:20])
    for value, sentence in (
        ("none.png", "no such file"),
        ("broken.png", "cannot read"),
        (b"nonsense", "cannot read"),
        ("~nobody-of-this-name/a.png", "no such file"),
        ("iVBORw0KGgo" * 500, "File name too long; give the path|no such file"),  # the bytes themselves, as text
        ("https://a.org/" + "d" * 5000, "not on disk"),
    ):
        with pytest.raises(BadRecord, match=sentence) as caught:
            read({"image": value, "caption": "x"}, tmp_path).pictures[0].open()
        assert len(str(caught.value)) < 400 or "://" in str(value)


def test_codes_keep_their_order() -> None:
    fields = {"data_type": "image_text", "text": "x", "vqcode_256": json.dumps(CODES)}
    part = read(fields).turns[1].parts[0]
    assert isinstance(part, CodesPart) and part.codes_KN.dtype == np.uint16 and part.codes_KN.tolist() == CODES
