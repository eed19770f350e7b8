"""`mllm ask`: a question about one or more pictures; the answer, and nothing else, goes to stdout as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mllm.commands.arguments import (
    CommandParser,
    add_model_arguments,
    add_sampling_arguments,
    add_seed_argument,
    positive_count,
    sampling_overrides,
)

if TYPE_CHECKING:
    from mllm.pipeline import Event


def main(argv: list[str] | None = None) -> int:
    """Ask and print the answer."""
    parser = CommandParser(
        "mllm ask",
        description="Ask a question about one or more pictures.",
        example='mllm ask a.png "What color is the circle?"',
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask, in quotes")
    parser.add_argument("--max-new-tokens", type=positive_count, metavar="N", help="longest answer, in tokens")
    add_seed_argument(parser)
    add_sampling_arguments(parser, guidance=False)
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    if Path(arguments.question).is_file():
        raise ValueError(f"the question is missing: found the file {arguments.question} in its place; ask in quotes")

    from mllm.commands.loading import load_pipeline
    from tokenizer.images import open_image

    images = [open_image(path) for path in arguments.images]
    pipeline = load_pipeline(arguments)
    pipeline.ask(
        images,
        arguments.question,
        on_event=print_text,
        max_new_tokens=arguments.max_new_tokens,
        **sampling_overrides(arguments),
    )
    print()
    return 0


def print_text(event: Event) -> None:
    """Print what is new of the answer."""
    from mllm.pipeline import TextDelta

    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)
