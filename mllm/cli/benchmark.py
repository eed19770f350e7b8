"""`mllm benchmark`: which cases to time, and what to print of them; the timing is in mllm/benchmark/."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from mllm.cli.main import DTYPE_NAMES, Option, command, json_option, option, positive_count

MODEL_SIZES = ("XXS", "XS", "S", "M", "L", "head-7b", "7b")


def benchmark_options(sizes: tuple[str, ...], default: list[str], *, samples: bool) -> list[Option]:
    """Options of `mllm benchmark`; `samples`: it samples codes."""
    options = [
        option("--sizes", nargs="+", choices=sizes, default=default, metavar="SIZE", help=", ".join(sizes)),
        option("--batch", nargs="+", type=positive_count, default=[1, 4], metavar="N", help="images at once (1 and 4)"),
        option("--rounds", type=positive_count, default=3, help="timed rounds of each (default: 3)"),
        option("--threads", type=positive_count, default=1, help="CPU threads (default: 1)"),
        option("--device", help="where to compute (default: a GPU if there is one)"),
        json_option("figures"),
    ]
    if samples:
        options += [
            option("--dtype", choices=DTYPE_NAMES, default="float32", help="of the timed model"),
            option("--guidance", type=float, default=7.0, help="1 turns it off (default: 7, upstream's scripts)"),
            option("--top-k", type=positive_count, metavar="K", help="filter (default: off, as upstream)"),
            option("--top-p", type=float, default=1.0, metavar="P", help="filter (default: off, as upstream)"),
        ]
    return options


@command(
    "benchmark draw",
    "Time whole images, up to their codes, next to upstream's algorithm.",
    "--sizes XS S --require 1.6",
    *benchmark_options(MODEL_SIZES, ["XS", "S"], samples=True),
    option("--require", type=float, metavar="X", help="fail if ours is less than X times as fast as upstream's"),
)
def benchmark_draw(options: Namespace) -> int:
    from mllm.benchmark.cases import benchmark_drawing
    from mllm.sampling import SamplingConfig

    settings = SamplingConfig(guidance=options.guidance, top_k=options.top_k, top_p=options.top_p)
    return measure(
        options,
        lambda **where: (
            benchmark_drawing(size, batch, settings=settings, rounds=options.rounds, **where)
            for size in options.sizes
            for batch in options.batch
        ),
    )


@command(
    "benchmark head",
    "Time the codes of one position, and the choice of a code.",
    "--sizes S",
    *benchmark_options(MODEL_SIZES, ["XS", "S"], samples=True),
)
def benchmark_head_command(options: Namespace) -> int:
    from mllm.benchmark.cases import FILTERED, UNFILTERED, benchmark_choice, benchmark_head
    from mllm.sampling import SamplingConfig

    settings = SamplingConfig(guidance=options.guidance, top_k=options.top_k, top_p=options.top_p)

    def cases(**where: Any) -> Any:
        for size in options.sizes:
            for batch in options.batch:
                yield benchmark_head(size, batch, settings=settings, rounds=options.rounds, **where)
        for name, chosen in (("unfiltered", UNFILTERED), ("top-k and top-p", FILTERED)):
            yield benchmark_choice(name, chosen, num_rows=8, rounds=options.rounds, device=where["device"])

    return measure(options, cases)


@command(
    "benchmark tokenizer",
    "Time images to codes and back.",
    "--sizes tiny --batch 4",
    *benchmark_options(("tiny", "large"), ["tiny"], samples=False),
)
def benchmark_tokenizer(options: Namespace) -> int:
    from mllm.benchmark.cases import benchmark_coding, benchmark_lookup, benchmark_upsampling

    upsampled = {"tiny": (64, 32), "large": (640, 64)}  # channels and side of the widest upsampling of each network

    def cases(device: Any, dtype: Any) -> Any:
        for size in options.sizes:
            for batch in options.batch:
                yield from benchmark_coding(size, batch, rounds=options.rounds, device=device)
            yield benchmark_upsampling(*upsampled[size], rounds=options.rounds, device=device)
        for batch in options.batch:
            yield benchmark_lookup(batch, rounds=options.rounds, device=device)

    return measure(options, cases)


@command(
    "benchmark training",
    "Time training on packed rows next to padded ones, on the same samples.",
    "--samples 24 --length 640",
    option("--model", metavar="FOLDER", help="model folder (default: the bundled model)"),
    option("--samples", type=positive_count, default=48, metavar="N", help="how many (default: 48)"),
    option("--length", type=positive_count, default=320, help="positions of a packed row (default: 320)"),
    option("--rows", type=positive_count, default=4, help="rows of a batch (default: 4)"),
    option("--rounds", type=positive_count, default=3, help="timed rounds of each way (default: 3)"),
    option("--threads", type=positive_count, default=1, help="CPU threads (default: 1)"),
    option("--device", help="where to compute (default: a GPU if there is one)"),
    json_option("figures"),
)
def benchmark_training(options: Namespace) -> None:
    importlib.import_module("train.benchmark_training").benchmark_training(options)  # `train` is above `mllm`


def measure(options: Namespace, cases: Callable[..., Any]) -> int:
    """Measure, print a table, write the file; 1 where codes differ or the required speed is not reached."""
    import torch

    from mllm.benchmark.measure import as_table, complaints, run_benchmark
    from mllm.checkpoint import DTYPES, choose_device
    from mllm.files import write_json

    device, dtype = choose_device(options.device), DTYPES[getattr(options, "dtype", "float32")]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        report = run_benchmark(lambda: cases(device=device, dtype=dtype), device=device, dtype=dtype)
    finally:
        torch.set_num_threads(num_threads)
    print(as_table(report))
    if options.json:
        write_json(options.json, report)
    problems = complaints(report, least_speed_up=getattr(options, "require", None))
    for problem in problems:
        print(f"mllm benchmark: {problem}", file=sys.stderr)
    return bool(problems)
