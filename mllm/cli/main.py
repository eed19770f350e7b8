"""The console command `mllm`: one table of verbs, their options, and what each of them calls.

A verb is a function of parsed options, registered by `command` with its help and options. Errors of any verb become one
line on stderr and exit status 2. Importing this module imports neither torch nor transformers nor Pillow, so that help
is immediate; every verb imports what it needs after its options have been understood.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from mllm.files import TOOLKIT, kind_of, version_of

if TYPE_CHECKING:
    from mllm.pipeline import Pipeline

INVALID_INPUT = 2
MAX_MESSAGE = 800
INTERRUPTED = 130

PACKAGES = ("mllm", "tokenizer", "train", "demo")
"""Our top-level packages. The names are common words, so another package or a file nearby may hide one."""

DECODING_VERBS = ("draw", "ask", "edit", "chat", "demo", "tokenize")


Option = tuple[tuple[str, ...], dict[str, Any]]  # arguments of `argparse.ArgumentParser.add_argument`


def option(*flags: str, **settings: Any) -> Option:
    return flags, settings


def count_up_to(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or len(text) > 7 or not 0 < int(text) <= most:
            raise ArgumentTypeError(f"must be an integer from 1 to {most}, got {text!r}")
        return int(text)

    return read


positive_count, port_number = count_up_to(10**6), count_up_to(2**16 - 1)


def seed_number(text: str) -> int:
    if not text.isdecimal() or len(text) > 19 or int(text) >= 2**63:
        raise ArgumentTypeError(f"must be an integer from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def speculation(text: str) -> bool | int:
    return {"off": False, "on": True}[text] if text in ("off", "on") else positive_count(text)


def image_size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ArgumentTypeError(f"must be WIDTHxHEIGHT, such as 256x256, got {text!r}")
    return int(width), int(height)


def gigabytes(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise ArgumentTypeError(f"must be a size in GB above 0, got {text!r}")
    return size


def file_in_existing_folder(text: str | Path) -> Path:
    """A file to write; what cannot be written is noticed before the work, not after it."""
    path = Path(text)
    if path.exists() and not path.is_file():
        raise ArgumentTypeError(f"must be a regular file, got {kind_of(path)}: {str(path)!r}")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"folder {str(path.parent)!r} does not exist; create it first")
    return path


def image_file(text: str) -> Path:
    """An image file to write: its ending names a format, and its folder exists."""
    path = Path(text)
    if path.suffix.lower() not in writable_endings():
        raise ArgumentTypeError(f"must end like an image file (.png, .jpg, .webp ...), got {text!r}")
    return file_in_existing_folder(path)


def writable_endings() -> set[str]:
    """File name endings of the formats that Pillow writes."""
    from PIL import Image

    Image.init()
    return {ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE}


MODEL_FOLDER = [
    option("--model", metavar="FOLDER", help="model folder, Hub id, or name of a bundled model (default: tiny)"),
    option("--device", help="device to run on, such as cpu or cuda (default: a GPU if there is one)"),
]
MODEL = [
    *MODEL_FOLDER,
    option("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: depends on the device)"),
    option("--quantization", metavar="NAME", help="quantize the weights: int8, int4, nf4 or bnb8"),
    option("--device-map", metavar="auto", help="auto: distribute the layers over all GPUs, then the CPU"),
    option(
        "--embedding-context",
        metavar="NAME",
        help="context of image positions while drawing: prefix, as in training, or current, as in the upstream scripts "
        "(default: the model's)",
    ),
]
SEED = option("--seed", type=seed_number, help="random seed; the same seed gives the same result (default: random)")
FILTERS = [
    option("--temperature", type=float, help="below 1: more predictable; above 1: more varied"),
    option("--top-k", type=int, metavar="K", help="sample only from the K most probable choices"),
    option("--top-p", type=float, metavar="P", help="sample only from the most probable choices that add up to P"),
    option(
        "--speculate",
        type=speculation,
        metavar="off|on|N",
        help="speculative decoding, of N positions at once; does not change the result (default: on where faster)",
    ),
]
IMAGE_SAMPLING = [
    option("--guidance", type=float, help="scale of classifier-free guidance; 1 turns it off"),
    option(
        "--resamples",
        "--redraws",
        type=int,
        metavar="N",
        help="resample an image that contradicts its own plan, up to N times",
    ),
    *FILTERS,
]
PLAN = option(
    "--plan",
    "--outline",
    metavar="TEXT",
    help='draw according to this plan instead of the model\'s own, such as "white, large red circle 35"',
)
BEST_OF = option(
    "--best-of",
    type=positive_count,
    default=1,
    metavar="N",
    help="draw each image N times and keep the one that the model itself rates highest",
)
SIZE = option("--size", type=image_size, metavar="WxH", help="image size in pixels (default: the model's)")
IMAGE_OUTPUT = option("-o", "--output", type=image_file, required=True, metavar="FILE", help="output image file")
IMAGES_OUTPUT = option(
    "-o", "--output", required=True, metavar="PATH", help="output file for one image, or output folder for several"
)


def json_option(what: str) -> Option:
    return option("--json", type=file_in_existing_folder, metavar="FILE", help=f"also write the {what} to a file")


DTYPE_NAMES = ("float32", "bfloat16", "float16")
LOAD_OPTIONS = ("device", "dtype", "quantization", "device_map", "embedding_context")
SAMPLING_OPTIONS = ("seed", "guidance", "temperature", "top_k", "top_p", "resamples", "speculate")


def given(options: Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those options that were typed; what was not typed keeps the model's own default."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def load_pipeline(options: Namespace) -> Pipeline:
    """The pipeline of --model and the options beside it, loaded quietly; only a download shows progress."""
    from transformers.utils import logging as transformers_logging

    from mllm.checkpoint import find_model_folder
    from mllm.pipeline import Pipeline

    folder = find_model_folder(options.model)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return Pipeline.load(folder, **given(options, LOAD_OPTIONS))
    finally:
        bring_back_compiler()


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises ValueError where the standard one prints the usage and exits."""

    def __init__(self, prog: str, *, description: str, example: str, options: Sequence[Option] = ()) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for flags, settings in options:
            self.add_argument(*flags, **settings)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


