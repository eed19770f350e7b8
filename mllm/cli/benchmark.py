"""`mllm benchmark`: which cases to time, and what to print of them; the timing is in mllm/benchmark/."""

import importlib
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from mllm.cli.main import (
    DTYPE_NAMES,
    Option,
    command,
    file_in_existing_folder,
    given,
    json_option,
    load_pipeline,
    option,
    positive_count,
)
from mllm.cli.main import MODEL as MODEL_OPTIONS
from mllm.files import write_json

MODEL_SIZES = ("bundled", "XXS", "XS", "S", "M", "L", "head-7b", "7b", "7b-8-layers", "1b")
GROWING = ("positions", "resolution", "codebooks", "context", "batch", "images")

BEFORE = option(
    "--before", metavar="COMMIT", help="also time the code of this commit in the same run, from a git worktree"
)
REQUIRE = option(
    "--require", type=float, metavar="X", help="fail if the speedup over upstream, or over --before, is less than X"
)
DEVICE = option("--device", help="device to run on (default: a GPU if there is one)")
TIMING = [
    option("--rounds", type=positive_count, default=5, help="number of timed rounds (default: 5)"),
    option("--threads", type=positive_count, default=1, help="number of CPU threads (default: 1)"),
    json_option("figures"),
]
COMMON = [BEFORE, REQUIRE, DEVICE, *TIMING]
MODEL = option("--model", metavar="FOLDER", help="model folder (default: the bundled model)")
BITS = option("--quantization", nargs="+", choices=("int8", "int4"), default=[], help="also time quantized weights")
DTYPE = option("--dtype", choices=DTYPE_NAMES, default="float32", help="number format of models with random weights")
GUIDANCE = option("--guidance", type=float, default=7.0, help="1 turns it off (default: 7, as in upstream)")
FILTERS = [
    option("--top-k", type=positive_count, metavar="K", help="top-k filter (default: off, as in upstream)"),
    option("--top-p", type=float, default=1.0, metavar="P", help="top-p filter (default: off, as in upstream)"),
]
COMPILE = option(
    "--compile", action="store_true", help="also time compiled passes (compilation takes minutes) or CUDA graphs"
)
GROWTH = [
    option("--growth", nargs="+", choices=GROWING, metavar="SIZE", help=f"quantities to vary: {', '.join(GROWING)}"),
    option("--plot", type=file_in_existing_folder, metavar="FILE", help="plot growth and the cost model"),
]


def batch(what: str) -> Option:
    help = f"number of {what} processed at once (default: 1 and 4)"
    return option("--batch", nargs="+", type=positive_count, default=[1, 4], metavar="N", help=help)


def sizes(known: tuple[str, ...], *default: str) -> Option:
    return option("--sizes", nargs="+", choices=known, default=[*default], metavar="SIZE", help=", ".join(known))


ALONE = option("--alone", type=positive_count, metavar="SIDE", help="time only this version, on SIDE x SIDE positions")


