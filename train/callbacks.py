"""During the training: an average of the weights, and what is measured on the way.

Measured are held-out losses by task, sheets of samples, benchmarks and the world's scores. `validate` runs on every
process; the rest on the first one, on a pipeline around the model as it would be saved now (`inference_model`). All get
the numbers, by which the best checkpoint may be chosen.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback

from mllm.config import MLLMConfig
from mllm.engine.settings import Overrides
from mllm.evaluation import protocol
from mllm.evaluation.answerer import PipelineAnswerer, choose_groups, describe_run
from mllm.evaluation.protocol import AnsweredItem, ScoreOptions, find_benchmark
from mllm.evaluation.run import RunFolder, run_items
from mllm.evaluation.world import GROUPS, Group, answer_with, evaluate_world
from mllm.files import fingerprint_of, read_lines, write_image, write_json
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.world.checker import MIN_SIDE
from tokenizer.images import side_by_side
from train.data.packing import Tokenizers
from train.metrics import StepMetrics
from train.recipe import BenchmarkInLoop, MLLMRecipe, WorldInLoop

logger = logging.getLogger(__name__)

AVERAGE = "average.safetensors"
EVAL_PREFIX = "eval_"  # what the library's trainer expects in front of every name
MAX_ANSWER = 64  # tokens of an answer about the world: an untrained model must not exceed its context


class WeightAverage(TrainerCallback):
    """An exponential moving average of the trainable weights, updated after every step and saved in checkpoints. It is
    float32 also for bfloat16 weights (DeepSpeed's), where an update by 1 - decay would be rounded away."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        trained = nn.ParameterList(self.trainable.values())
        self.average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay)).float()

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: kept.data for name, kept in zip(self.trainable, self.average.module.parameters(), strict=True)}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.average.update_parameters(nn.ParameterList([each.detach().float() for each in self.trainable.values()]))

    def save(self, folder: Path) -> None:
        save_file({**self.weights, "num_averaged": self.average.n_averaged}, folder / AVERAGE)

    def load(self, folder: Path) -> None:
        stored = load_file(folder / AVERAGE)
        for name, kept in {**self.weights, "num_averaged": self.average.n_averaged}.items():
            kept.copy_(stored[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, kept in self.weights.items():
            self.trainable[name].copy_(kept)


@contextmanager
def inference_model(model: nn.Module, backbone: PreTrainedModel, average: WeightAverage | None) -> Iterator[None]:
    """Within, `model` computes what a model that is saved now and loaded again computes. It has the averaged weights
    (its own are kept in the CPU's memory), in the precision of frozen ones (with adapters: float32 next to bfloat16),
    the attention of loaded models, and a `backbone` that is not compiled (it would compile again for every length of a
    dialogue)."""
    attention, compiled = backbone.config._attn_implementation, backbone._compiled_call_impl
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    own, averaged = {name: weight.data for name, weight in weights.items()}, average.weights if average else {}
    kept = {name: own[name].to("cpu", copy=True) for name in averaged}
    frozen = [weight.dtype for weight in weights.values() if not weight.requires_grad]
    dtype = next(iter(frozen or [data.dtype for data in own.values()]))
    backbone.set_attn_implementation("sdpa")
    backbone._compiled_call_impl = None
    try:
        for name, data in averaged.items():
            own[name].copy_(data)
        for name, data in own.items():
            weights[name].data = data.to(dtype)
        yield
    finally:
        for name, data in own.items():
            weights[name].data = data.copy_(kept[name]) if name in kept else data
        backbone.set_attn_implementation(attention)
        backbone._compiled_call_impl = compiled


class Measurement(NamedTuple):
    """What every validation measures on a pipeline in some step, and the names of its numbers."""

    names: Sequence[str]
    measure: Callable[[Pipeline, int], dict[str, float]]


def build_callbacks(recipe: MLLMRecipe, *, image_size: int) -> list[Measurement]:
    wanted, found = recipe.validation, list[Measurement]()
    if wanted is None:
        return []
    if wanted.prompts:
        found.append(Measurement((), partial(draw_sheet, wanted.prompts, recipe.output / "samples")))
    if wanted.benchmarks:
        for each in wanted.benchmarks:
            check_benchmark(each)
        names = [each.name for each in wanted.benchmarks]
        found.append(Measurement(names, partial(score_benchmarks, wanted.benchmarks, recipe.output / "benchmarks")))
    if wanted.world:
        if image_size < MIN_SIDE:
            raise ValueError(f"validation.world needs images of >= {MIN_SIDE} pixels, got {image_size}; leave it out")
        groups = {name_of(group): group for group in choose_groups(GROUPS, wanted.world.jobs)}
        found.append(Measurement(["world", *groups], partial(score_world, wanted.world, groups)))
    return found


def run_callbacks(
    callbacks: Sequence[Measurement], model: MLLMForConditionalGeneration, tokenizers: Tokenizers, step: int
) -> dict[str, float]:
    """The numbers of all callbacks, on every process; the first one computes them."""
    numbers: dict[str, float] = {}
    if PartialState().is_main_process:
        was_training = model.training
        pipeline = Pipeline(model, MLLMProcessor(tokenizers.text, tokenizers.image, tokenizers.config))
        for callback in callbacks:
            numbers |= callback.measure(pipeline, step)
        model.train(was_training)
    return broadcast_object_list([numbers])[0]


def check_best_metric(name: str | None, tasks: Iterable[str], *, others: Iterable[str]) -> None:
    """Refuse to choose the best checkpoint by a number that is not measured; `others`: those that are no losses."""
    losses = [f"{task}_{part}loss" for task in tasks for part in ("", "text_", "image_")]
    known = [*(["loss"] if losses else []), *losses, *others]
    if name is not None and name.removeprefix(EVAL_PREFIX) not in known:
        raise ValueError(f"trainer.metric_for_best_model must be one of {', '.join(known)}, got {name!r}; change it")


@torch.no_grad()
def validate(
    model: nn.Module, tasks: Mapping[str, Dataset], accelerator: Accelerator, *, config: MLLMConfig, **options: Any
) -> dict[str, float]:
    """`eval_loss` over all tasks, if any, and `eval_TASK_loss`, with text and image parts, weighted as in training.
    Processes take batches in turn; all go forward equally often, because ZeRO-3 gathers weights together. `options`:
    more keyword arguments of the model's forward."""
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
            if index < num_batches:  # another process counts the batch
                metrics.add(parts, batch)
        sums, _ = metrics.totals(accelerator)
        loss = sums["text"] * config.text_loss_weight + sums["image"] + sums["z"]
        weight = sums["num_text"] * config.text_loss_weight + sums["num_image"]
        values[f"{EVAL_PREFIX}{task}_loss"] = loss / max(weight, 1)
        values[f"{EVAL_PREFIX}{task}_text_loss"] = sums["text"] / max(sums["num_text"], 1)
        values[f"{EVAL_PREFIX}{task}_image_loss"] = sums["image"] / max(sums["num_image"], 1)
        numerator, denominator = numerator + loss, denominator + weight
    if tasks:
        values[f"{EVAL_PREFIX}loss"] = numerator / max(denominator, 1)
    model.train(was_training)
    return values


def draw_sheet(prompts: Sequence[str], folder: Path, pipeline: Pipeline, step: int) -> dict[str, float]:
    """Draw prompts onto one sheet `step-N.png`, with the same seeds every time."""
    images = [pipeline.draw(prompt, seed=0)[0] for prompt in prompts]
    write_image(folder / f"step-{step}.png", side_by_side(images))
    return {}


def score_benchmarks(
    benchmarks: Sequence[BenchmarkInLoop], folder: Path, pipeline: Pipeline, step: int
) -> dict[str, float]:
    """The headlines of benchmarks, by the runner and scorers of `mllm evaluate`, with its files in `step-N/NAME/`."""
    headlines = {}
    for wanted in benchmarks:
        result = run_and_score(pipeline, wanted, folder=folder / f"step-{step}" / wanted.name)
        headlines[wanted.name] = result["scores"][result["headline"]]["value"]
        what = f"{result['protocol']}, {protocol.completeness(result)}: {result['headline']}"
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
    answered = protocol.match_answers(benchmark, chosen, read_lines(run.answers_file), answers=folder)
    scores = benchmark.score(answered, wanted.annotations, ScoreOptions(folder=folder))
    files = {name: fingerprint_of(getattr(wanted, name)) for name in ("annotations", "questions")}
    result = protocol.make_result(
        wanted.name, scores, run=description, expected=len(items), scored=len(answered), files=files
    )
    write_json(folder / protocol.RESULT_FILE, result)
    return result


def score_world(wanted: WorldInLoop, groups: Mapping[str, Group], pipeline: Pipeline, step: int) -> dict[str, float]:
    """Pass rates on the same few items of the synthetic world: `world_JOB`, and `world`, their mean."""
    answer = answer_with(pipeline, at_once=wanted.batch_size, max_text=MAX_ANSWER)
    size = pipeline.config.image_size
    scores = evaluate_world(answer, count=wanted.count, seed=0, size=size, groups=list(groups.values()))
    rates = {name: scores[group.name]["rate"] for name, group in groups.items()}
    return {"world": sum(rates.values()) / len(rates), **rates}


def name_of(group: Group) -> str:
    return f"world_{group.job}" + ("_held_out" if group.pairs == "held_out" else "")
