"""`mllm prepare SRC... --out DIR --image-tokenizer T`: raw records to shards with image codes; `--show N` shows some.

Only the words are here; the work is in train/data/prepare_folder.py and train/data/show_samples.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mllm.commands.arguments import CommandParser, picture_size, positive_count

FORMATS = ("chat", "llava", "webdataset", "captions", "codes", "mmc4", "obelics", "text")
"""The names in train/data/importers/formats.py; written out because --help must not import what needs torch."""


def main(argv: list[str] | None = None) -> int:
    """Prepare, or show what was prepared."""
    arguments = build_parser().parse_args(argv)
    if not arguments.sources and arguments.show is None:
        raise ValueError("nothing to prepare: found neither sources nor --show; name files of records or folders")
    from train.data.prepare_job import prepare, show

    if arguments.sources:
        prepare(arguments)
    if arguments.show is not None:
        show(arguments)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "mllm prepare",
        description=(
            "Turn records of text and pictures into shards for training. Formats are recognised: chat messages,\n"
            "LLaVA, captioned pictures (tars, lines, folders), UniTok's codes, MMC4, OBELICS and plain text.\n"
            "Interrupted, it goes on when it is run again. torchrun or accelerate launch share the work."
        ),
        example="mllm prepare captions.tar chats.jsonl --out data/mixed --image-tokenizer runs/tokenizer/final",
    )
    parser.add_argument("sources", nargs="*", type=Path, metavar="SRC", help="a file of records, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="T",
        help="folder of an image tokenizer or of a model, or the released file",
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="a model: its image tokenizer and sizes (default: the toolkit's)"
    )
    parser.add_argument("--format", choices=FORMATS, metavar="NAME", help=f"of all sources: {', '.join(FORMATS)}")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="folder of the pictures that records name")
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="size of all pictures (default: the model's)")
    parser.add_argument("--preparation", help="how a picture gets to its size: cover (default), stretch, crop ...")
    parser.add_argument(
        "--shard-size", type=positive_count, default=2048, metavar="N", help="records of a shard (2048)"
    )
    parser.add_argument("--batch-size", type=positive_count, default=64, metavar="N", help="pictures encoded at once")
    parser.add_argument("--num-workers", type=positive_count, default=4, metavar="N", help="threads that open pictures")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken records out, list and count them")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--show", type=positive_count, metavar="N", help="print N samples and save their pictures")
    parser.add_argument("--seed", type=int, default=0, help="which samples are shown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
