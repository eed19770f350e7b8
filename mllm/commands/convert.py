"""`mllm convert unitok|unitok-mllm|export-unitok|export-unitok-mllm|probe`: released checkpoints in, and back out.

Only the words are here; the work is in mllm/commands/convert_jobs.py.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from mllm.commands.arguments import CommandParser

JOBS = "mllm.commands.convert_jobs"
"""Imported after the words are understood: it needs torch, and --help does not."""
TYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> int:
    """Run one of the jobs."""
    arguments = build_parser().parse_args(argv)
    getattr(importlib.import_module(JOBS), arguments.job)(arguments)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "mllm convert",
        description="Bring the released checkpoints into folders that every other verb reads, and write them back.",
        example="mllm convert unitok-mllm unitok_mllm/ model/ --image-tokenizer unitok_tokenizer.pth",
    )
    jobs = parser.add_subparsers(required=True, metavar="unitok|unitok-mllm|export-unitok|export-unitok-mllm|probe")

    def add_job(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        command = jobs.add_parser(name, description=summary, help=summary, example=f"mllm convert {name} {example}")
        command.set_defaults(job=name.replace("-", "_"))
        return command

    unitok = add_job("unitok", "The released image tokenizer to a folder.", "unitok_tokenizer.pth unitok/")
    unitok.add_argument("source", type=Path, metavar="SRC", help="the released file, .pth or .safetensors")
    unitok.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    unitok.add_argument("--dtype", choices=TYPES, help="of encoder and decoder (default: as they are)")
    add_attention_arguments(unitok)

    mllm = add_job(
        "unitok-mllm", "The released MLLM to a folder.", "unitok_mllm/ model/ --image-tokenizer unitok_tokenizer.pth"
    )
    mllm.add_argument("source", type=Path, metavar="SRC_DIR", help="the released folder, with its tokenizer.model")
    mllm.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    mllm.add_argument(
        "--image-tokenizer", type=Path, metavar="FILE", help="the released file (default: the one in SRC_DIR, if any)"
    )
    mllm.add_argument("--dtype", choices=TYPES, help="of the language model (default: as it is)")
    add_shard_argument(mllm)
    add_attention_arguments(mllm)

    back = add_job("export-unitok", "An image tokenizer to the file that UniTok's programs read.", "unitok/ back.pth")
    back.add_argument("source", type=Path, metavar="FOLDER", help="folder of an image tokenizer")
    back.add_argument("output", type=Path, metavar="OUT", help="a new file that ends in .pth")

    mllm_back = add_job("export-unitok-mllm", "A model to the released layout of folders.", "model/ back/")
    mllm_back.add_argument("source", type=Path, metavar="FOLDER", help="folder of a model of this toolkit")
    mllm_back.add_argument("output", type=Path, metavar="OUT", help="a new folder")
    add_shard_argument(mllm_back)

    probe = add_job("probe", "Tell whether an image tokenizer is causal or bidirectional.", "unitok_tokenizer.pth")
    probe.add_argument("source", type=Path, metavar="SRC", help="the released file, or a converted folder")
    add_pictures_argument(probe)
    return parser


def add_attention_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attention",
        choices=("full", "causal", "probe"),
        help="how the tokenizer's projections attend: full (default, checkpoints since April 2025), causal (before), "
        "probe (try both)",
    )
    add_pictures_argument(parser)


def add_pictures_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures", nargs="+", type=Path, metavar="PICTURE", help="to try both on (default: generated ones)"
    )


def add_shard_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard-size", type=size_in_gb, default=1.0, metavar="GB", help="largest file of weights (default: 1)"
    )


def size_in_gb(word: str) -> float:
    """A positive number of gigabytes."""
    try:
        size = float(word)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{word!r} is no size in GB; use a number above 0, such as 1")
    return size
