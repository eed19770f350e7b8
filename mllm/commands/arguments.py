"""Arguments that several verbs share, and a parser whose complaints are one sentence.

In: words. Out: argparse namespaces, and keyword arguments for the pipeline. A setting that was not typed stays out of
them, so that the model's own default holds. Knows no model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

LOADING = ("device", "dtype", "quantization", "device_map", "embedding_context")
SAMPLING = ("seed", "guidance", "temperature", "top_k", "top_p", "redraws")


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises ValueError where the standard one prints the usage and exits."""

    def __init__(self, prog: str, *, description: str | None, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def add_model_arguments(parser: argparse.ArgumentParser, *, language_model: bool = True) -> None:
    """Which model, and where and how it computes.

    Args:
        language_model: the verb uses it, and not the image tokenizer alone.
    """
    parser.add_argument("--model", metavar="FOLDER", help="folder of a model (default: the model of the toolkit)")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda (default: a GPU if there is one)")
    if not language_model:
        return
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: by the device)")
    parser.add_argument("--quantization", metavar="NAME", help="fewer bits for the weights: int8, int4, nf4 or bnb8")
    parser.add_argument("--device-map", metavar="auto", help="auto spreads the layers over all GPUs, then the CPU")
    parser.add_argument(
        "--embedding-context",
        metavar="NAME",
        help="prefix: as trained; current: as upstream's scripts draw (default: the model's)",
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How to load the model, as far as it was typed."""
    typed = vars(arguments)
    return {name: typed[name] for name in LOADING if typed.get(name) is not None}


def add_outline_argument(parser: argparse.ArgumentParser) -> None:
    """What will be where, for models that write that down before they draw."""
    parser.add_argument(
        "--outline",
        metavar="TEXT",
        help='what is where, in place of the model\'s own words, such as "white, large red circle 35"',
    )


def add_seed_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="the same seed gives the same result (default: a new one each time)")


def add_sampling_arguments(parser: argparse.ArgumentParser, *, guidance: bool = True) -> None:
    """How to choose among what is probable; the defaults are the model's."""
    if guidance:
        parser.add_argument("--guidance", type=float, help="how closely pictures follow the words; 1 is off")
        parser.add_argument(
            "--redraws",
            type=int,
            metavar="N",
            help="how often to draw a picture again at most that does not show what its outline says",
        )
    parser.add_argument("--temperature", type=float, help="below 1 is safer, above 1 is bolder")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K most probable only")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose among the most probable that add up to P")


def sampling_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were typed."""
    typed = vars(arguments)
    return {name: typed[name] for name in SAMPLING if typed.get(name) is not None}


def picture_path(word: str) -> Path:
    """A file to write a picture to: its ending names a format, and its folder exists."""
    path = Path(word)
    if path.suffix.lower() not in writable_endings():
        raise argparse.ArgumentTypeError(f"{word!r} does not end like a picture file; use .png, .jpg or .webp")
    return in_existing_folder(path)


def add_json_argument(parser: argparse.ArgumentParser, *, what: str) -> None:
    """Where results also go as a file; a folder that is not there is noticed before the work and not after it."""
    parser.add_argument("--json", type=in_existing_folder, metavar="FILE", help=f"also write the {what} to a file")


def in_existing_folder(word: str | Path) -> Path:
    """A file to write, in a folder that is there."""
    path = Path(word)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} does not exist; make it first")
    return path


def writable_endings() -> set[str]:
    """File name endings that pictures can be written to."""
    Image.init()
    return {ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE}


def picture_size(word: str) -> tuple[int, int]:
    """`192x128` as (width, height)."""
    width, cross, height = word.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{word!r} is not a size; write width x height, such as 256x256")
    return int(width), int(height)


def positive_count(word: str) -> int:
    """A whole number, one or more."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a count; use a whole number, 1 or more")
    return int(word)


def numbered(path: Path, *, count: int) -> list[Path]:
    """`a.png` for one picture; `a-1.png`, `a-2.png` ... for several."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]
