"""The formats by name, and which of them a file has.

In: an item of a file. Out: its record. The one place that knows all importers.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from mllm.conversation import CodesPart, TextPart
from train.data.records import (
    PICTURE_ENDINGS,
    BadRecord,
    Picture,
    PictureBytes,
    PictureFile,
    Record,
    RecordPart,
    Turn,
    chat_record,
    document_record,
    pair_record,
    read_items,
)

# From what a record says about a picture to the picture: a path, bytes, or a URL whose file is already on disk.
#
# Nothing is ever fetched from a network. A relative path is looked for below the picture folder (by default the folder
# of
# the record file). The file of a URL is looked for there as HOST/PATH (as `wget --force-directories` stores it) and by
# its last name.


def find_picture(value: Any, folder: Path) -> Picture:
    """The picture that a record names.

    Args:
        value: a path, a URL, bytes, or a mapping with `bytes`, `path`, `url` or `image` (as `datasets` writes images).
    """
    match value:
        case bytes():
            return PictureBytes(value, "in the record")
        case str() if value.startswith("data:"):
            return _from_data_url(value)
        case str() if "://" in value:
            return _from_url(value, folder)
        case str() if value:
            return PictureFile(folder / _expanded(Path(value)))
        case {"bytes": bytes(data), **rest}:
            return PictureBytes(data, str(rest.get("path") or "in the record"))
        case {"bytes": str(text)}:
            return PictureBytes(_decode(text), "in the record")
        case dict():
            for key in ("path", "image", "url"):
                if value.get(key):
                    return find_picture(value[key], folder)
    raise BadRecord(f"a picture has no file: found {_short(value)}; give a path, bytes, or a URL that is on disk")


def _expanded(path: Path) -> Path:
    """With the home folder for ~; a ~ that begins no user's name is part of a name."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _from_data_url(value: str) -> PictureBytes:
    head, _, body = value.partition(",")
    if not head.endswith(";base64"):
        raise BadRecord(f"a data URL is not base64: found {_short(head)}; encode the picture as base64")
    return PictureBytes(_decode(body), "in a data URL")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadRecord(f"the bytes of a picture are not base64: {error}; encode them as base64") from error


def _from_url(url: str, folder: Path) -> PictureFile:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme == "file":
        return PictureFile(Path(path))
    inside = folder / parts.netloc / path.lstrip("/")
    for candidate in (inside, folder / Path(path).name):
        with suppress(OSError):  # such as a name that is too long for a file
            if folder.resolve() in candidate.resolve().parents and candidate.is_file():
                return PictureFile(candidate)
    raise BadRecord(f"a URL is not on disk: found {url}, but no {inside}; download it first, nothing is fetched here")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Pictures with captions.
#
# tar       WebDataset, as DataComp: 000.jpg, 000.txt and, if it is there, 000.json (not used)
# lines     {"image": "a.jpg", "caption": "a red circle"}; also file_name, path / text, prompt (`imagefolder`)
# folder    a.jpg and a.txt


PICTURE_KEYS = ("image", "file_name", "image_path", "path")
CAPTION_KEYS = ("caption", "text", "prompt")


def read_pair(fields: dict[str, Any], folder: Path) -> Record:
    """The record of a mapping."""
    picture = next((fields[key] for key in PICTURE_KEYS if fields.get(key)), None)
    caption = next((fields[key] for key in CAPTION_KEYS if isinstance(fields.get(key), str)), None)
    if caption is None:
        raise BadRecord(f"a picture has no caption: found {sorted(fields)}; add one of {', '.join(CAPTION_KEYS)}")
    return pair_record([caption], find_picture(picture, folder))


def read_webdataset(fields: dict[str, Any], folder: Path) -> Record:
    """The record of a sample of a tar."""
    name = fields["__key__"]
    endings = [ending for ending in fields if ending != "__key__"]
    picture = next((ending for ending in endings if "." + ending in PICTURE_ENDINGS), None)
    if picture is None or "txt" not in fields:
        raise BadRecord(f"a sample needs a picture and a .txt: found {', '.join(endings)}; add what is missing")
    caption = fields["txt"].decode("utf-8", errors="replace")
    return pair_record([caption], PictureBytes(fields[picture], f"{name}.{picture}"))


