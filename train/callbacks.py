"""What is measured during training: held-out losses by task, sheets of samples, benchmarks, the world's scores.

`validate` runs on every process. Callbacks get a pipeline around the model as it would be saved now (see
`inference_model` in train/checkpoints.py): the first process draws and answers while the others wait, and all get the
numbers, which the best checkpoint may be chosen by.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from torch import nn
from torch.utils.data import Dataset

from mllm.config import MLLMConfig
from mllm.engine.settings import Overrides
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
from mllm.evaluation.world import Group, answer_with, choose_groups, evaluate_world
from mllm.files import fingerprint_of, read_lines, write_image, write_json
from mllm.model import LossParts, MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.world.checker import MIN_SIDE
from tokenizer.images import side_by_side
from train.data.packing import Tokenizers
from train.metrics import StepMetrics
from train.recipe import BenchmarkInLoop, MLLMRecipe, WorldInLoop

logger = logging.getLogger(__name__)

EVAL_PREFIX = "eval_"
"""What the library's trainer expects in front of every name."""
MAX_ANSWER = 64
"""Tokens of an answer about the world, more than any right one: an untrained model must not exceed its context."""


class ValidationCallback(Protocol):
    names: Sequence[str]
    """Of the numbers it gives."""

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]: ...


def build_callbacks(recipe: MLLMRecipe, *, image_size: int) -> list[ValidationCallback]:
    """Those that the recipe asks for."""
    wanted = recipe.validation
    found: list[ValidationCallback] = []
    if wanted and wanted.prompts:
        found.append(SampleSheet(wanted.prompts, folder=recipe.output / "samples"))
    if wanted and wanted.benchmarks:
        found.append(BenchmarkScores(wanted.benchmarks, folder=recipe.output / "benchmarks"))
    if wanted and wanted.world:
        found.append(WorldScores(wanted.world, image_size=image_size))
    return found


def run_callbacks(
    callbacks: Sequence[ValidationCallback], model: MLLMForConditionalGeneration, tokenizers: Tokenizers, step: int
) -> dict[str, float]:
    """The numbers of all callbacks, on every process; the first one computes them."""
    numbers: dict[str, float] = {}
    if PartialState().is_main_process:
        was_training = model.training
        pipeline = Pipeline(model, MLLMProcessor(tokenizers.text, tokenizers.image, tokenizers.config))
        for callback in callbacks:
            numbers |= callback(pipeline, step)
        model.train(was_training)
    return broadcast_object_list([numbers])[0]


def check_best_metric(name: str | None, tasks: Iterable[str], *, others: Iterable[str]) -> None:
    """Refuse to choose the best checkpoint by a number that is not measured.

    Args:
        others: names of what is measured beside the losses.
    """
    losses = [f"{task}_{part}loss" for task in tasks for part in ("", "text_", "image_")]
    known = ["loss", *losses, *others]
    if name is not None and name.removeprefix(EVAL_PREFIX) not in known:
        raise ValueError(f"trainer.metric_for_best_model must be one of {', '.join(known)}, got {name!r}; change it")


# ---- losses ----


@torch.no_grad()
def validate(
    model: nn.Module,
    tasks: Mapping[str, Dataset],
    accelerator: Accelerator,
    *,
    config: MLLMConfig,
    options: dict[str, Any],
) -> dict[str, float]:
    """`eval_loss` over all tasks and `eval_TASK_loss`, with text and image parts, weighted as in training.

    Processes take batches in turn; all go forward equally often, because ZeRO-3 gathers weights together.

    Args:
        options: more keyword arguments of the model's forward.
    """
    was_training = model.training
    model.eval()
    values: dict[str, float] = {}
    numerator = denominator = 0.0
    for task, batches in tasks.items():
        metrics = StepMetrics(config.num_codebooks)
        num_batches = len(cast(Sized, batches))
        for first in range(0, num_batches, accelerator.num_processes):
            index = first + accelerator.process_index
            batch = send_to_device(batches[index % num_batches], accelerator.device)
            with accelerator.autocast():
                parts = model(**batch, **options).loss_parts
            metrics.add(parts if index < num_batches else _without_weight(parts), batch)
        sums, _ = metrics.totals(accelerator)
        loss = sums["text"] * config.text_loss_weight + sums["image"] + sums["z"]
        weight = sums["num_text"] * config.text_loss_weight + sums["num_image"]
        values[f"{EVAL_PREFIX}{task}_loss"] = loss / max(weight, 1)
        values[f"{EVAL_PREFIX}{task}_text_loss"] = sums["text"] / max(sums["num_text"], 1)
        values[f"{EVAL_PREFIX}{task}_image_loss"] = sums["image"] / max(sums["num_image"], 1)
        numerator, denominator = numerator + loss, denominator + weight
    values[f"{EVAL_PREFIX}loss"] = numerator / max(denominator, 1)
    model.train(was_training)
    return values


