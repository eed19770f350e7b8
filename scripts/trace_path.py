"""Which of our files and functions a command runs through.

    python scripts/trace_path.py draw "a red circle" -o a.png
    python scripts/trace_path.py --list evaluate world --count 1 --jobs ask

Runs `mllm` with these arguments in this process under a profiler and counts files and functions of the four packages
that were called; `--list` prints them in the order of their first call. Importing a module does not count.
"""

from __future__ import annotations

import inspect
import sys
import threading
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = tuple(f"{ROOT / name}/" for name in ("mllm", "tokenizer", "train", "demo"))


def trace(args: list[str]) -> dict[tuple[str, str], None]:
    """(file, function) of every call inside our packages, in the order of the first call."""
    from mllm.__main__ import main

    called: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or class
        if event == "call" and is_function and code.co_filename.startswith(PACKAGES):
            called.setdefault((str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        status = main(args)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    if status:
        raise SystemExit(status)
    return called


def run() -> None:
    args = sys.argv[1:]
    lists = args[:1] == ["--list"]
    called = trace(args[lists:])
    if lists:
        for file, function in called:
            print(f"{file}  {function}")
    print(f"{len({file for file, _ in called})} files, {len(called)} functions")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    run()
