"""`mllm benchmark draw|head|tokenizer|training`: how fast this machine is, beside upstream's algorithm and the floor.

Only the words and the choice of cases are here; the measuring is in mllm/benchmark/.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mllm.commands.arguments import CommandParser, add_json_argument, positive_count

if TYPE_CHECKING:
    import torch

    from mllm.benchmark.timing import Case

MODEL_SIZES = ("XXS", "XS", "S", "M", "L", "head-7b", "7b")
TOKENIZER_SIZES = ("tiny", "large")
CHOICE_ROWS = 8
UPSAMPLED = {"tiny": (64, 32), "large": (640, 64)}  # channels and side of the widest upsampling of each network
NOT_AS_ASKED = 1
TRAINING = "train.benchmark_training"
"""Where `mllm benchmark training` is. A name, not an import: `train` stands above `mllm`, which may not import it."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, write the file; 1 where codes differ or the speed asked for is not reached."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["training"]:
        return importlib.import_module(TRAINING).main(words[1:])
    arguments = build_parser().parse_args(words)

    import torch

    from mllm.benchmark.report import as_table, complaints, run_benchmark
    from mllm.checkpoint import DTYPES, choose_device
    from mllm.files import write_json

    device, dtype = choose_device(arguments.device), DTYPES[arguments.dtype]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        report = run_benchmark(lambda: CASES[arguments.what](arguments, device, dtype), device=device, dtype=dtype)
    finally:
        torch.set_num_threads(num_threads)
    print(as_table(report))
    if arguments.json:
        write_json(arguments.json, report)
    problems = complaints(report, least_speed_up=arguments.require)
    for problem in problems:
        print(f"mllm benchmark: {problem}", file=sys.stderr)
    return NOT_AS_ASKED if problems else 0


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "mllm benchmark",
        description="Time our code beside upstream's algorithm, on models with random weights.",
        example="mllm benchmark draw --sizes XS S --json figures.json",
    )
    subjects = parser.add_subparsers(required=True, metavar="draw|head|tokenizer|training")

    def add(name: str, summary: str, example: str, sizes: tuple[str, ...], default: list[str]) -> None:
        command = subjects.add_parser(name, description=summary, example=f"mllm benchmark {name} {example}")
        command.set_defaults(what=name)
        choices = ", ".join(sizes)
        command.add_argument("--sizes", nargs="+", choices=sizes, default=default, metavar="SIZE", help=choices)
        command.add_argument(
            "--batch", nargs="+", type=positive_count, default=[1, 4], metavar="N", help="pictures at once (1 and 4)"
        )
        command.add_argument("--rounds", type=positive_count, default=3, help="timed rounds of each (default: 3)")
        command.add_argument("--threads", type=positive_count, default=1, help="of the processor (default: 1)")
        command.add_argument("--device", help="where to compute (default: a GPU if there is one)")
        add_json_argument(command, what="figures")
        command.set_defaults(dtype="float32", require=None)
        if name == "tokenizer":
            return
        command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the timed model")
        command.add_argument("--guidance", type=float, default=7.0, help="1 is off (default: 7, upstream's scripts)")
        command.add_argument("--top-k", type=positive_count, metavar="K", help="filter (default: off, as upstream)")
        command.add_argument("--top-p", type=float, default=1.0, metavar="P", help="filter (default: off, as upstream)")
        if name == "draw":
            command.add_argument(
                "--require", type=float, metavar="X", help="fail where ours is less than X times as fast as upstream's"
            )

    add("draw", "Whole pictures, up to their codes.", "--sizes XS S --require 1.6", MODEL_SIZES, ["XS", "S"])
    add("head", "The codes of one position, and the choice of a code.", "--sizes S", MODEL_SIZES, ["XS", "S"])
    add("tokenizer", "Pictures to codes and back.", "--sizes tiny --batch 4", TOKENIZER_SIZES, ["tiny"])
    return parser


def draw_cases(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    from mllm.benchmark.draw_benchmark import benchmark_drawing
    from mllm.sampling import SamplingConfig

    settings = SamplingConfig(guidance=arguments.guidance, top_k=arguments.top_k, top_p=arguments.top_p)
    for size in arguments.sizes:
        for batch in arguments.batch:
            yield benchmark_drawing(size, batch, settings=settings, rounds=arguments.rounds, device=device, dtype=dtype)


def head_cases(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    from mllm.benchmark.head_benchmark import FILTERED, UNFILTERED, benchmark_choice, benchmark_head
    from mllm.sampling import SamplingConfig

    settings = SamplingConfig(guidance=arguments.guidance, top_k=arguments.top_k, top_p=arguments.top_p)
    for size in arguments.sizes:
        for batch in arguments.batch:
            yield benchmark_head(size, batch, settings=settings, rounds=arguments.rounds, device=device, dtype=dtype)
    for name, chosen in (("unfiltered", UNFILTERED), ("top-k and top-p", FILTERED)):
        yield benchmark_choice(name, chosen, num_rows=CHOICE_ROWS, rounds=arguments.rounds, device=device)


def tokenizer_cases(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    from mllm.benchmark.tokenizer_benchmark import benchmark_coding, benchmark_lookup, benchmark_upsampling

    for size in arguments.sizes:
        for batch in arguments.batch:
            yield from benchmark_coding(size, batch, rounds=arguments.rounds, device=device)
        yield benchmark_upsampling(*UPSAMPLED[size], rounds=arguments.rounds, device=device)
    for batch in arguments.batch:
        yield benchmark_lookup(batch, rounds=arguments.rounds, device=device)


Cases = Callable[[argparse.Namespace, "torch.device", "torch.dtype"], "Iterator[Case]"]
CASES: dict[str, Cases] = {"draw": draw_cases, "head": head_cases, "tokenizer": tokenizer_cases}
