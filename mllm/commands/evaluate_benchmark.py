"""`mllm evaluate BENCHMARK`: put a question file to a model; answers go to a folder, and scoring is another step.

Start it again with the same words to go on where it stopped; start it with torchrun or accelerate launch to share the
questions among processes, each on its own device.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, cast

from mllm.commands.arguments import (
    CommandParser,
    add_model_arguments,
    add_sampling_arguments,
    positive_count,
    sampling_overrides,
)
from mllm.evaluation.protocol import Benchmark, find_benchmark


def main(argv: list[str] | None = None) -> int:
    """Answer all questions, or what is left of them."""
    words = list(argv or [])
    benchmark = find_benchmark(words[0])
    arguments = parse(benchmark, words[1:])

    items = benchmark.read_items(arguments.questions, arguments.images)
    chosen = items[: arguments.limit]

    from mllm.commands.loading import load_pipeline
    from mllm.evaluation.run import PipelineAnswerer, RunFolder, Share, describe_run, run_items
    from mllm.processor import Overrides, check_task

    share, folder = Share.from_environment(), RunFolder(arguments.output)
    place_on_device(arguments)
    pipeline = load_pipeline(arguments)
    needed = ("ask", "describe") if benchmark.mode == "text" else (benchmark.task or "draw",)
    check_task(pipeline.tasks, *needed)
    sampling = sampling_of(benchmark, arguments)
    description = describe_run(
        pipeline,
        benchmark,
        arguments.questions,
        counts=(len(chosen), len(items)),
        seed=arguments.seed,
        sampling=sampling,
        prompts="rewritten" if arguments.rewritten else "raw",
    )
    best_of = getattr(arguments, "best_of", 1)
    if best_of > 1:
        check_task(pipeline.tasks, "ask")
        description["decoding"] |= {"best_of": best_of, "chosen_by": f"self, {pipeline.question_form} question"}
    answer = PipelineAnswerer(pipeline, benchmark.mode, cast(Overrides, sampling), best_of)
    is_finished = run_items(
        chosen, answer, folder, description=description, batch_size=arguments.batch_size, share=share
    )
    if is_finished:
        score = f"mllm evaluate score {folder.folder} --questions {arguments.questions}"
        print(f"{folder.answers_file}: {len(chosen)} of {len(items)} items; next: {score} --annotations ...")
    return 0


def parse(benchmark: Benchmark, words: list[str]) -> argparse.Namespace:
    """The arguments of one benchmark."""
    parser = CommandParser(
        f"mllm evaluate {benchmark.name}",
        description=f"{benchmark.summary}.",
        example=f"mllm evaluate {benchmark.name} --questions questions.jsonl --images images --output runs/x",
    )
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="question file, as published")
    needs_pictures = benchmark.mode == "text"
    parser.add_argument("--images", type=Path, required=needs_pictures, metavar="FOLDER", help="folder of the pictures")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where answers go; goes on there")
    parser.add_argument("--limit", type=positive_count, metavar="N", help="only the first N items")
    parser.add_argument("--batch-size", type=positive_count, default=16, help="items at once (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="item i has seed + i (default: 0)")
    parser.add_argument("--rewritten", action="store_true", help="the prompts were rewritten; say so in the result")
    if benchmark.mode == "text":
        budget = benchmark.max_new_tokens
        parser.add_argument(
            "--max-new-tokens", type=positive_count, default=budget, metavar="N", help=f"default: {budget}"
        )
    else:
        parser.add_argument(
            "--best-of",
            type=positive_count,
            default=1,
            metavar="N",
            help="draw each N times, keep the one that the model itself finds right most probably",
        )
    add_sampling_arguments(parser, guidance=benchmark.mode == "image")
    add_model_arguments(parser)
    return parser.parse_args(words)


def sampling_of(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[str, Any]:
    """How answers are chosen: texts greedily unless something else was typed, pictures as the checkpoint says."""
    typed = {name: value for name, value in sampling_overrides(arguments).items() if name != "seed"}
    if benchmark.mode == "image":
        return typed
    if typed.get("temperature") == 0:  # as LLaVA's scripts say that nothing is left to chance
        typed = {}
    return {"greedy": not typed, "max_new_tokens": arguments.max_new_tokens, **typed}


def place_on_device(arguments: argparse.Namespace) -> None:
    """With several processes each takes its own GPU, where there are any."""
    import torch

    local_rank = os.environ.get("LOCAL_RANK")
    if arguments.device is None and local_rank is not None and torch.cuda.is_available():
        arguments.device = f"cuda:{int(local_rank) % torch.cuda.device_count()}"
