"""Layouts of raw records: the fields of an item to a record, one function per format, and which format a file has.

    chat        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", ...}]},
                {"role": "assistant", "content": "A cat."}]}; `content` is a string or a list of items; an image is
                named in its item, or items are bare and the record has a list `images`
    llava       {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", ...}]}
    webdataset  samples of a tar, as DataComp has them: 000.jpg and 000.txt
    captions    {"image": "a.jpg", "caption": "a red circle"}, `imagefolder`, or a folder with a.jpg and a.txt
    classes     a folder with one sub-folder per class, {"image": "a.jpg", "class": 3}, or codes that LlamaGen extracted
    codes       records of UniTok and Liquid, whose images are codes already: `data_type`, `text`, `vqcode_*`
    mmc4        {"text_list": [...], "image_info": [{"image_name": "a.png", "matched_text_index": 0}, ...]}
    obelics     {"texts": ["...", null], "images": [null, "a.png"]}
    text        {"text": "..."}

Nothing is ever fetched from a network. Files are read in train/data/records.py.
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
from tokenizer.images import IMAGE_ENDINGS
from train.data.records import (
    BadRecord,
    ImageBytes,
    ImageFile,
    Record,
    RecordPart,
    TenViews,
    Turn,
    chat_record,
    document_record,
    pair_record,
    read_items,
)

IMAGE_KEYS = ("image", "file_name", "image_path", "path")
CAPTION_KEYS = ("caption", "text", "prompt")
MARKER = "<image>"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
UNUSED = "no"
"""What an unused field of Liquid and UniTok holds."""
CODES_PREFIX = "vqcode_"
MAX_CODE = 65_535  # shards hold uint16
MAX_TRIES = 100
"""Records at the beginning of a file that may be invalid before its format cannot be told."""


def read_chat(fields: dict[str, Any], folder: Path) -> Record:
    """A system message is put before the next user message; a single assistant message is a document."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRecord(f"messages must be a list of objects, got {type(messages).__name__}; fix the record")
    listed = iter(fields.get("images") or [])
    turns: list[Turn] = []
    before: tuple[RecordPart, ...] = ()
    for message in messages:
        parts = tuple(_content_parts(message.get("content"), listed, folder))
        match message.get("role"):
            case "system":
                before = (*before, *parts)
            case "user":
                turns.append(Turn("user", (*before, *parts)))
                before = ()
            case "assistant":
                turns.append(Turn("assistant", parts))
            case role:
                raise BadRecord(f"a role must be system, user or assistant, got {role!r}; fix the message")
    if num_left := len(list(listed)):
        raise BadRecord(f"messages must show all images, got {num_left} that none shows; add their items")
    if [turn.role for turn in turns] == ["assistant"]:
        return document_record(turns[0].parts)
    return chat_record(turns)


def _content_parts(content: Any, listed: Iterator[Any], folder: Path) -> Iterator[RecordPart]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    if not isinstance(content, list):
        raise BadRecord(f"content must be a string or a list, got {type(content).__name__}; fix the message")
    for item in content:
        match item:
            case {"type": "text", "text": str(text)}:
                yield TextPart(text)
            case {"type": "image" | "image_url", **rest}:
                yield find_image(_named_image(rest, listed), folder)
            case _:
                raise BadRecord(f"items of a message must be of type text or image, got {_short(item)}; fix it")


def _named_image(item: dict[str, Any], listed: Iterator[Any]) -> Any:
    """The image of an item; Parquet files hold every key in every item, mostly empty."""
    for key in ("image", "path", "url", "image_url", "bytes"):
        if item.get(key):
            return item if key == "bytes" else item[key]
    image = next(listed, None)
    if image is None:
        raise BadRecord("an image item must have an image, got no path and no image left in `images`; add it")
    return image


def read_llava(fields: dict[str, Any], folder: Path) -> Record:
    """`image` is one path or a list of them; without it the dialogue is text."""
    named = fields.get("image", fields.get("images"))
    names = [] if named is None else named if isinstance(named, list) else [named]
    return chat_record(_llava_turns(fields.get("conversations"), [find_image(name, folder) for name in names]))


def _llava_turns(conversation: Any, images: list[Any]) -> list[Turn]:
    """Turns of LLaVA's list, with the images at their markers."""
    if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
        raise BadRecord(f"conversations must be a list of turns, got {type(conversation).__name__}; fix the record")
    values = [str(turn.get("value", "")) for turn in conversation]
    num_markers = sum(value.count(MARKER) for value in values)
    if num_markers != len(images):
        raise BadRecord(
            f"the dialogue must have one <image> per image, got {num_markers} for {len(images)} images; "
            "add or remove <image> so that they match"
        )
    left = iter(images)
    turns: list[Turn] = []
    system = ""
    for turn, value in zip(conversation, values, strict=True):
        match SPEAKERS.get(str(turn.get("from"))):
            case "system":
                system = value.strip() + "\n"
            case "user":
                turns.append(Turn("user", tuple(_llava_parts(system + value, left))))
                system = ""
            case "assistant":
                turns.append(Turn("assistant", tuple(_llava_parts(value, left))))
            case _:
                raise BadRecord(f"a speaker must be human or gpt, got {turn.get('from')!r}; fix the turn")
    return turns


