"""The formats by name, and which of them a file has.

In: an item of a file. Out: its record. The one place that knows all importers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.data.importers.captions import CAPTION_KEYS, PICTURE_KEYS, read_pair, read_webdataset
from train.data.importers.chat_messages import read_chat
from train.data.importers.code_records import CODES_PREFIX, read_codes_record
from train.data.importers.containers import read_items
from train.data.importers.documents import read_mmc4, read_obelics, read_text
from train.data.importers.llava import read_llava
from train.data.records import BadRecord, Record

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
