"""Train the unified model: a thin subclass of `transformers.Trainer`.

What is added to the library's trainer: the loss is weighted by tokens and codes over all ranks and accumulation
steps, its parts are logged (image loss per codebook, positions per second, padding share), bad steps are skipped or end
the run, checkpoints are whole or do not count, validation is by task, the optimizer comes from the recipe, and an
average of the weights is kept. Batches come whole from the data set: item b of the data set is batch b, so skipping to
a batch costs nothing and a resumed run sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import rotate_checkpoints

from mllm.model import count_items
from train.callbacks import PREFIX, Observers, validate
from train.checkpoints import (
    PLAIN,
    ZERO_2,
    ZERO_3,
    WeightAverage,
    as_saved,
    finish,
    mark_unfinished,
    needs_joining,
    newest_checkpoint,
    reads_joined,
)
from train.hardware import WAIT_IN_TRAINING, fast_dtype, training_device
from train.metrics import FlopCount, MetricsLog, StepMetrics, flattened
from train.optimizers import build_optimizer
from train.recipe import MLLMRecipe, StepJudge

OUTSIDE_MUON = ("embed_tokens", "lm_head", "codebooks", "linear_head", "output", "places")
"""Embeddings and output layers, by parts of their names."""


class MLLMTrainer(Trainer):
    """`transformers.Trainer` over packed batches.

    Args:
        validation: packed batches by task, for `evaluate`.
        observers: called with the step in every evaluation, on every process; the model is then what would be saved.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: MLLMRecipe,
        arguments: TrainingArguments,
        batches: Dataset,
        validation: Mapping[str, Dataset] | None = None,
        observers: Observers,
    ) -> None:
        self.recipe, self.batches, self.validation, self.observers = recipe, batches, validation or {}, observers
        self.config = model.config
        self.average = WeightAverage(model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.judge = StepJudge(recipe.bad_steps)
        self.fault: str | None = None
        self.step_loss: Tensor | float = 0.0
        self.options = {"max_logits_bytes": recipe.max_logits_mib * 2**20} if recipe.max_logits_mib else {}
        self.metrics = StepMetrics(
            self.config.num_codebooks, flops=FlopCount(inner_model(model), self.config, length=recipe.length)
        )
        self.metrics_log: MetricsLog | None = None
        super().__init__(
            model,
            args=arguments,
            train_dataset=batches,
            eval_dataset=batches if self.validation else None,  # only its presence is asked for: see `evaluate`
            data_collator=_only_item,
            callbacks=[self.average] if self.average else None,
        )
        self.model_accepts_loss_kwargs = True

    # ---- batches and optimizer ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(range(len(self.batches)))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            learner = model if model is not None else self.model
            assert learner is not None, "a trainer has a model"
            self.optimizer = build_optimizer(
                self.recipe.optimizer, learner.named_parameters(), outside_muon=OUTSIDE_MUON
            )
        return self.optimizer

    # ---- loss ----

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Supervised text tokens (by their weight) plus supervised codes, over all ranks and accumulation steps."""
        if not batch_samples:
            return None
        counts = [
            count_items(
                batch["labels"],
                batch["code_targets"],
                num_codebooks=self.config.num_codebooks,
                text_weight=self.config.text_loss_weight,
            )
            for batch in batch_samples
        ]
        count = torch.stack(counts).sum()
        count = count.to(device)
        total = self.accelerator.gather(count).sum() if self.args.world_size > 1 else count
        return total.clamp(min=1)  # where nothing is learned, the loss is 0 and no 0 / 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        output = model(**inputs, **self.options, num_items_in_batch=num_items_in_batch)
        self.metrics.add(output.loss_parts, inputs)
        # Trainer averages gradients over ranks; the count above is already over all of them.
        loss = output.loss * (self.accelerator.num_processes if num_items_in_batch is not None else 1)
        loss = self._judged(loss)
        return (loss, output) if return_outputs else loss

    # ---- bad steps ----

    def _judged(self, loss: Tensor) -> Tensor:
        """The loss; that of a bad step becomes infinite, which makes its gradient no number on every process.

        Why this way: DeepSpeed steps inside `backward`, and leaves a step out when its gradient is no number.
        """
        self.step_loss = self.step_loss + loss.detach()
        if not self.accelerator.sync_gradients:
            return loss
        step_loss, self.step_loss = self.accelerator.reduce(self.step_loss, "mean").item(), 0.0
        self.fault = self.judge.fault_of_loss(step_loss)
        if self.fault is None:
            return loss
        self._count_fault()
        return loss * float("inf")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        is_new_fault = self.fault is None and norm is not None
        if is_new_fault:
            self.fault = self.judge.fault_of_gradient(float(norm))
        if self.fault is not None:
            if is_new_fault:
                self._count_fault()
            model.zero_grad()  # an optimizer leaves alone what has no gradient
            self.fault = None
        return norm

    def _count_fault(self) -> None:
        assert self.fault is not None, "a fault is counted where one was found"
        self.judge.count(self.fault, step=self.state.global_step + 1)

    # ---- log and validation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        values: dict[str, float | list[float]] = {**logs}
        if self.metrics.num_batches and "loss" in logs:
            values |= self.metrics.drain(self.accelerator)
        if self.is_world_process_zero() and "train_runtime" not in logs:  # the summary is not a step's
            self._metrics_log().write(self.state.global_step, values)
        super().log(flattened(values), start_time)

    def _metrics_log(self) -> MetricsLog:
        if self.metrics_log is None:
            path = self.recipe.output / "metrics.jsonl"
            self.metrics_log = MetricsLog(path, resumed_step=self.state.global_step - 1)
        return self.metrics_log

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Losses by task of the weights that learn (train/callbacks.py), and what the observers find."""
        began = time.monotonic()
        values = validate(
            self.model_wrapped,
            self.validation,
            self.accelerator,
            num_codebooks=self.config.num_codebooks,
            text_weight=self.config.text_loss_weight,
            options=self.options,
        )
        if self.observers:
            with as_saved(self.model, inner_model(self.model).backbone, self.average):
                found = self.observers(self.state.global_step)
            values |= {f"{PREFIX}{name}": value for name, value in found.items()}
        self.log(values)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, values)
        self.metrics.last += time.monotonic() - began  # no training time: positions per second leave it out
        return values

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this is the best so far, which then is saved, also between two `save_steps`."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best
        return is_best

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint that counts only when every process is done; then drop old ones."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            mark_unfinished(folder)
        self.accelerator.wait_for_everyone()  # else another process could write first, and be killed
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # nothing is dropped before the end
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.judge.save(folder)
            finish(folder)
            rotate_checkpoints(
                output_dir=self.args.output_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.average and output_dir:
            self.average.save(Path(output_dir))

    def go_on_from(self, checkpoint: Path | None) -> None:
        """Train on from a checkpoint, or from the start."""
        if checkpoint is not None:
            self.judge.load(checkpoint)
            if self.average:  # here, because the library loads nothing itself where DeepSpeed does
                self.average.load(checkpoint)
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """All weights on the first process, gathered where they are sharded; every process must call it."""
        if not is_deepspeed_zero3_enabled():
            return None
        return self.accelerator.get_state_dict(self.model_wrapped)


def inner_model(model: nn.Module) -> nn.Module:
    """The model below adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _only_item(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch comes whole from the data set, so a loader's batch has one item."""
    assert len(items) == 1, f"the loader must take one packed batch at a time, got {len(items)}"
    return items[0]


# From a recipe to the library's training arguments: what the recipe says, and what packed batches need.
#
# Made before the model: under DeepSpeed ZeRO-3 they are what tells transformers to load every weight in parts.


TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Name in transformers, and the module that must be installed."""

WITH_WHOLE_WEIGHTS = {"prompts": "draws pictures", "benchmarks": "answers questions", "world": "draws and answers"}
"""Fields of `validation` that look at the model as it would be saved."""


def training_arguments(recipe: MLLMRecipe) -> TrainingArguments:
    """The library's arguments.

    Raises:
        ValueError: a key of `trainer` that TrainingArguments does not know, or keys that contradict each other.
    """
    fixed = {
        "output_dir": str(recipe.output),
        "per_device_train_batch_size": 1,  # an item of the data set is a whole batch
        "remove_unused_columns": False,
        "learning_rate": recipe.optimizer.learning_rate,
        "dataloader_num_workers": 1,
        "report_to": [name for name, module in TRACKERS.items() if find_spec(module)],
        "disable_tqdm": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": fast_dtype(training_device()) == torch.bfloat16,
        "average_tokens_across_devices": False,  # our trainer counts over the ranks itself
        "logging_nan_inf_filter": False,  # our trainer judges every step
        "ddp_timeout": int(WAIT_IN_TRAINING.total_seconds()),  # while the first process encodes, draws or answers
        "eval_strategy": "steps" if recipe.validation else "no",
        "metric_for_best_model": "loss" if recipe.validation else None,
    }
    fields = {
        name: "no" if name.endswith("_strategy") and value is False else value  # YAML reads the word as false
        for name, value in {**fixed, **recipe.trainer}.items()
    }
    if recipe.validation and fields.get("save_total_limit") == 1:
        fields["save_total_limit"] = 2  # the best and the last; with 1 the library drops the last at the end
    if recipe.batches_per_step is not None:
        fields["gradient_accumulation_steps"] = accumulation_steps(recipe.batches_per_step)
    if fields.get("deepspeed") and needs_joining(newest_checkpoint(recipe.output), num_processes()):
        fields["deepspeed"] = reads_joined(fields["deepspeed"])
    if fields["use_cpu"] and not fields.get("deepspeed") and num_processes() > 1:
        PartialState(cpu=True, timeout=WAIT_IN_TRAINING)  # on a CPU the library does not pass `ddp_timeout` on
    try:
        arguments = TrainingArguments(**fields)
    except TypeError as error:
        raise ValueError(f"trainer has a key that TrainingArguments does not know: {error}; mend the recipe") from None
    check_sharding(recipe, arguments)
    if arguments.deepspeed:
        join_deepspeed(use_cpu=arguments.use_cpu)
    return arguments


def join_deepspeed(*, use_cpu: bool) -> None:
    """Tell DeepSpeed of the other processes before the model is built; on a CPU accelerate leaves that out.

    Raises:
        ValueError: no launcher started this process.
    """
    from deepspeed import comm

    if "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "trainer.deepspeed needs processes that know of each other, and no launcher was found; start with "
            "torchrun, accelerate launch or deepspeed, also for a single process"
        )
    if not comm.is_initialized():
        backend = "gloo" if use_cpu else None
        comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=WAIT_IN_TRAINING)


def accumulation_steps(batches_per_step: int) -> int:
    """Batches that one process adds up for a step, from the batches of all."""
    world = num_processes()
    if batches_per_step % world:
        raise ValueError(
            f"batches_per_step does not divide among the processes: found {batches_per_step} and {world}; "
            "use a multiple of the processes"
        )
    return batches_per_step // world


def num_processes() -> int:
    """How many train together, as every launcher writes it into the environment.

    Asking accelerate would already set up the exchange between processes, before DeepSpeed can.
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding_of_run(arguments: TrainingArguments) -> str:
    """What checkpoints of a run are written under."""
    if not arguments.deepspeed:
        return PLAIN
    return ZERO_3 if arguments.hf_deepspeed_config.is_zero3() else ZERO_2


def check_sharding(recipe: MLLMRecipe, arguments: TrainingArguments) -> None:
    """Refuse what a sharded optimizer or model cannot do."""
    if not arguments.deepspeed:
        return
    if recipe.optimizer.name == "muon":
        raise ValueError("optimizer.name is muon, which needs whole matrices; use adamw with DeepSpeed")
    if not arguments.hf_deepspeed_config.is_zero3():
        return
    if recipe.ema_decay:
        raise ValueError(f"ema_decay is {recipe.ema_decay}, which needs whole weights; use 0 with ZeRO-3, or ZeRO-2")
    for name, work in WITH_WHOLE_WEIGHTS.items():
        if recipe.validation and getattr(recipe.validation, name):
            raise ValueError(
                f"validation.{name} {work}, which needs whole weights; leave it out with ZeRO-3 and look at the "
                "checkpoints, or use ZeRO-2"
            )
