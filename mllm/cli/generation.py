"""`mllm draw`, `ask`, `edit` and `chat`: options in, files and printed lines out; the work is `Pipeline`'s."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from argparse import ArgumentTypeError, Namespace
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.cli.main import (
    BEST_OF,
    FILTERS,
    IMAGE_OUTPUT,
    IMAGE_SAMPLING,
    MODEL,
    PLAN,
    SAMPLING_OPTIONS,
    SEED,
    SIZE,
    command,
    given,
    image_size,
    load_pipeline,
    option,
    positive_count,
)
from mllm.files import counted

if TYPE_CHECKING:
    from PIL import Image

    from mllm.conversation import Message
    from mllm.pipeline import Event, Pipeline


DECLINED = 3  # exit status where the model says that it cannot draw what is asked for
FORCE = option("--force", action="store_true", help="draw even if the model says that it cannot")
AT_ONCE, AT_ONCE_ON_CPU = 32, 8
"""Images drawn together before they are written."""


def show(event: Event) -> None:
    """Print new text, and how much of an image is done on one line of a terminal, which is cleared at the end."""
    from mllm.pipeline import ImageDone, ImageProgress, TextDelta

    match event:
        case TextDelta(text=text):
            print(text, end="", flush=True)
        case ImageProgress() | ImageDone() if sys.stderr.isatty():
            text = f"drawing {100 * event.done // event.total} %" if isinstance(event, ImageProgress) else ""
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


@command(
    "draw",
    "Draw images from a description.",
    '"three small yellow stars on a black background" -o stars.png -n 4 --seed 1',
    option("prompt", metavar="PROMPT", nargs="?", help="what to draw"),
    option("--class", dest="class_index", type=int, metavar="N", help="class to draw (class-conditional models)"),
    IMAGE_OUTPUT,
    option(
        "-n",
        type=positive_count,
        default=1,
        metavar="N",
        help="number of images; several are written to FILE-1, FILE-2 ... with seeds SEED, SEED + 1 ...",
    ),
    BEST_OF,
    SIZE,
    PLAN,
    FORCE,
    SEED,
    *IMAGE_SAMPLING,
    *MODEL,
)
def draw(options: Namespace) -> int | None:
    if (options.prompt is None) == (options.class_index is None):
        raise ValueError("exactly one of PROMPT and --class N must be given; see mllm draw --help")
    others = {"--size": options.size, "--plan": options.plan, "--best-of": options.best_of > 1 or None}
    if options.class_index is not None and (wrong := [name for name, value in others.items() if value is not None]):
        raise ValueError(f"--class must be given without {wrong[0]}; leave {wrong[0]} out")

    from mllm.pipeline import NUM_RANDOM_SEEDS
    from mllm.processor import save_image

    pipeline = load_pipeline(options)
    most = AT_ONCE_ON_CPU if pipeline.model.device.type == "cpu" else AT_ONCE
    at_once = max(1, most // options.best_of)
    settings = {"on_event": show, **given(options, SAMPLING_OPTIONS)}
    seed = secrets.randbelow(NUM_RANDOM_SEEDS) if options.seed is None else options.seed
    if options.class_index is not None:
        draw_some = partial(pipeline.draw_class, options.class_index)
    elif is_declined(pipeline, options, options.prompt):
        return DECLINED
    else:
        draw_some = partial(pipeline.draw, options.prompt, **given(options, ("size", "plan", "best_of")))
    path: Path = options.output
    numbered = [path.with_stem(f"{path.stem}-{number}") for number in range(1, options.n + 1)]
    files = [path] if options.n == 1 else numbered
    num_written = 0
    try:
        while num_written < options.n:
            count = min(at_once, options.n - num_written)
            for image in draw_some(n=count, **{**settings, "seed": seed + num_written}):
                file = files[num_written]
                save_image(image, file)
                num_written += 1
                score = f"  score {image.info['score']:.3f}" if "score" in image.info else ""
                print(f"{file}  seed {image.info['seed']}{score}", flush=True)
    except KeyboardInterrupt:
        print(f"\nmllm: interrupted; {num_written} of {counted(options.n, 'image')} written", file=sys.stderr)
        raise
    return None


def is_declined(pipeline: Pipeline, options: Namespace, prompt: str, image: Image.Image | None = None) -> bool:
    """Whether the model says that it cannot do this; its words are printed."""
    words = None if options.force or options.plan is not None else pipeline.decline(prompt, image)
    if words:
        print(f"mllm: nothing was drawn: {words} Use --force to draw anyway.", file=sys.stderr)
    return bool(words)


@command(
    "ask",
    "Ask a question about one or more images. The answer is printed to stdout as it is generated.",
    'a.png "What color is the circle?"',
    option("images", nargs="+", metavar="IMAGE", help="image file"),
    option("question", metavar="QUESTION", help="question to ask, in quotes"),
    option("--max-new-tokens", type=positive_count, metavar="N", help="maximum length of the answer in tokens"),
    SEED,
    *FILTERS,
    *MODEL,
)
def ask(options: Namespace) -> None:
    if os.path.isfile(options.question):  # False also for what is too long for a path
        raise ValueError(f"the last argument must be a question, got the file {options.question}; put it in quotes")

    from tokenizer.images import read_image

    images = [read_image(path) for path in options.images]
    settings = given(options, (*SAMPLING_OPTIONS, "max_new_tokens"))
    load_pipeline(options).ask(images, options.question, on_event=show, **settings)
    print()


def edge(text: str) -> str:
    from mllm.pipeline import SIDES

    if text not in SIDES:
        raise ArgumentTypeError(f"must be one of {', '.join(SIDES)}, got {text!r}")
    return text


@command(
    "edit",
    'Change an image following an instruction, or turn it into another kind of image ("Depth estimation.").',
    'a.png "Make the circle green." -o b.png',
    option("image", metavar="IMAGE", help="image file to change"),
    option("instruction", metavar="INSTRUCTION", help="change to make"),
    IMAGE_OUTPUT,
    option(
        "--size",
        type=image_size,
        metavar="WxH",
        help="image size in pixels (default: that of IMAGE, or with --extend the smallest that extends it)",
    ),
    option(
        "--extend",
        type=edge,
        metavar="EDGE",
        help="extend IMAGE beyond an edge: left, right, top, bottom or all; IMAGE itself keeps its codes",
    ),
    option("--mask", metavar="MASK", help="image file that is white where IMAGE may change; the rest keeps its codes"),
    PLAN,
    FORCE,
    SEED,
    *IMAGE_SAMPLING,
    *MODEL,
)
def edit(options: Namespace) -> int | None:
    from mllm.processor import save_image
    from tokenizer.images import read_image

    source, mask = read_image(options.image), read_image(options.mask) if options.mask else None
    pipeline = load_pipeline(options)
    if mask is None and options.extend is None and is_declined(pipeline, options, options.instruction, source):
        return DECLINED
    settings = given(options, (*SAMPLING_OPTIONS, "extend", "size", "plan"))
    image = pipeline.edit(source, options.instruction, mask=mask, on_event=show, **settings)
    save_image(image, options.output)
    print(f"{options.output}  seed {image.info['seed']}")
    return None


CHAT_HELP = """/image FILE  attach an image to your next message
/new         start a new conversation
/help        show this text
/quit        exit (or press Ctrl-D)"""


@command(
    "chat",
    "Chat with the model in the terminal. While chatting, you can use these commands:\n\n" + CHAT_HELP,
    "--images drawings/",
    option("--images", type=Path, default=Path(), metavar="FOLDER", help="folder for drawn images (default: current)"),
    SEED,
    *IMAGE_SAMPLING,
    *MODEL,
)
def chat(options: Namespace) -> None:
    options.images.mkdir(parents=True, exist_ok=True)
    conversation = Chat(load_pipeline(options), options.images, given(options, SAMPLING_OPTIONS))
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that a line that is no text does not take others with it
    if is_terminal:
        print("Describe an image to draw, or attach one with /image FILE and ask about it. Type /help for help.")
        with suppress(ImportError):  # line editing and history; not on Windows
            importlib.import_module("readline")
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
            if line == "/quit":
                return
            if line != (decodable := line.encode(errors="replace").decode()):
                raise ValueError(f"input must be valid UTF-8, got {decodable!r}; type it again")
            conversation.hear(line)
        except EOFError:
            return
        except KeyboardInterrupt:  # stops an answer, or discards the line; the conversation stays as it was
            print("\ninterrupted; type /quit or press Ctrl-D to exit", file=sys.stderr)
        except (ValueError, FileNotFoundError) as error:
            print(f"mllm chat: {error}", file=sys.stderr)


class Chat:
    """One conversation in the terminal: text is printed as it is generated, images are written to files."""

    def __init__(self, pipeline: Pipeline, folder: Path, overrides: dict[str, Any]) -> None:
        self.pipeline, self.folder, self.overrides = pipeline, folder, overrides
        self.messages: list[Message] = []
        self.images: list[Image.Image] = []  # attached to the message that is being written

    def hear(self, line: str) -> None:
        """Obey a command, or answer a message."""
        from tokenizer.images import read_image

        name, _, rest = line.partition(" ")
        match name:
            case "":
                pass
            case "/help":
                print(CHAT_HELP)
            case "/new":
                self.messages, self.images = [], []
            case "/image" if not rest.strip():
                raise ValueError("/image must be followed by the path of a file, got none; write /image FILE")
            case "/image":
                self.images.append(read_image(rest.strip().strip("'\"")))
            case _ if name.startswith("/"):
                raise ValueError(f"the command must be one of /image, /new, /help, /quit, got {name!r}")
            case _:
                self.answer(line)

    def answer(self, text: str) -> None:
        """Send a message; the conversation grows only if it is answered."""
        from mllm.conversation import ImagePart, Message, TextPart
        from mllm.pipeline import Done, ImageDone
        from mllm.processor import save_image

        asked = [*self.messages, Message("user", (*map(ImagePart, self.images), TextPart(text)))]
        kept = self.pipeline.shorten(asked)
        if dropped := len(asked) - len(kept):
            print(f"mllm chat: left out {counted(dropped, 'old message')} that no longer fit", file=sys.stderr)
        for event in self.pipeline.chat(kept, **self.overrides):
            show(event)
            match event:
                case ImageDone(image=image):
                    number = 1
                    while (path := self.folder / f"image-{number}.png").exists():
                        number += 1
                    save_image(image, path)
                    print(path)
                case Done(message=message):
                    print()
                    self.messages, self.images = [*kept, message], []