# Hugging Face chat messages.
#
#     {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text":
# "What?"}]},
#                   {"role": "assistant", "content": "A cat."}]}
#
# `content` is a string or a list of items. A picture is named in its item, or items are bare and the record has a list
# `images`. A system message is put before the first user message. A single assistant message is a document.


def read_chat(fields: dict[str, Any], folder: Path) -> Record:
    """The record of one line."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRecord(f"messages must be a list of objects: found {type(messages).__name__}; mend the record")
    listed = iter(fields.get("images") or [])
    turns: list[Turn] = []
    before: tuple[RecordPart, ...] = ()
    for message in messages:
        parts = tuple(_parts(message.get("content"), listed, folder))
        match message.get("role"):
            case "system":
                before = (*before, *parts)
            case "user":
                turns.append(Turn("user", (*before, *parts)))
                before = ()
            case "assistant":
                turns.append(Turn("assistant", parts))
            case role:
                raise BadRecord(f"unknown role: found {role!r}; use system, user or assistant")
    if (left := len(list(listed))) > 0:
        raise BadRecord(f"images and messages disagree: found {left} images that no message shows; add their items")
    if [turn.role for turn in turns] == ["assistant"]:
        return document_record(turns[0].parts)
    return chat_record(turns)


def _parts(content: Any, listed: Iterator[Any], folder: Path) -> Iterator[RecordPart]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    if not isinstance(content, list):
        raise BadRecord(f"content must be a string or a list: found {type(content).__name__}; mend the message")
    for item in content:
        match item:
            case {"type": "text", "text": str(text)}:
                yield TextPart(text)
            case {"type": "image" | "image_url", **rest}:
                yield find_picture(_named(rest, listed), folder)
            case _:
                raise BadRecord(f"unknown item in a message: found {str(item)[:80]}; use text and image items")


def _named(item: dict[str, Any], listed: Iterator[Any]) -> Any:
    """The picture of an item; Parquet files hold every key in every item, mostly empty."""
    for key in ("image", "path", "url", "image_url", "bytes"):
        if item.get(key):
            return item if key == "bytes" else item[key]
    picture = next(listed, None)
    if picture is None:
        raise BadRecord("an image item has no picture: found no path and no image left in `images`; add it")
    return picture


# LLaVA instruction data: a JSON array (or lines) of dialogues with `<image>` where a picture stands.
#
#     {"image": "a.jpg",
#      "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}
#
# `image` is one path or a list of them; without it the dialogue is text.


MARKER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_llava(fields: dict[str, Any], folder: Path) -> Record:
    """The record of one dialogue."""
    named = fields.get("image", fields.get("images"))
    names = [] if named is None else named if isinstance(named, list) else [named]
    return chat_record(turns_of(fields.get("conversations"), [find_picture(name, folder) for name in names]))


def turns_of(conversation: Any, pictures: list[Picture] | list[CodesPart]) -> list[Turn]:
    """Turns of LLaVA's list, with the pictures at their markers."""
    is_list = isinstance(conversation, list) and all(isinstance(turn, dict) for turn in conversation)
    if not is_list:
        raise BadRecord(f"conversations must be a list of turns: found {type(conversation).__name__}; mend the record")
    values = [str(turn.get("value", "")) for turn in conversation]
    num_markers = sum(value.count(MARKER) for value in values)
    if num_markers != len(pictures):
        raise BadRecord(
            f"the dialogue has {num_markers} image markers but {len(pictures)} images; "
            "add or remove <image> so that they match"
        )
    left = iter(pictures)
    turns: list[Turn] = []
    system = ""
    for turn, value in zip(conversation, values, strict=True):
        match ROLES.get(str(turn.get("from"))):
            case "system":
                system = value.strip() + "\n"
            case "user":
                turns.append(Turn("user", tuple(_parts_llava(system + value, left))))
                system = ""
            case "assistant":
                turns.append(Turn("assistant", tuple(_parts_llava(value, left))))
            case _:
                raise BadRecord(f"unknown speaker: found {turn.get('from')!r}; use human and gpt")
    return turns


