"""Benchmarks in the middle of training, through the same runner and scorers as `mllm evaluate`.

In: the model as it would be saved now (train/checkpoint/as_saved.py), and which benchmarks. Out:
`benchmarks/step-N/NAME/` with run.json, answers.jsonl and result.json for each, and their headlines in the log. The
score is that of `mllm evaluate` on the saved model in the same number format, which run.json names. The first process
answers and the others wait.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mllm.evaluation.answerer import PipelineAnswerer
from mllm.evaluation.answers import match_answers
from mllm.evaluation.benchmark import Answered, ScoreOptions
from mllm.evaluation.description import describe_run
from mllm.evaluation.registry import find_benchmark
from mllm.evaluation.result import RESULT_FILE, completeness, make_result
from mllm.evaluation.run_folder import RunFolder
from mllm.evaluation.runner import run_items
from mllm.generation.row_builder import Overrides
from mllm.json_files import fingerprint_of, read_lines, write_json
from mllm.pipeline import Pipeline
from train.mllm_recipe import BenchmarkInLoop

logger = logging.getLogger(__name__)


class BenchmarksInLoop:
    """Called with a pipeline on the first process."""

    def __init__(self, benchmarks: Sequence[BenchmarkInLoop], *, folder: Path) -> None:
        self.benchmarks, self.folder = benchmarks, folder
        self.names = [wanted.name for wanted in benchmarks]
        for wanted in benchmarks:
            check_benchmark(wanted)

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        headlines = {}
        for wanted in self.benchmarks:
            result = run_and_score(pipeline, wanted, folder=self.folder / f"step-{step}" / wanted.name)
            headlines[wanted.name] = result["scores"][result["headline"]]["value"]
            what = f"{result['protocol']}, {completeness(result)}: {result['headline']}"
            logger.info("step %d, %s %.2f", step, what, headlines[wanted.name])
        return headlines


def check_benchmark(wanted: BenchmarkInLoop) -> None:
    """Score silence: a path that is wrong, or a part that cannot be scored, is named now and not after hours."""
    benchmark = find_benchmark(wanted.name)
    if benchmark.mode != "text":
        raise ValueError(
            f"validation.benchmarks takes questions: found {wanted.name}, which draws; name it to mllm evaluate"
        )
    items = benchmark.read_items(wanted.questions, wanted.images)[: wanted.limit]
    options = ScoreOptions(annotations=wanted.annotations, folder=wanted.questions.parent)
    benchmark.score([Answered(item, text="") for item in items], options)


def run_and_score(pipeline: Pipeline, wanted: BenchmarkInLoop, *, folder: Path) -> dict[str, Any]:
    """Answer the first items of a benchmark, score them, write the result."""
    benchmark = find_benchmark(wanted.name)
    items = benchmark.read_items(wanted.questions, wanted.images)
    chosen = items[: wanted.limit]
    sampling = {"greedy": True, "max_new_tokens": benchmark.max_new_tokens}
    counts = (len(chosen), len(items))
    description = describe_run(pipeline, benchmark, wanted.questions, counts=counts, seed=0, sampling=sampling)
    answerer = PipelineAnswerer(pipeline, benchmark.mode, cast(Overrides, sampling))
    run = RunFolder(folder)
    if run.is_of_another(description):  # training went on from a checkpoint before this step, with other weights
        logger.warning("%s holds answers of an earlier course of this training; they are replaced", folder)
        shutil.rmtree(folder)
    run_items(chosen, answerer, run, description=description, batch_size=wanted.batch_size)
    answered = match_answers(benchmark, chosen, read_lines(run.answers_file), answers=folder)
    scores = benchmark.score(answered, ScoreOptions(annotations=wanted.annotations, folder=folder))
    files = {name: fingerprint_of(getattr(wanted, name)) for name in ("annotations", "questions")}
    result = make_result(wanted.name, scores, run=description, expected=len(items), scored=len(answered), files=files)
    write_json(folder / RESULT_FILE, result)
    return result