def _llava_parts(value: str, images: Iterator[Any]) -> Iterator[RecordPart]:
    for index, text in enumerate(value.split(MARKER)):
        if index:
            yield next(images)
        if text.strip():
            yield TextPart(text.strip())


def read_webdataset(fields: dict[str, Any], folder: Path) -> Record:
    """An image and its .txt; other members, such as .json, are not used."""
    endings = [ending for ending in fields if ending != "__key__"]
    image = next((ending for ending in endings if f".{ending}" in IMAGE_ENDINGS), None)
    if image is None or "txt" not in fields:
        raise BadRecord(f"a sample must have an image and a .txt, got {', '.join(endings)}; add what is missing")
    caption = fields["txt"].decode("utf-8", errors="replace")
    return pair_record([caption], ImageBytes(fields[image], f"{fields['__key__']}.{image}"))


def read_captions(fields: dict[str, Any], folder: Path) -> Record:
    """An image and its caption."""
    caption = next((fields[key] for key in CAPTION_KEYS if isinstance(fields.get(key), str)), None)
    if caption is None:
        raise BadRecord(f"an image must have a caption, got {sorted(fields)}; add one of {', '.join(CAPTION_KEYS)}")
    return pair_record([caption], find_image(_first_image(fields), folder))


def read_classes(fields: dict[str, Any], folder: Path) -> Record:
    """A class and ten views of its image, as LlamaGen crops them, or the codes of any number of views."""
    label = fields.get("class", fields.get("subfolder"))
    if not isinstance(label, int) or label < 0:
        raise BadRecord(f"a class must be an integer >= 0, got {label!r}; put images into one sub-folder per class")
    views: tuple[RecordPart, ...]
    if "codes" in fields:
        views = tuple(_codes_part(codes_KN, "codes", fields) for codes_KN in fields["codes"])
    else:
        views = (TenViews(find_image(_first_image(fields), folder)),)
    return Record("class", (Turn("user", (TextPart(str(label)),)), Turn("assistant", views)))


def _first_image(fields: dict[str, Any]) -> Any:
    return next((fields[key] for key in IMAGE_KEYS if fields.get(key)), None)


def read_codes(fields: dict[str, Any], folder: Path) -> Record:
    """T2I: `text` (short) or `InVL_caption` (long) to the image; I2T: the image to one of them; image_text: both ways;
    mllm_pretrain, mllm_finetune: `text` is a JSON list of LLaVA's turns; anything else: `text` is a document."""
    kind = fields.get("data_type")
    captions = [str(fields[key]) for key in ("text", "InVL_caption") if fields.get(key, UNUSED) not in (UNUSED, None)]
    codes = _find_codes(fields)
    match kind:
        case "T2I" | "image_text" | "I2T" if codes is None:
            raise BadRecord(f"a record of kind {kind} must have codes, got {sorted(fields)}; add {CODES_PREFIX}256")
        case "T2I":
            return pair_record(captions, codes, kind="draw")
        case "image_text":
            return pair_record(captions, codes)
        case "I2T":
            if not captions:
                raise BadRecord("an image must have a caption, got 'no' in text and InVL_caption; write one")
            return chat_record([Turn("user", (codes,)), Turn("assistant", (TextPart(captions[-1]),))])
        case "mllm_pretrain" | "mllm_finetune":
            return chat_record(_llava_turns(_from_json(fields.get("text"), "text"), [] if codes is None else [codes]))
        case _:
            return document_record([TextPart(caption) for caption in captions[:1]])


def _find_codes(fields: dict[str, Any]) -> CodesPart | None:
    """The codes of a record: a JSON string of K lists of N numbers, or of one list (one codebook)."""
    names = [name for name in fields if name.startswith(CODES_PREFIX) and fields[name] not in (UNUSED, None, "", [])]
    if not names:
        return None
    values = fields[names[0]]
    try:
        codes = np.atleast_2d(np.array(_from_json(values, names[0]) if isinstance(values, str) else values))
    except ValueError as error:
        if isinstance(error, BadRecord):
            raise
        raise BadRecord(f"{names[0]} must be K lists of the same length: {error}; fix the record") from error
    return _codes_part(codes, names[0], fields)


def _codes_part(codes_KN: np.ndarray, name: str, fields: dict[str, Any]) -> CodesPart:
    is_table = codes_KN.ndim == 2 and codes_KN.dtype.kind in "iu"
    if not is_table or codes_KN.min(initial=0) < 0 or codes_KN.max(initial=0) > MAX_CODE:
        raise BadRecord(f"{name} must be K lists of integers from 0 to {MAX_CODE}, got shape {codes_KN.shape}; fix it")
    return CodesPart(codes_KN.astype(np.uint16), _grid(codes_KN.shape[1], fields))


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
            f"width and height must be those of an image of {num_positions} positions, got {fields.get('width')!r} and "
            f"{fields.get('height')!r}; give both in pixels"
        )
    return rows, columns


