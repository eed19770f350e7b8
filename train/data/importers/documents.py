"""Documents: text alone, or text and pictures in order.

    text       {"text": "..."}
    MMC4       {"text_list": [...], "image_info": [{"image_name": "a.png", "matched_text_index": 0}, ...]}
    OBELICS    {"texts": ["...", null], "images": [null, "a.png"]}     at each place a text or a picture

MMC4 places a picture before the text that it matches; of equal indices the order in `image_info` holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllm.conversation import TextPart
from train.data.importers.pictures import find_picture
from train.data.records import BadRecord, Record, RecordPart, document_record


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