def _without_weight(parts: LossParts) -> LossParts:
    """The same shapes with no weight: a batch that another process counts."""
    tensors = {f.name: torch.zeros_like(getattr(parts, f.name)) for f in fields(parts) if not f.name.startswith("num")}
    return replace(parts, **tensors, num_text=0, num_image=0)


# ---- callbacks ----


class SampleSheet:
    """Draws prompts onto one sheet `step-N.png`, with the same seeds every time."""

    names: Sequence[str] = ()

    def __init__(self, prompts: Sequence[str], *, folder: Path) -> None:
        self.prompts, self.folder = prompts, folder

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        images = [pipeline.draw(prompt, seed=0)[0] for prompt in self.prompts]
        write_image(self.folder / f"step-{step}.png", side_by_side(images))
        return {}


class BenchmarkScores:
    """The headlines of benchmarks, by the runner and scorers of `mllm evaluate`, with its files in `step-N/NAME/`."""

    def __init__(self, benchmarks: Sequence[BenchmarkInLoop], *, folder: Path) -> None:
        self.benchmarks, self.folder = benchmarks, folder
        self.names: Sequence[str] = [wanted.name for wanted in benchmarks]
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
    """Score empty answers: a wrong path, or a part that cannot be scored, is an error now and not after hours."""
    benchmark = find_benchmark(wanted.name)
    if benchmark.mode != "text":
        raise ValueError(f"validation.benchmarks must answer in text, got {wanted.name}; use mllm evaluate")
    items = benchmark.read_items(wanted.questions, wanted.images)[: wanted.limit]
    options = ScoreOptions(folder=wanted.questions.parent)
    benchmark.score([AnsweredItem(item) for item in items], wanted.annotations, options)


def run_and_score(pipeline: Pipeline, wanted: BenchmarkInLoop, *, folder: Path) -> dict[str, Any]:
    benchmark = find_benchmark(wanted.name)
    items = benchmark.read_items(wanted.questions, wanted.images)
    chosen = items[: wanted.limit]
    sampling = {"greedy": True, "max_new_tokens": benchmark.max_new_tokens}
    counts = (len(chosen), len(items))
    description = describe_run(pipeline, benchmark, wanted.questions, counts=counts, seed=0, sampling=sampling)
    answerer = PipelineAnswerer(pipeline, benchmark.mode, cast(Overrides, sampling))
    run = RunFolder(folder)
    if run.is_of_another(description):  # training resumed from a checkpoint before this step, with other weights
        logger.warning("%s holds answers of an interrupted run; they are replaced", folder)
        shutil.rmtree(folder)
    run_items(chosen, answerer, run, description=description, batch_size=wanted.batch_size)
    answered = match_answers(benchmark, chosen, read_lines(run.answers_file), answers=folder)
    scores = benchmark.score(answered, wanted.annotations, ScoreOptions(folder=folder))
    files = {name: fingerprint_of(getattr(wanted, name)) for name in ("annotations", "questions")}
    result = make_result(wanted.name, scores, run=description, expected=len(items), scored=len(answered), files=files)
    write_json(folder / RESULT_FILE, result)
    return result


class WorldScores:
    """Pass rates on the same few items of the synthetic world: `world_JOB`, and `world`, their mean."""

    def __init__(self, wanted: WorldInLoop, *, image_size: int) -> None:
        if image_size < MIN_SIDE:
            raise ValueError(
                f"validation.world must have images of >= {MIN_SIDE} pixels, got {image_size}; leave it out"
            )
        self.wanted, self.groups = wanted, choose_groups(wanted.jobs)
        self.names: Sequence[str] = ["world", *map(name_of, self.groups)]

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        answer = answer_with(pipeline, at_once=self.wanted.batch_size, max_text=MAX_ANSWER)
        size, groups = pipeline.config.image_size, self.groups
        scores = evaluate_world(answer, count=self.wanted.count, seed=0, size=size, groups=groups)
        rates = {name_of(group): scores[group.name]["rate"] for group in self.groups}
        return {"world": sum(rates.values()) / len(rates), **rates}


def name_of(group: Group) -> str:
    return f"world_{group.job}" + ("_held_out" if group.pairs == "held_out" else "")
