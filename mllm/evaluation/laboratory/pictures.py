"""The pictures to measure on: of a folder with all below it, or of a tar archive, always in the order of their names.

In: a path. Out: names and opened pictures, one at a time, so that a large set needs no memory.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from tokenizer.image_processor import open_image
from tokenizer.picture_folders import SUFFIXES

T = TypeVar("T")


class Named(NamedTuple):
    """A picture and where it comes from."""

    name: str
    image: Image.Image


def count_pictures(source: Path) -> int:
    """How many pictures there are; none is an error."""
    if source.is_dir():
        number = len(files_below(source))
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            number = sum(is_picture(name) for name in archive.getnames())
    else:
        raise FileNotFoundError(f"there are no pictures at {source}: found no folder and no tar archive; give one")
    if not number:
        raise ValueError(f"{source} holds no picture: found none of {', '.join(sorted(SUFFIXES))}; give another one")
    return number


def read_pictures(source: Path, *, limit: int | None = None) -> Iterator[Named]:
    """The pictures in order."""
    if source.is_dir():
        for path in files_below(source)[:limit]:
            yield Named(str(path.relative_to(source)), open_image(path))
        return
    with tarfile.open(source) as archive:
        members = sorted((m for m in archive if m.isfile() and is_picture(m.name)), key=lambda member: member.name)
        for member in islice(members, limit):
            file = archive.extractfile(member)
            assert file is not None, "only files were kept"
            yield Named(member.name, open_member(file.read(), f"{source}, {member.name}"))


def open_member(data: bytes, where: str) -> Image.Image:
    """A picture of an archive."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where} does not open: found {type(error).__name__}; take it out or mend it") from error
    return image


def files_below(folder: Path) -> list[Path]:
    """Picture files of a folder and its folders."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and is_picture(path.name))


def is_picture(name: str) -> bool:
    """By the ending."""
    return Path(name).suffix.lower() in SUFFIXES


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
