"""`mllm tokenize encode|decode|reconstruct`: pictures to codes in a file, codes to pictures, and there and back.

Only the words are here; the work is in mllm/commands/tokenize_jobs.py.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from mllm.commands.arguments import CommandParser, add_json_argument, add_model_arguments, picture_size

JOBS = "mllm.commands.tokenize_jobs"
"""Imported after the words are understood: it needs torch, and --help does not."""


def main(argv: list[str] | None = None) -> int:
    """Run one of the three jobs."""
    arguments = build_parser().parse_args(argv)
    getattr(importlib.import_module(JOBS), arguments.job)(arguments)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "mllm tokenize",
        description="Turn pictures into codes, codes into pictures, or pictures into codes and back.",
        example="mllm tokenize encode a.png b.png -o codes.npz",
    )
    jobs = parser.add_subparsers(required=True, metavar="encode|decode|reconstruct")

    def add_job(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        command = jobs.add_parser(name, description=summary, example=f"mllm tokenize {name} {example}")
        command.set_defaults(job=name)
        add_model_arguments(command, language_model=False)
        return command

    encode = add_job("encode", "Turn pictures into codes.", "a.png b.png -o codes.npz")
    add_picture_arguments(encode)
    encode.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".npz or .safetensors")

    decode = add_job("decode", "Turn codes into pictures.", "codes.npz -o pictures/")
    decode.add_argument("codes", type=Path, metavar="CODES", help="a file that encode wrote")
    add_output_argument(decode)

    reconstruct = add_job("reconstruct", "Turn pictures into codes and back.", "a.png -o again.png")
    add_picture_arguments(reconstruct)
    add_output_argument(reconstruct)
    add_json_argument(reconstruct, what="measures")
    return parser


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="size to encode at (default: the model's)")
    parser.add_argument(
        "--preparation", default="cover", help="how a picture gets to that size: cover (default), stretch, crop ..."
    )


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="a picture file for one picture, a folder for several"
    )
