"""Folders `checkpoint-STEP`: written whole or not at all, the newest few kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

PREFIX = "checkpoint-"


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder was written at."""
    return int(folder.name.removeprefix(PREFIX))


def checkpoints(output: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in output.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def write_checkpoint(output: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Let `write` fill a new folder, give it its name when it is complete, drop all but the newest `keep`."""
    final = output / f"{PREFIX}{step}"
    unfinished = output / f".unfinished-{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(unfinished, final)
    for old in checkpoints(output)[:-keep]:
        shutil.rmtree(old)
    return final
