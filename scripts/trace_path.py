"""Which of our files and functions a command runs through, in the order of their first calls.

    python scripts/trace_path.py draw "a red circle" -o a.png

The last line counts them. Lambdas, comprehensions, imports, other processes and an
environment in the folder do not count.
"""

import inspect
import sys
import threading
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = Path(sys.prefix).resolve()  # `make` puts it into ROOT
sys.path.insert(0, str(ROOT))
from mllm.cli.main import main  # noqa: E402

called: dict[tuple[str, str], None] = {}


def note(frame: FrameType, event: str, argument: object) -> None:
    code, path = frame.f_code, Path(frame.f_code.co_filename)
    is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")  # <lambda>, <listcomp> ...
    if event == "call" and is_function and path.is_relative_to(ROOT) and not path.is_relative_to(ENVIRONMENT):
        called.setdefault((str(path.relative_to(ROOT)), code.co_qualname))


threading.setprofile(note)
sys.setprofile(note)
status = main(sys.argv[1:])
sys.setprofile(None)
for file, function in called:
    print(f"{file}  {function}")
print(f"{len({file for file, _ in called})} files, {len(called)} functions")
sys.exit(status)
