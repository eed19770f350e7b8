"""Writing a file whole or not at all: readers, a second writer and a crash never see half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"
"""Ending of a file's name while it is written."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the path to write to, in the same folder; at the end of the block the file gets its own name.

    Its content has reached the disk by then, so that a power cut cannot leave the name without it. After an error, an
    older file of that name is what it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
