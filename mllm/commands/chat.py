"""`mllm chat`: the chat of the demo in a terminal. Words are printed as they come, pictures are written to files."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.commands.arguments import (
    CommandParser,
    add_model_arguments,
    add_sampling_arguments,
    add_seed_argument,
    sampling_overrides,
)

if TYPE_CHECKING:
    from PIL import Image

    from mllm.conversation import Message
    from mllm.pipeline import Pipeline

HELP = """/image FILE  add a picture to your next message
/new         forget the conversation
/help        this text
/quit        leave (or Ctrl-D)"""


def main(argv: list[str] | None = None) -> int:
    """Chat until the input ends."""
    parser = CommandParser(
        "mllm chat",
        description="Chat in the terminal. Commands while chatting:\n\n" + HELP,
        example="mllm chat --pictures drawings/",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path(), metavar="FOLDER", help="where to write pictures (default: here)"
    )
    add_seed_argument(parser)
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    arguments.pictures.mkdir(parents=True, exist_ok=True)

    from mllm.commands.loading import load_pipeline

    chat = Chat(load_pipeline(arguments), arguments)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("Describe a picture, or add one with /image FILE and ask about it. /help tells more.")
    while (line := read_line("> " if is_terminal else "")) is not None:
        if line == "/quit":
            break
        try:
            chat.hear(line)
        except (ValueError, FileNotFoundError) as error:
            print(f"mllm chat: {error}", file=sys.stderr)
    return 0


def read_line(prompt: str) -> str | None:
    """The next line, None at the end of the input."""
    try:
        return input(prompt).strip()
    except EOFError:
        return None


class Chat:
    """One conversation."""

    def __init__(self, pipeline: Pipeline, arguments: Namespace) -> None:
        self.pipeline = pipeline
        self.folder: Path = arguments.pictures
        self.overrides: dict[str, Any] = sampling_overrides(arguments)
        self.messages: list[Message] = []
        self.images: list[Image.Image] = []  # of the message that is being written

    def hear(self, line: str) -> None:
        """Obey a command, or answer a message."""
        from tokenizer.images import open_image

        command, _, rest = line.partition(" ")
        match command:
            case "":
                pass
            case "/help":
                print(HELP)
            case "/new":
                self.messages, self.images = [], []
            case "/image":
                self.images.append(open_image(rest.strip().strip("'\"")))
            case _ if command.startswith("/"):
                raise ValueError(f"there is no command {command!r}; /help lists them")
            case _:
                self.answer(line)

    def answer(self, text: str) -> None:
        """Send a message; the conversation grows only if an answer comes."""
        from mllm.commands.progress import Progress
        from mllm.conversation import ImagePart, Message, Part, TextPart
        from mllm.pipeline import Done, ImageDone, TextDelta
        from mllm.processor import save_image

        parts: list[Part] = [*map(ImagePart, self.images), TextPart(text)]
        asked = [*self.messages, Message("user", tuple(parts))]
        progress = Progress()
        for event in self.pipeline.chat(asked, **self.overrides):
            progress.show(event)
            match event:
                case TextDelta(text=delta):
                    print(delta, end="", flush=True)
                case ImageDone(image=image):
                    path = free_path(self.folder)
                    save_image(image, path)
                    print(path)
                case Done(message=message):
                    print()
                    self.messages, self.images = [*asked, message], []


def free_path(folder: Path) -> Path:
    """A picture file that does not exist yet."""
    number = 1
    while (path := folder / f"picture-{number}.png").exists():
        number += 1
    return path
