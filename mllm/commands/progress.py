"""How far a picture is, on one line of the terminal that is wiped when it is done; nothing where nobody looks."""

from __future__ import annotations

import sys
from typing import TextIO

from mllm.pipeline import Event, ImageDone, ImageProgress

WIPE = "\r\033[K"


class Progress:
    """Give it the events of a request."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.is_shown = self.stream.isatty()

    def show(self, event: Event) -> None:
        """Show the share of the picture that is done."""
        if not self.is_shown:
            return
        match event:
            case ImageProgress(done=done, total=total):
                print(f"{WIPE}drawing {100 * done // total} %", end="", file=self.stream, flush=True)
            case ImageDone():
                print(WIPE, end="", file=self.stream, flush=True)
