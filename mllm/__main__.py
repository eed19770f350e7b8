"""The console command `mllm`, the same as `python -m mllm`: finds the verb, runs it, turns errors into one sentence.

In: the words typed after `mllm`. Out: an exit code; 0 done, 2 wrong input. Knows no verb's arguments and imports a verb
only when it is asked for, so `mllm --help` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mllm.files import TOOLKIT, version_of

WRONG_INPUT = 2
INTERRUPTED = 130

PACKAGES = ("mllm", "tokenizer", "train", "demo")
"""Our top-level packages. The names are common words, so another package or a file nearby may hide one."""

CHATTY = ("torchao", "torch.utils._pytree")
"""Loggers of libraries that warn at every start of what no user can change (kernels for other machines)."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A word after `mllm`."""

    module: str
    """Where its `main` is. A name, not an import: `demo` and `train` stand above `mllm`, which may not import them."""
    summary: str


VERBS = {
    "demo": Verb("demo.app", "chat with the model in the browser"),
    "draw": Verb("mllm.commands.draw", "draw pictures from a sentence"),
    "ask": Verb("mllm.commands.ask", "ask a question about one or more pictures"),
    "edit": Verb("mllm.commands.edit", "change a picture as told"),
    "chat": Verb("mllm.commands.chat", "chat with the model in the terminal"),
    "tokenize": Verb("mllm.commands.tokenize", "turn pictures into codes and back"),
    "prepare": Verb("train.data.prepare", "turn raw data into shards for training"),
    "train": Verb("train.run", "train a model from a recipe"),
    "merge": Verb("train.lora", "add a trained adapter to its model"),
    "evaluate": Verb("mllm.commands.evaluate", "measure a model"),
    "convert": Verb("mllm.commands.convert", "bring released checkpoints in, and write them back"),
    "benchmark": Verb("mllm.commands.benchmark", "measure speed and memory"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"mllm {version_of(TOOLKIT)}")
        return 0
    try:
        return run(words[0], words[1:])
    except BrokenPipeError:
        # The reader of our output left (`mllm ... | head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        if is_debug:
            raise
        print(f"mllm: {one_sentence(error)}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


def run(name: str, argv: list[str]) -> int:
    """Import the verb and hand it its words."""
    if name not in VERBS:
        raise ValueError(f"there is no verb {name!r}; use one of: {', '.join(VERBS)}")
    refuse_shadowed_packages()
    for library in CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    return importlib.import_module(VERBS[name].module).main(argv)


def refuse_shadowed_packages() -> None:
    """Two packages mixed into one program would fail far from the cause, so say it here."""
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        spec = find_spec(package)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != root / package / "__init__.py":
            raise ImportError(
                f"the package {package!r} of this toolkit is hidden: expected it in {root}, found "
                f"{found or 'nothing'}; uninstall or rename that one, or run from another folder"
            )


def one_sentence(error: BaseException) -> str:
    """The message of an error on one line; the class names it where there is no message."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror.lower()}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def overview() -> str:
    """What `mllm --help` prints."""
    verbs = "\n".join(f"  {name:<10}{verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: mllm VERB ...\n\n"
        "A unified model of text and images. Without --model, verbs use the small model of the toolkit.\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n"
        "  --help     this text; after a verb, the verb's own\n"
        "  --version  the version of the toolkit\n"
        "  --debug    with a verb: show the full traceback of an error\n\n"
        'example: mllm draw "a red circle on a white background" -o circle.png'
    )


if __name__ == "__main__":
    sys.exit(main())