SUBCOMMANDS: dict[str, tuple[str, str, list[Option]]] = {
    "draw": (
        "Time drawing whole images, compared with the upstream algorithm.",
        "--sizes XS S --require 1.6",
        [
            sizes(MODEL_SIZES, "bundled", "XS", "S"),
            *(batch("images"), MODEL, DTYPE, GUIDANCE, *FILTERS, BITS, COMPILE, ALONE, *GROWTH, *COMMON),
        ],
    ),
    "edit": ("Time editing an image.", "--before HEAD~1", [MODEL, *COMMON]),
    "ask": (
        "Time answers to questions, and text compared with generate of transformers.",
        "--sizes S --batch 1",
        [sizes(MODEL_SIZES[1:], "S"), batch("texts"), MODEL, DTYPE, *COMMON],
    ),
    "requests": (
        "Time requests of all kinds that arrive over time, compared with processing them one by one.",
        "--requests 64 --require 3",
        [
            MODEL,
            option("--requests", type=positive_count, default=64, metavar="N", help="number of requests (default: 64)"),
            *(REQUIRE, DEVICE, *TIMING),
        ],
    ),
    "head": (
        "Time the prediction of the codes of one position, and the sampling of a code.",
        "--sizes S",
        [sizes(MODEL_SIZES[1:], "XS", "S"), batch("images"), DTYPE, GUIDANCE, BITS, DEVICE, *TIMING],
    ),
    "tokenizer": (
        "Time converting images to codes and back.",
        "--sizes tiny --batch 4",
        [sizes(("tiny", "large"), "tiny"), batch("images"), *COMMON],
    ),
    "product": (
        "Time matrix products with few rows in 32, 16, 8 and 4 bits.",
        "--sizes 7b --batch 1 8 64",
        [sizes(MODEL_SIZES[3:], "S"), batch("rows"), DTYPE, DEVICE, *TIMING],  # 4 bits do not suit XXS and XS
    ),
    "prefill": (
        "Time the backbone on prompts.",
        "--sizes S --batch 8",
        [sizes(MODEL_SIZES[1:], "S"), batch("prompts"), DTYPE, DEVICE, *TIMING],
    ),
    "step": (
        "Time training steps of models with random weights on text-to-image samples.",
        "--sizes 1b --dtype bfloat16",
        [sizes(MODEL_SIZES[1:], "S"), DTYPE, DEVICE, *TIMING],
    ),
    "load": ("Time loading a model.", "--before HEAD~1", [MODEL, *COMMON]),
    "start": ("Time complete commands, including their startup.", "--before HEAD~1", [BEFORE, REQUIRE, *TIMING]),
    "training": (
        "Time training on packed rows, compared with padded rows of the same samples.",
        "--samples 24 --length 640",
        [
            MODEL,
            option("--samples", type=positive_count, default=48, metavar="N", help="number of samples (default: 48)"),
            option("--length", type=positive_count, default=320, help="positions per packed row (default: 320)"),
            option("--rows", type=positive_count, default=4, help="rows per batch (default: 4)"),
            *COMMON,
        ],
    ),
}


@command(
    "benchmark passes",
    "Count the forward passes that drawings and edits need, separately for text and codes.",
    "--count 100",
    option("--count", type=positive_count, default=100, metavar="N", help="drawings and edits (default: 100 each)"),
    *MODEL_OPTIONS,
    json_option("counts"),
)
def benchmark_passes(options: Namespace) -> None:
    from mllm.benchmark.passes import as_table, count_passes

    report = count_passes(load_pipeline(options), count=options.count)
    print(as_table(report))
    if options.json:
        write_json(options.json, report)


def benchmark(what: str, options: Namespace) -> int:
    """Measure, print a table, write files; 1 where results differ or the required speed is not reached."""
    import torch

    from mllm.benchmark.cases import CASES, Settings
    from mllm.benchmark.measure import as_table, complaints, run_benchmark
    from mllm.benchmark.work import Before
    from mllm.checkpoint import DTYPES, choose_device
    from mllm.sampling import SamplingConfig

    chosen = given(options, ("sizes", "batch", "model", "quantization", "compile", "alone", "requests"))
    device = choose_device(getattr(options, "device", None))
    dtype = DTYPES[getattr(options, "dtype", "float32")]
    if sampling := given(options, ("guidance", "top_k", "top_p")):
        chosen["sampling"] = SamplingConfig(**sampling)
    cases: Any = CASES.get(what)
    if what == "training":  # `train` is above `mllm`
        cases = importlib.import_module("train.benchmark_training").training_cases(options)
    if growth := getattr(options, "growth", None):
        from mllm.benchmark.growth import fit_costs, growth_cases, plot_growth

        cases = partial(growth_cases, parameters=growth)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    commit = getattr(options, "before", None)
    before = Before(commit, threads=options.threads) if commit else None
    try:
        settings = Settings(**chosen, before=before, device=device, dtype=dtype)
        report = run_benchmark(cases(settings), rounds=options.rounds, device=device, dtype=dtype)
    finally:
        torch.set_num_threads(num_threads)
        if before is not None:
            before.close()
    print(as_table(report))
    if growth:
        report["fit"] = fit_costs(report)
        print(f"\ncost model, off by {report['fit']['mean_relative_error']:.0%} on average:")
        print("\n".join(f"  {seconds:.2e} s per {cost}" for cost, seconds in report["fit"]["seconds_per"].items()))
        if options.plot:
            plot_growth(report, Path(options.plot))
    if options.json:
        write_json(options.json, report)
    problems = complaints(report, least_speed_up=getattr(options, "require", None))
    for problem in problems:
        print(f"mllm benchmark: {problem}", file=sys.stderr)
    return bool(problems)


for name, (summary, example, accepted) in SUBCOMMANDS.items():
    command(f"benchmark {name}", summary, example, *accepted)(partial(benchmark, name))
