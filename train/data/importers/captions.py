"""Pictures with captions.

tar       WebDataset, as DataComp: 000.jpg, 000.txt and, if it is there, 000.json (not used)
lines     {"image": "a.jpg", "caption": "a red circle"}; also file_name, path / text, prompt (`imagefolder`)
folder    a.jpg and a.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.data.importers.containers import PICTURE_ENDINGS
from train.data.importers.pictures import find_picture
from train.data.records import BadRecord, PictureBytes, Record, pair_record

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
