"""Benchmarks in the middle of training, through the same runner and scorers as `mllm evaluate`.

In: the model as it would be saved now (train/checkpoints.py), and which benchmarks. Out:
`benchmarks/step-N/NAME/` with run.json, answers.jsonl and result.json for each, and their headlines in the log. The
score is that of `mllm evaluate` on the saved model in the same number format, which run.json names. The first process
answers and the others wait.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from mllm.conversation import Message, Mode
from mllm.engine.request import Overrides
from mllm.evaluation.answerer import PipelineAnswerer, describe_run
from mllm.evaluation.protocol import (
    RESULT_FILE,
    AnsweredItem,
    ScoreOptions,
    completeness,
    find_benchmark,
    make_result,
    match_answers,
)
from mllm.evaluation.run import RunFolder, run_items
from mllm.evaluation.world import Group, choose_groups, evaluate_world
from mllm.files import fingerprint_of, read_lines, write_json
from mllm.model import LossParts, MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.world.checker import MIN_SIDE
from tokenizer.images import side_by_side
from train.data.packing import Tokenizers
from train.metrics import StepMetrics
from train.recipe import BenchmarkInLoop, WorldInLoop

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
    options = ScoreOptions(folder=wanted.questions.parent)
    benchmark.score([AnsweredItem(item) for item in items], wanted.annotations, options)


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
    scores = benchmark.score(answered, wanted.annotations, ScoreOptions(folder=folder))
    files = {name: fingerprint_of(getattr(wanted, name)) for name in ("annotations", "questions")}
    result = make_result(wanted.name, scores, run=description, expected=len(items), scored=len(answered), files=files)
    write_json(folder / RESULT_FILE, result)
    return result


# What looks at the model whenever it is validated: sheets of samples, benchmarks, the world's scores.
#
# In: the model as it would be saved now (train/checkpoints.py). Out: what each observer writes, and numbers for
# the log. The first process works and the others wait; all get the numbers, by which the best checkpoint may be chosen.


class Observer(Protocol):
    names: Sequence[str]
    """Of the numbers it gives."""

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]: ...


class Observers:
    """Called with a step, on every process."""

    def __init__(
        self, model: MLLMForConditionalGeneration, tokenizers: Tokenizers, observers: Sequence[Observer]
    ) -> None:
        self.model, self.tokenizers, self.observers = model, tokenizers, observers

    def __len__(self) -> int:
        return len(self.observers)

    @property
    def names(self) -> list[str]:
        """Of all numbers."""
        return [name for observer in self.observers for name in observer.names]

    def __call__(self, step: int) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if PartialState().is_main_process:
            was_training = self.model.training
            pipeline = Pipeline(
                self.model, MLLMProcessor(self.tokenizers.text, self.tokenizers.image, self.model.config)
            )
            for observer in self.observers:
                numbers |= observer(pipeline, step)
            self.model.train(was_training)
        return broadcast_object_list([numbers])[0]


# Pictures that a model draws in the middle of its training, on one sheet: quality for the eye.
#
# In: the model as it would be saved now and sentences. Out: `step-N.png`. The same seeds every time, so that sheets can
# be compared.


class SampleSheet:
    """Called with a pipeline on the first process."""

    names: Sequence[str] = ()

    def __init__(self, prompts: Sequence[str], *, folder: Path) -> None:
        self.prompts, self.folder = prompts, folder

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = [pipeline.draw(prompt, seed=0)[0] for prompt in self.prompts]
        side_by_side(pictures).save(self.folder / f"step-{step}.png")
        return {}


# Losses on held-out batches, of each task alone, on any number of processes.
#
# In: a model and packed batches by task. Out: the same means as in training. Processes take batches in turn; all go
# forward equally often, because a sharded model (ZeRO-3) gathers its weights together.


PREFIX = "eval_"
"""What the library's trainer expects in front of every name."""