def _parts_llava(value: str, pictures: Iterator[Any]) -> Iterator[RecordPart]:
    for index, text in enumerate(value.split(MARKER)):
        if index:
            yield next(pictures)
        if text.strip():
            yield TextPart(text.strip())


# Records of Liquid and UniTok, whose pictures are codes already: `data_type`, `text`, `vqcode_*`.
#
#     T2I              `text` (short) or `InVL_caption` (long) to the picture
#     I2T              the picture to `InVL_caption` or `text`
#     image_text       either way (Liquid)
#     mllm_pretrain, mllm_finetune     `text` is a JSON list of LLaVA turns
#     anything else    `text` is a document
#
# An unused field holds the string "no". Codes are a JSON string of K lists of N numbers (or one list: one codebook).


UNUSED = "no"
CODES_PREFIX = "vqcode_"
LARGEST_CODE = 65_535  # shards hold uint16


def read_codes_record(fields: dict[str, Any]) -> Record:
    """The record of one line."""
    kind = fields.get("data_type")
    captions = [str(fields[key]) for key in ("text", "InVL_caption") if fields.get(key, UNUSED) not in (UNUSED, None)]
    codes = read_codes(fields)
    match kind:
        case "T2I" | "image_text" | "I2T" if codes is None:
            raise BadRecord(f"a record of kind {kind} has no codes: found {sorted(fields)}; add {CODES_PREFIX}256")
        case "T2I":
            return pair_record(captions, codes, kind="draw")
        case "image_text":
            return pair_record(captions, codes)
        case "I2T":
            if not captions:
                raise BadRecord("a picture has no caption: found 'no' in text and InVL_caption; write one")
            return chat_record([Turn("user", (codes,)), Turn("assistant", (TextPart(captions[-1]),))])
        case "mllm_pretrain" | "mllm_finetune":
            return chat_record(turns_of(_from_json(fields.get("text"), "text"), [] if codes is None else [codes]))
        case _:
            return document_record([TextPart(caption) for caption in captions[:1]])


def read_codes(fields: dict[str, Any]) -> CodesPart | None:
    """The codes of a record, with their grid."""
    names = [name for name in fields if name.startswith(CODES_PREFIX) and fields[name] not in (UNUSED, None, "", [])]
    if not names:
        return None
    values = fields[names[0]]
    try:
        codes = np.atleast_2d(np.array(_from_json(values, names[0]) if isinstance(values, str) else values))
    except ValueError as error:
        raise BadRecord(f"{names[0]} is no table of codes: {error}; give K lists of the same length") from error
    if (
        codes.ndim != 2
        or codes.dtype.kind not in "iu"
        or codes.min(initial=0) < 0
        or codes.max(initial=0) > LARGEST_CODE
    ):
        raise BadRecord(f"{names[0]} is no table of codes: found shape {codes.shape}; give K lists of whole numbers")
    return CodesPart(codes.astype(np.uint16), _grid(codes.shape[1], fields))