def _from_json(text: Any, name: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{name} must be valid JSON: {error}; fix the record") from error


def read_mmc4(fields: dict[str, Any], folder: Path) -> Record:
    """Each image comes before the text that it matches; of equal indices the order in `image_info` holds."""
    texts, images = _lists(fields, "text_list", "image_info")
    before: dict[int, list[RecordPart]] = {}
    for info in images:
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(texts):
            raise BadRecord(f"matched_text_index must be one of {len(texts)} texts, got {index!r}; fix image_info")
        before.setdefault(index, []).append(find_image(info.get("image_name") or info.get("raw_url"), folder))
    parts: list[RecordPart] = []
    for index, text in enumerate(texts):
        parts += [*before.get(index, []), TextPart(str(text))]
    return document_record(parts)


def read_obelics(fields: dict[str, Any], folder: Path) -> Record:
    """At each index of the two lists a text or an image."""
    texts, images = _lists(fields, "texts", "images")
    if len(texts) != len(images):
        raise BadRecord(f"texts and images must have one length, got {len(texts)} and {len(images)}; fill with null")
    parts: list[RecordPart] = []
    for index, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise BadRecord(f"texts and images must hold one of the two at index {index}, got both or none; fix them")
        parts.append(TextPart(str(text)) if image is None else find_image(image, folder))
    return document_record(parts)


def _lists(fields: dict[str, Any], *names: str) -> list[list[Any]]:
    for name in names:
        if not isinstance(fields.get(name), list):
            raise BadRecord(f"{name} must be a list, got {type(fields.get(name)).__name__}; fix the record")
    return [fields[name] for name in names]


def read_text(fields: dict[str, Any], folder: Path) -> Record:
    """A plain text."""
    text = fields.get("text")
    if not isinstance(text, str):
        raise BadRecord(f"text must be a string, got {type(text).__name__}; fix the record")
    return document_record([TextPart(text)])


IMPORTERS: dict[str, Callable[[dict[str, Any], Path], Record]] = {
    "chat": read_chat,
    "llava": read_llava,
    "webdataset": read_webdataset,
    "captions": read_captions,
    "classes": read_classes,
    "codes": read_codes,
    "mmc4": read_mmc4,
    "obelics": read_obelics,
    "text": read_text,
}
"""By format: the fields of an item and the folder of relative image paths to a record."""


def find_format(path: Path) -> str:
    """The format of a file, by its first valid record; an empty file is taken for text."""
    for number, item in enumerate(read_items(path)):
        try:
            return format_of(item.fields())
        except BadRecord as error:
            if number + 1 == MAX_TRIES:
                raise ValueError(
                    f"the format of {path} must be recognisable: {error}; name it with --format"
                ) from error
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
    if names & set(IMAGE_KEYS) and names & set(CAPTION_KEYS):
        return "captions"
    if "class" in names and names & {*IMAGE_KEYS, "codes"}:
        return "classes"
    if "text" in names:
        return "text"
    raise BadRecord(f"a record must have the keys of a format, got {sorted(names)}; name the format with --format")


def find_image(value: Any, folder: Path) -> ImageFile | ImageBytes:
    """The image that a record names.

    Args:
        value: a path, a URL, bytes, or a mapping with `bytes`, `path`, `url` or `image` (as `datasets` writes images).
        folder: of relative paths. The file of a URL is looked for there as HOST/PATH (as `wget --force-directories`
            stores it) and by its last name.
    """
    match value:
        case bytes():
            return ImageBytes(value, "in the record")
        case str() if value.startswith("data:"):
            head, _, body = value.partition(",")
            if not head.endswith(";base64"):
                raise BadRecord(f"a data URL must be base64, got {_short(head)}; encode the image as base64")
            return ImageBytes(_decode(body), "in a data URL")
        case str() if "://" in value:
            return _file_of_url(value, folder)
        case str() if value:
            return ImageFile(folder / _expanded(Path(value)))
        case {"bytes": bytes(data), **rest}:
            return ImageBytes(data, str(rest.get("path") or "in the record"))
        case {"bytes": str(text)}:
            return ImageBytes(_decode(text), "in the record")
        case dict():
            for key in ("path", "image", "url"):
                if value.get(key):
                    return find_image(value[key], folder)
    raise BadRecord(f"an image must be a path, bytes, or a URL that is on disk, got {_short(value)}; name its file")


def _expanded(path: Path) -> Path:
    """With the home folder for ~; a ~ that begins no user's name is part of a name."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadRecord(f"the bytes of an image must be base64: {error}; encode them as base64") from error


def _file_of_url(url: str, folder: Path) -> ImageFile:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme == "file":
        return ImageFile(Path(path))
    inside = folder / parts.netloc / path.lstrip("/")
    for candidate in (inside, folder / Path(path).name):
        with suppress(OSError):  # such as a name that is too long for a file
            if folder.resolve() in candidate.resolve().parents and candidate.is_file():
                return ImageFile(candidate)
    raise BadRecord(f"the image of a URL must be on disk, got {url} but no {inside}; download it, nothing is fetched")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
