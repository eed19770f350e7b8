"""Folders `checkpoint-STEP`: written whole or not at all, the newest few kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

PREFIX = "checkpoint-"
UNFINISHED = "unfinished"
"""A file of this name in a checkpoint that many processes write: it does not count yet."""
UNFINISHED_PREFIX = ".unfinished-"
"""Beginning of the name of a folder that does not count."""


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder was written at."""
    return int(folder.name.removeprefix(PREFIX))


def checkpoints(output: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in output.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def write_checkpoint(output: Path, step: int, write: Callable[[Path], None], *, keep: int, state: PartialState) -> Path:
    """Let `write` fill a new folder, give it its name when it is complete, drop all but the newest `keep`.

    Args:
        state: of the processes that train together; all of them call this, all of them write into the folder, and
            the first one makes it, names it and tidies up.
    """
    final = output / f"{PREFIX}{step}"
    unfinished = unfinished_folder(output, step)
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    state.wait_for_everyone()
    write(unfinished)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        for old in checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    state.wait_for_everyone()
    return final


def mark_unfinished(folder: Path) -> None:
    """Say that a checkpoint is being written, before anything of it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()


def finish(folder: Path) -> None:
    """Say that a checkpoint is whole."""
    (folder / UNFINISHED).unlink()


def newest_checkpoint(output: Path) -> Path | None:
    """The newest finished checkpoint, if there is one."""
    finished = [path for path in checkpoints(output) if not (path / UNFINISHED).exists()]
    return finished[-1] if finished else None


def remove_unfinished(output: Path) -> None:
    """Delete what a killed run left behind. Renamed first, so that a half-deleted one never counts either."""
    for path in checkpoints(output):
        if (path / UNFINISHED).exists():
            os.replace(path, unfinished_folder(output, step_of(path)))
    for path in output.glob(f"{UNFINISHED_PREFIX}*"):
        shutil.rmtree(path)


def unfinished_folder(output: Path, step: int) -> Path:
    """Where a checkpoint lies that does not count."""
    return output / f"{UNFINISHED_PREFIX}{step}"