class Command(NamedTuple):
    """A verb, or one of its sub-commands such as `tokenize encode`."""

    run: Callable[[Namespace], int | None]
    summary: str
    example: str
    options: tuple[Option, ...]


COMMANDS: dict[str, Command] = {}


def command(name: str, summary: str, example: str, *options: Option) -> Callable[[Callable[[Namespace], Any]], Any]:
    """Register a function of parsed options as `mllm NAME`; it returns an exit status, None for 0."""

    def register(run: Callable[[Namespace], Any]) -> Callable[[Namespace], Any]:
        COMMANDS[name] = Command(run, summary, f"mllm {name} {example}", options)
        return run

    return register


VERBS = {
    "demo": ("chat with the model in the browser", "training"),
    "draw": ("draw images from a description", "generation"),
    "ask": ("ask a question about one or more images", "generation"),
    "edit": ("change an image following an instruction", "generation"),
    "chat": ("chat with the model in the terminal", "generation"),
    "tokenize": ("convert images to codes and back", "tokenizer"),
    "prepare": ("convert raw data to training shards", "training"),
    "train": ("train a model from a recipe", "training"),
    "merge": ("merge a trained adapter into its model", "training"),
    "evaluate": ("evaluate a model, or score and compare results", "evaluation"),
    "convert": ("import and export released checkpoints", "tokenizer"),
    "benchmark": ("measure speed and memory", "benchmark"),
}
"""Each verb, and the module of mllm/cli that registers it with `command`."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit status: 0 success, 2 invalid input, 3 declined, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"mllm {version_of(TOOLKIT)}")
        return 0
    if argv is None:  # a process of its own
        set_up_process(words)
    try:
        return run(words)
    except BrokenPipeError:
        # The reader of our output left (`mllm ... | head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        end_progress_bars()
        print(f"mllm: {one_line(error)}", file=sys.stderr)
        return INVALID_INPUT
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


def set_up_process(words: list[str]) -> None:
    """What must be set before torch and transformers are imported, for this process alone.

    Idle threads wait without spinning: on busy cores, OpenMP's spinning makes two threads slower than one. Verbs that
    only decode do without what transformers imports for training, other devices and other kinds of generation, half of
    its start-up time.
    """
    warnings.filterwarnings("ignore", module="PIL")  # about odd but readable image files
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if words[0] in DECODING_VERBS and not {"-h", "--help"} & set(words) and "WORLD_SIZE" not in os.environ:
        import_less(keep_accelerate=any(word.startswith(("--device-map", "--quantization")) for word in words))


def import_less(*, keep_accelerate: bool) -> None:
    """Import transformers' models without packages that they import at once and decoding never uses."""
    import torch
    from transformers import utils
    from transformers.utils import import_utils

    for package in ("scipy", "torchao", "torch_distributed", *(() if keep_accelerate else ("accelerate",))):
        for module in (utils, import_utils):
            setattr(module, f"is_{package}_available", lambda *_, **__: False)
    # torch's compiler, only for its decorators: while transformers is imported, they do nothing
    stand_in = ModuleType("torch._dynamo")
    stand_in.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]
    for name in ("disable", "assume_constant_result", "allow_in_graph"):
        setattr(stand_in, name, lambda function=None, *_, **__: function or (lambda decorated: decorated))
    sys.modules["torch._dynamo"] = torch._dynamo = stand_in
    importlib.import_module("transformers.models.llama.modeling_llama")
    if keep_accelerate or torch.cuda.is_available():
        bring_back_compiler()  # elsewhere later: models are built on the meta device, which would import it


