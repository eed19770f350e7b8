"""From what a record says about a picture to the picture: a path, bytes, or a URL whose file is already on disk.

Nothing is ever fetched from a network. A relative path is looked for below the picture folder (by default the folder of
the record file). The file of a URL is looked for there as HOST/PATH (as `wget --force-directories` stores it) and by
its last name.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from train.data.records import BadRecord, Picture, PictureBytes, PictureFile


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