@torch.no_grad()
def validate(
    model: nn.Module,
    tasks: Mapping[str, Dataset],
    accelerator: Accelerator,
    *,
    num_codebooks: int,
    text_weight: float,
    options: dict[str, Any],
) -> dict[str, float]:
    """`eval_loss` over all tasks and `eval_TASK_loss`, with text and image parts, in the units of the training log.

    Args:
        options: more keyword arguments of the model's forward.
    """
    was_training = model.training
    model.eval()
    values: dict[str, float] = {}
    numerator = denominator = 0.0
    for task, batches in tasks.items():
        sums = StepMetrics(num_codebooks)
        num_batches, world = len(batches), accelerator.num_processes
        for first in range(0, num_batches, world):
            index = first + accelerator.process_index
            batch = send_to_device(batches[index % num_batches], accelerator.device)
            with accelerator.autocast():
                parts = model(**batch, **options).loss_parts
            sums.add(parts if index < num_batches else nothing_of(parts), batch)
        text, num_text, image, z, num_image = sums.totals(accelerator)[:5]
        weighted, weight = text * text_weight + image + z, num_text * text_weight + num_image
        values[f"{PREFIX}{task}_loss"] = weighted / max(weight, 1)
        values[f"{PREFIX}{task}_text_loss"] = text / max(num_text, 1)
        values[f"{PREFIX}{task}_image_loss"] = image / max(num_image, 1)
        numerator, denominator = numerator + weighted, denominator + weight
    values[f"{PREFIX}loss"] = numerator / max(denominator, 1)
    model.train(was_training)
    return values


def check_best_metric(name: str | None, tasks: Iterable[str], *, others: Iterable[str]) -> None:
    """Refuse to choose the best checkpoint by a number that is not measured, before hours of training.

    Args:
        others: names of what is measured beside the losses.
    """
    if name is None:
        return
    losses = [f"{task}_{part}loss" for task in tasks for part in ("", "text_", "image_")]
    known = ["loss", *losses, *others]
    if name.removeprefix(PREFIX) not in known:
        raise ValueError(
            f"the best checkpoint is to be chosen by a number that is not measured: found "
            f"trainer.metric_for_best_model {name!r}; name one of {', '.join(known)}"
        )


def nothing_of(parts: LossParts) -> LossParts:
    """The same shapes with no weight: a batch that another process counts."""
    tensors = {f.name: torch.zeros_like(getattr(parts, f.name)) for f in fields(parts) if not f.name.startswith("num")}
    return replace(parts, **tensors, num_text=0, num_image=0)


# The synthetic world's scores in the middle of training: a few items of each job, judged by the exact checker.
#
# In: the model as it would be saved now. Out: numbers for the log: `world_JOB`, pass rates from 0 to 1, and `world`,
# their mean. The same items every time, so that steps can be compared.


OVERALL = "world"
MAX_ANSWER = 64
"""Tokens of an answer in words, more than any right one: a model that still rambles must not outgrow its context."""


class WorldScores:
    """Called with a pipeline on the first process.

    Raises:
        ValueError: a job that the world does not score, or pictures too small for its checker.
    """

    def __init__(self, wanted: WorldInLoop, *, image_size: int) -> None:
        if image_size < MIN_SIDE:
            raise ValueError(
                f"validation.world reads pictures of {MIN_SIDE} pixels or more: found an image tokenizer of "
                f"{image_size}; leave it out, or use a larger one"
            )
        self.wanted, self.groups = wanted, choose_groups(wanted.jobs)
        self.names = [OVERALL, *map(name_of, self.groups)]

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        def answer(
            dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
        ) -> list[list[str | Image.Image]]:
            if mode == "text":
                return pipeline.answer(dialogues, mode, seeds, max_new_tokens=MAX_ANSWER)
            return pipeline.answer(dialogues, mode, seeds)

        scores = evaluate_world(
            answer,
            count=self.wanted.count,
            seed=0,
            batch_size=self.wanted.batch_size,
            size=pipeline.config.image_size,
            groups=self.groups,
        )
        rates = {name_of(group): scores[group.name]["rate"] for group in self.groups}
        return {OVERALL: sum(rates.values()) / len(rates), **rates}


def name_of(group: Group) -> str:
    """A group in one word."""
    return f"{OVERALL}_{group.job}" + ("_held_out" if group.pairs == "held_out" else "")