def bring_back_compiler() -> None:
    """Let the next import of torch's compiler find it, and not the stand-in of `import_less`."""
    if getattr(sys.modules.get("torch._dynamo"), "__file__", None) is None:
        sys.modules.pop("torch._dynamo", None)
        vars(sys.modules["torch"]).pop("_dynamo", None)


def run(words: list[str]) -> int:
    """Find the command that the words name and call it with the rest."""
    for word in words:
        if not word.isprintable() and any("\ud800" <= character <= "\udfff" for character in word):
            raise ValueError(f"arguments must be valid UTF-8, got {os.fsencode(word)!r}; retype the argument")
    verb = words[0]
    if verb not in VERBS:
        raise ValueError(f"the verb must be one of {', '.join(VERBS)}, got {verb!r}")
    refuse_shadowed_packages()
    module = importlib.import_module(f"mllm.cli.{VERBS[verb][1]}")
    if verb == "train":  # its options are the recipe's keys
        return module.train(words[1:])
    name, rest = (verb, words[1:]) if verb in COMMANDS else (" ".join(words[:2]), words[2:])
    if name not in COMMANDS:
        if words[1:2] in (["-h"], ["--help"]):
            print(subcommand_overview(verb))
            return 0
        known = ", ".join(known.split()[1] for known in COMMANDS if known.startswith(f"{verb} "))
        raise ValueError(f"the word after {verb} must be one of {known}, got {words[1] if words[1:] else 'none'!r}")
    found = COMMANDS[name]
    parser = CommandParser(f"mllm {name}", description=found.summary, example=found.example, options=found.options)
    return found.run(parser.parse_args(rest)) or 0


def refuse_shadowed_packages() -> None:
    """Two packages mixed into one program would fail far from the cause, so say it here."""
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        spec = find_spec(package)
        places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        found = Path(places[0]).resolve() if places else None
        if found != root / package / "__init__.py":
            raise ImportError(
                f"the package {package!r} must be the one in {root}, got {found or 'none'}; uninstall or rename the "
                "other one, or run from a different folder"
            )


def end_progress_bars() -> None:
    """End the line of every bar that an error left open, so that the sentence begins on its own."""
    if "tqdm.std" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm.std"].tqdm, "_instances", ())):
            bar.close()


def one_line(error: BaseException) -> str:
    """The message of an error as one line; of an unforeseen one, with its class and how to report it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.strerror.lower()}: {error.filename}"
    if "Traceback (most recent call last)" in text:  # a worker's error, with its traceback as the message
        text = text.rstrip().splitlines()[-1].partition(": ")[2] or text
    text = " ".join(text.split()) or type(error).__name__
    text = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 200]} ... {text[-200:]}"  # a file in a message
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({text[:200]}); ask for less at once, or use a smaller model"
    if isinstance(error, ValueError | OSError | ImportError):
        return text
    return f"unexpected {type(error).__name__}: {text[:300]}; run it again with --debug to see where, and report it"


def overview() -> str:
    """What `mllm --help` prints."""
    verbs = "\n".join(f"  {name:<11}{summary}" for name, (summary, _) in VERBS.items())
    return (
        "usage: mllm VERB ...\n\n"
        "Train, run, evaluate and serve a unified multimodal LLM. Without --model, the bundled model is used.\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n"
        "  --help     show this text, or after a verb, the help of the verb\n"
        "  --version  show the version\n"
        "  --debug    after a verb: show the full traceback of an error\n\n"
        'example: mllm draw "a red circle on a white background" -o circle.png'
    )


def subcommand_overview(verb: str) -> str:
    """What `mllm tokenize --help` and its kind print."""
    found = {name.split()[1]: entry for name, entry in COMMANDS.items() if name.startswith(f"{verb} ")}
    width = max(map(len, found)) + 2
    lines = "\n".join(f"  {name:<{width}}{entry.summary}" for name, entry in found.items())
    summary, example = VERBS[verb][0], next(iter(found.values())).example
    return (
        f"usage: mllm {verb} {{{','.join(found)}}} ...\n\n{summary[:1].upper()}{summary[1:]}.\n\n{lines}\n\n"
        f"Add --help to a subcommand to see its options.\n\nexample: {example}"
    )