def _grid(num_positions: int, fields: dict[str, Any]) -> tuple[int, int]:
    """A square, or the shape of `width` and `height` in pixels."""
    side = math.isqrt(num_positions)
    if side * side == num_positions:
        return side, side
    try:
        width, height = int(fields["width"]), int(fields["height"])
        patch = math.isqrt(width * height // num_positions)
        rows, columns = height // patch, width // patch
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        rows = columns = 0
    if rows * columns != num_positions:
        raise BadRecord(
            f"{num_positions} positions are no square: found width {fields.get('width')!r} and height "
            f"{fields.get('height')!r}; give both in pixels"
        )
    return rows, columns


def _from_json(text: Any, name: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{name} is no JSON: {error}; mend the record") from error


# Documents: text alone, or text and pictures in order.
#
#     text       {"text": "..."}
#     MMC4       {"text_list": [...], "image_info": [{"image_name": "a.png", "matched_text_index": 0}, ...]}
#     OBELICS    {"texts": ["...", null], "images": [null, "a.png"]}     at each place a text or a picture
#
# MMC4 places a picture before the text that it matches; of equal indices the order in `image_info` holds.


def read_text(fields: dict[str, Any]) -> Record:
    """A plain text."""
    text = fields.get("text")
    if not isinstance(text, str):
        raise BadRecord(f"a text must be a string: found {type(text).__name__}; mend the field `text`")
    return document_record([TextPart(text)])


def read_mmc4(fields: dict[str, Any], folder: Path) -> Record:
    """A document of MMC4."""
    texts, pictures = _lists(fields, "text_list", "image_info")
    before: dict[int, list[RecordPart]] = {}
    for info in pictures:
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(texts):
            raise BadRecord(f"matched_text_index names no text: found {index!r} of {len(texts)}; mend image_info")
        named = info.get("image_name") or info.get("raw_url")
        before.setdefault(index, []).append(find_picture(named, folder))
    parts: list[RecordPart] = []
    for index, text in enumerate(texts):
        parts += [*before.get(index, []), TextPart(str(text))]
    return document_record(parts)


def read_obelics(fields: dict[str, Any], folder: Path) -> Record:
    """A document of OBELICS."""
    texts, pictures = _lists(fields, "texts", "images")
    if len(texts) != len(pictures):
        raise BadRecord(f"texts and images differ in length: found {len(texts)} and {len(pictures)}; fill with null")
    parts: list[RecordPart] = []
    for place, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        if (text is None) == (picture is None):
            raise BadRecord(f"a place must hold a text or a picture: found both or none at {place}; mend the lists")
        parts.append(TextPart(str(text)) if picture is None else find_picture(picture, folder))
    return document_record(parts)


def _lists(fields: dict[str, Any], *names: str) -> list[list[Any]]:
    for name in names:
        if not isinstance(fields.get(name), list):
            raise BadRecord(f"{name} must be a list: found {type(fields.get(name)).__name__}; mend the record")
    return [fields[name] for name in names]


Importer = Callable[[dict[str, Any], Path], Record]

IMPORTERS: dict[str, Importer] = {
    "chat": read_chat,
    "llava": read_llava,
    "webdataset": read_webdataset,
    "captions": read_pair,
    "codes": lambda fields, folder: read_codes_record(fields),
    "mmc4": read_mmc4,
    "obelics": read_obelics,
    "text": lambda fields, folder: read_text(fields),
}
MAX_TRIES = 100
"""Records at the beginning of a file that may be broken before nobody can tell its format."""


def find_format(path: Path) -> str:
    """The format of a file, by its first sound record; an empty file is taken for text."""
    for number, item in enumerate(read_items(path)):
        try:
            return format_of(item.fields())
        except BadRecord as error:
            if number + 1 == MAX_TRIES:
                raise ValueError(f"cannot tell the format of {path}: {error}; name it with --format") from error
    return "text"


def format_of(fields: dict[str, Any]) -> str:
    """The format of one record, by its keys."""
    names = set(fields)
    if "__key__" in names:
        return "webdataset"
    if "data_type" in names or any(name.startswith(CODES_PREFIX) for name in names):
        return "codes"
    for name, keys in {
        "llava": {"conversations"},
        "chat": {"messages"},
        "mmc4": {"text_list", "image_info"},
        "obelics": {"texts", "images"},
    }.items():
        if keys <= names:
            return name
    if names & set(PICTURE_KEYS) and names & set(CAPTION_KEYS):
        return "captions"
    if "text" in names:
        return "text"
    raise BadRecord(f"no format has these keys: found {sorted(names)}; name it with --format")
