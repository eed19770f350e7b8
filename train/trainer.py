"""Train the unified model: from a recipe to a model folder, by a thin subclass of `transformers.Trainer`.

Added to it: losses weighted by tokens and codes over all ranks, bad steps, complete checkpoints, validation by task, an
average of the weights. Item b of the data set is batch b, so a resumed run sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from mllm.config import MLLMConfig
from mllm.files import UNFINISHED, whole_folder, write_text
from mllm.model import MLLMForConditionalGeneration, count_items
from mllm.processor import MLLMProcessor
from mllm.vocabulary import load_text_tokenizer
from tokenizer.number_format import fast_dtype
from tokenizer.unitok import UniTok
from train import callbacks, checkpoints
from train.build_model import build_model, freeze_all_but
from train.callbacks import EVAL_PREFIX, WeightAverage
from train.checkpoints import UNSHARDED, ZERO_2, ZERO_3, newest_checkpoint, resumes
from train.data.batches import training_batches, validation_batches
from train.data.packing import Tokenizers
from train.hardware import WAIT_IN_TRAINING, speed_up, training_device
from train.lora import add_adapters
from train.metrics import FlopCount, MetricsLog, StepMetrics, flattened, size_of
from train.optimizers import build_optimizer
from train.recipe import BadSteps, MLLMRecipe, as_yaml

logger = logging.getLogger(__name__)

OWN_KEYS = {
    "output_dir": "output", "num_train_epochs": "trainer.max_steps", "per_device_train_batch_size": "rows",
    "learning_rate": "optimizer.learning_rate", "weight_decay": "optimizer.weight_decay", "optim": "optimizer.name",
    "adam_beta1": "optimizer.betas", "adam_beta2": "optimizer.betas",
}  # fmt: skip
"""Fields of TrainingArguments whose place a recipe has a key of its own for."""


def train_mllm(recipe: MLLMRecipe) -> None:
    """Train, resuming from the newest checkpoint in the output folder, and write the finished model to `final/`."""
    arguments = training_arguments(recipe)
    prepare_output(recipe, arguments)
    image_tokenizer = UniTok.from_pretrained(recipe.image_tokenizer)
    text_tokenizer = load_text_tokenizer(recipe.text_tokenizer)
    # DeepSpeed keeps its own float32 weights, and below adapters the weights are frozen
    is_half = arguments.bf16 and (arguments.deepspeed or recipe.adapter is not None)
    base = build_model(recipe, text_tokenizer, image_tokenizer, dtype=torch.bfloat16 if is_half else torch.float32)
    logger.info("the model has %.2f M parameters", size_of(base) / 1e6)
    if arguments.use_cpu:
        speed_up(base.backbone, compiles=recipe.compile_backbone)
    elif recipe.compile_backbone:
        base.backbone.compile(dynamic=False)
    model = trainable_model(recipe, base)
    tokenizers = Tokenizers(text=text_tokenizer, image=image_tokenizer, config=base.config)
    measured = callbacks.build_callbacks(recipe, image_size=tokenizers.config.image_size)
    validation = validation_batches(recipe, tokenizers)
    names = [name for each in measured for name in each.names]
    callbacks.check_best_metric(arguments.metric_for_best_model, validation, others=names)
    num_batches = arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size
    trainer = MLLMTrainer(
        model,
        recipe=recipe,
        arguments=arguments,
        batches=training_batches(recipe, tokenizers, num_batches=num_batches),
        validation=validation,
        measure=partial(callbacks.run_callbacks, measured, base, tokenizers) if measured else None,
    )
    trainer.resume(newest_checkpoint(recipe.output))
    save_final(trainer, tokenizers)


def prepare_output(recipe: MLLMRecipe, arguments: TrainingArguments) -> None:
    """Write the resolved recipe, unless the run is finished, and make the newest checkpoint loadable; the first process
    does so for all."""
    state = PartialState()
    newest = newest_checkpoint(recipe.output)
    if newest is not None:
        checkpoints.check_sharding(newest, sharding_of_run(arguments))
    if state.is_main_process:
        recipe.output.mkdir(parents=True, exist_ok=True)
        if not checkpoints.is_finished(newest, arguments.max_steps):
            write_text(recipe.output / "recipe.yaml", as_yaml(recipe))
        shutil.rmtree(recipe.output / UNFINISHED, ignore_errors=True)
        if newest is not None and checkpoints.needs_resharding(newest, arguments.world_size):
            checkpoints.write_universal(newest)
    state.wait_for_everyone()


def trainable_model(recipe: MLLMRecipe, base: MLLMForConditionalGeneration) -> nn.Module:
    """The model with some groups frozen, or with adapters."""
    if recipe.adapter is None:
        freeze_all_but(base, recipe.trainable)
        return base
    assert recipe.start_from is not None, "a recipe with an adapter starts from a model"
    torch.manual_seed(recipe.trainer.get("seed", 0))  # adapters start random, alike on every process
    return add_adapters(base, recipe.adapter, trainable=recipe.trainable, base=recipe.start_from)


def save_final(trainer: MLLMTrainer, tokenizers: Tokenizers) -> None:
    """Write the finished model, or the finished adapter, from the first process."""
    model: Any = trainer.model
    if trainer.average:
        trainer.average.copy_to_model()
    weights = None  # those of the model itself, unless ZeRO-3 partitions them; every process gathers
    if is_deepspeed_zero3_enabled():
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        with whole_folder(trainer.recipe.output / "final") as folder:
            model.save_pretrained(folder, state_dict=weights)
            if trainer.recipe.adapter is None:
                MLLMProcessor(tokenizers.text, tokenizers.image).save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


class MLLMTrainer(Trainer):
    """`transformers.Trainer` over packed batches. `validation`: packed batches by task. `measure`: called with the step
    in every evaluation, on every process, with the model as it would be saved; gives more numbers for the log."""

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: MLLMRecipe,
        arguments: TrainingArguments,
        batches: Dataset,
        validation: Mapping[str, Dataset],
        measure: Callable[[int], dict[str, float]] | None,
    ) -> None:
        self.recipe, self.validation, self.measure = recipe, validation, measure
        self.config = cast(MLLMConfig, model.config)
        self.average = WeightAverage(model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.monitor = LossMonitor(recipe.bad_steps)
        self.is_bad_step = False
        self.step_loss: Tensor | float = 0.0
        # a limit, be it out of reach: nobody needs the logits here, and with one only those of learned positions exist
        self.options = {"max_logits_bytes": recipe.max_logits_mib * 2**20 if recipe.max_logits_mib else sys.maxsize}
        flops = FlopCount(without_adapters(model), self.config, length=recipe.length)
        self.metrics = StepMetrics(self.config.num_codebooks, flops=flops)
        self.metrics_log: MetricsLog | None = None
        super().__init__(
            model,
            args=arguments,
            train_dataset=batches,
            eval_dataset=batches if recipe.validation else None,  # only whether it is there matters: see `evaluate`
            data_collator=itemgetter(0),  # an item of the data set is a whole batch
            callbacks=[self.average] if self.average else None,
        )
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named = cast(nn.Module, model or self.model).named_parameters()
            self.optimizer = build_optimizer(self.recipe.optimizer, named)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Supervised text tokens (by their weight) plus supervised codes, over all ranks and accumulation steps."""
        if not batch_samples:
            return None
        how: Any = {"num_codebooks": self.config.num_codebooks, "text_weight": self.config.text_loss_weight}
        counts = [count_items(batch["labels"], batch["code_targets"], **how) for batch in batch_samples]
        count = torch.stack(counts).sum().to(device)
        total = self.accelerator.gather(count).sum() if self.args.world_size > 1 else count
        return total.clamp(min=1)  # where nothing is learned, the loss is 0 and not 0 / 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        sampling = {"scheduled_sampling": self.recipe.scheduled_sampling}
        output = model(**inputs, **self.options, **sampling, num_items=num_items_in_batch)
        self.metrics.add(output.loss_parts, inputs)
        # Trainer averages gradients over ranks; the count above is already over all of them.
        loss = output.loss * (self.accelerator.num_processes if num_items_in_batch is not None else 1)
        loss = self._check_loss(loss)
        return (loss, output) if return_outputs else loss

    def _check_loss(self, loss: Tensor) -> Tensor:
        """The loss; in a bad step its gradient is NaN on every process, for which DeepSpeed skips the step. It steps
        inside `backward`; elsewhere `_get_grad_norm` drops the gradient."""
        self.step_loss = self.step_loss + loss.detach()
        if not self.accelerator.sync_gradients:
            return loss
        step_loss, self.step_loss = self.accelerator.reduce(self.step_loss, "mean").item(), 0.0
        self.is_bad_step = self.monitor.is_bad_loss(step_loss, step=self.state.global_step + 1)
        if self.is_bad_step:
            loss.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.is_bad_step and norm is not None:
            self.is_bad_step = self.monitor.is_bad_gradient(float(norm), step=self.state.global_step + 1)
        if self.is_bad_step:
            model.zero_grad()  # an optimizer leaves alone what has no gradient
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        values: dict[str, float | list[float]] = {**logs}
        if "loss" in logs:
            self._tr_loss.zero_()  # the library subtracts it from itself, which leaves NaN after a bad step
        if self.metrics.num_batches and "loss" in logs:
            values |= self.metrics.drain(self.accelerator)
        if self.is_world_process_zero() and "train_runtime" not in logs:  # the summary is not a step's
            if self.metrics_log is None:
                path = self.recipe.output / "metrics.jsonl"
                self.metrics_log = MetricsLog(path, resumed_step=self.state.global_step - 1)
            self.metrics_log.write(self.state.global_step, values)
        super().log(flattened(values), start_time)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Losses by task of the weights that are trained, and what is measured on the model as it would be saved."""
        began = time.monotonic()
        how: dict[str, Any] = {"config": self.config, **self.options}
        values = callbacks.validate(self.model_wrapped, self.validation, self.accelerator, **how)
        if self.measure is not None:
            model: Any = self.model
            with callbacks.inference_model(model, without_adapters(model).backbone, self.average):
                measured = self.measure(self.state.global_step)
            values |= {f"{EVAL_PREFIX}{name}": value for name, value in measured.items()}
        self.log(values)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, values)
        self.metrics.last += time.monotonic() - began  # positions per second are those of training
        return values

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this is the best so far, which is then saved, also between two `save_steps`."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best
        return is_best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the library write a checkpoint where it does not count, then move it to the output folder."""
        output, step = str(self.args.output_dir), self.state.global_step

        def write(folder: Path) -> None:
            self.args.output_dir = str(folder.parent)
            try:
                super(MLLMTrainer, self)._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = output
            if self.state.best_model_checkpoint == str(folder):
                self.state.best_model_checkpoint = str(Path(output) / folder.name)
            if self.args.should_save:
                self.monitor.save(folder)
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

        checkpoints.write_checkpoint(Path(output), step, write, state=PartialState())
        if self.args.should_save:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(output_dir=output, save_total_limit=limit, best_model_checkpoint=best)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.average and output_dir:
            self.average.save(Path(output_dir))

    def resume(self, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            logger.info("%s", resumes(checkpoint, self.args.max_steps))
            self.monitor.load(checkpoint)
            if self.average:  # here, because with DeepSpeed the library loads nothing itself
                self.average.load(checkpoint)
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def without_adapters(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class LossMonitor:
    """Finds and counts bad steps, over all resumptions of a run: checkpoints carry the count and the recent losses."""

    WINDOW, MIN_SEEN = 50, 10  # recent losses whose median a spike is measured against, and how many are needed
    FILE = "bad_steps.json"

    def __init__(self, rule: BadSteps) -> None:
        self.rule = rule
        self.recent: deque[float] = deque(maxlen=self.WINDOW)
        self.num_bad = 0

    def is_bad_loss(self, loss: float, *, step: int) -> bool:
        """Whether the loss of a step (over all ranks) is bad; a good one is remembered. Raises ValueError: too many."""
        if not math.isfinite(loss):
            return self._count(f"the loss is {loss}", step)
        if self.rule.spike is not None and len(self.recent) >= self.MIN_SEEN:
            median = statistics.median(self.recent)
            if loss > self.rule.spike * median:
                return self._count(f"the loss is {loss:.4g}, the recent median is {median:.4g}", step)
        self.recent.append(loss)
        return False

    def is_bad_gradient(self, norm: float, *, step: int) -> bool:
        return not math.isfinite(norm) and self._count(f"the gradient norm is {norm}", step)

    def _count(self, fault: str, step: int) -> bool:
        self.num_bad += 1
        if self.num_bad > self.rule.allowed:
            raise ValueError(
                f"loss and gradient must be finite and without spikes, got a bad step {step} after {self.num_bad - 1} "
                f"skipped: {fault}; check the data or lower the learning rate and resume, or set bad_steps.allowed"
            )
        logger.warning("step %d is skipped (%d of %d): %s", step, self.num_bad, self.rule.allowed, fault)
        return True

    def save(self, folder: Path) -> None:
        (folder / self.FILE).write_text(json.dumps({"num_bad": self.num_bad, "recent": list(self.recent)}) + "\n")

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint; older ones hold nothing of this."""
        if (folder / self.FILE).is_file():
            seen = json.loads((folder / self.FILE).read_text())
            self.num_bad, self.recent = seen["num_bad"], deque(seen["recent"], maxlen=self.WINDOW)


def training_arguments(recipe: MLLMRecipe) -> TrainingArguments:
    """What the recipe says, and what packed batches need. Made before the model: under ZeRO-3 they tell transformers to
    load every weight partitioned. Raises ValueError: a key of `trainer` that TrainingArguments does not know, or keys
    that contradict each other."""
    for name, own in OWN_KEYS.items():
        if name in recipe.trainer:
            raise ValueError(f"{own} must be set instead of trainer.{name}, which has no effect; change the recipe")
    defaults = {
        "output_dir": str(recipe.output),
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "learning_rate": recipe.optimizer.learning_rate,
        "dataloader_num_workers": 1,
        "report_to": [name for name in ("tensorboard", "wandb") if find_spec(name)],
        "disable_tqdm": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": fast_dtype(training_device()) == torch.bfloat16,
        "average_tokens_across_devices": False,  # our trainer counts over the ranks itself
        "logging_nan_inf_filter": False,  # our trainer looks at every step
        "ddp_timeout": int(WAIT_IN_TRAINING.total_seconds()),  # while the first process encodes, draws or answers
        "eval_strategy": "steps" if recipe.validation else "no",
        "metric_for_best_model": "loss" if recipe.measures_losses else None,
    }
    settings: dict[str, Any] = {
        name: "no" if name.endswith("_strategy") and value is False else value  # YAML reads the word as false
        for name, value in {**defaults, **recipe.trainer}.items()
    }
    if recipe.validation and settings.get("save_total_limit") == 1:
        settings["save_total_limit"] = 2  # the best and the last; with 1 the library drops the last at the end
    if recipe.batches_per_step is not None:
        settings["gradient_accumulation_steps"], rest = divmod(recipe.batches_per_step, num_processes())
        if rest:
            counts = f"{recipe.batches_per_step} and {num_processes()}"
            raise ValueError(f"batches_per_step must be a multiple of the processes, got {counts}; change one")
    if settings.get("deepspeed"):
        universal = checkpoints.needs_resharding(newest_checkpoint(recipe.output), num_processes())
        settings["deepspeed"] = checkpoints.deepspeed_settings(settings["deepspeed"], universal=universal)
    elif settings["use_cpu"] and num_processes() > 1:
        PartialState(cpu=True, timeout=WAIT_IN_TRAINING)  # on a CPU the library does not pass `ddp_timeout` on
    for name, hint in get_type_hints(TrainingArguments).items():  # words would be compared with numbers later
        kinds, value = set(get_args(hint) or [hint]) - {NoneType}, recipe.trainer.get(name)
        if kinds and kinds <= {int, float} and type(value) not in (NoneType, int, float):
            raise ValueError(f"trainer.{name} must be a number, got {value!r}; change the recipe")
    try:
        arguments = TrainingArguments(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"trainer must fit TrainingArguments, got: {error}; change the recipe") from None
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"trainer.seed must be from 0 to 2^32 - 1, got {arguments.seed}; change the recipe")
    if arguments.max_steps < 1:
        raise ValueError(f"trainer.max_steps must be at least 1, got {arguments.max_steps}; set how many to train")
    warn_of_long_decay(arguments)
    check_supported(recipe, sharding_of_run(arguments))
    if arguments.deepspeed:
        join_deepspeed(use_cpu=arguments.use_cpu)
    return arguments


def warn_of_long_decay(arguments: TrainingArguments) -> None:
    """With fewer steps than the learning rate takes to fall, training would begin at a part of that rate."""
    settings, num_steps = arguments.lr_scheduler_kwargs, arguments.max_steps
    decay = settings.get("num_decay_steps", 0) if isinstance(settings, dict) else 0
    room = max(num_steps - arguments.get_warmup_steps(num_steps), 0)
    if decay > room:
        logger.warning(
            "num_decay_steps must be at most the %d of the %d steps that follow the warmup, got %d: training begins at "
            "%d %% of the learning rate; change trainer.lr_scheduler_kwargs and trainer.warmup_steps with max_steps",
            *(room, num_steps, decay, 100 * room / decay),
        )


def num_processes() -> int:
    """How many train together, as every launcher writes it into the environment. Accelerate would set up the
    communication to find out, before DeepSpeed can."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding_of_run(arguments: TrainingArguments) -> str:
    """The sharding that a run's checkpoints are written under."""
    if not arguments.deepspeed:
        return UNSHARDED
    return ZERO_3 if arguments.hf_deepspeed_config.is_zero3() else ZERO_2


def check_supported(recipe: MLLMRecipe, sharding: str) -> None:
    """Refuse what needs complete matrices (with DeepSpeed) or complete weights (with ZeRO-3)."""
    if sharding != UNSHARDED and recipe.optimizer.name == "muon":
        raise ValueError("optimizer.name must be adamw with DeepSpeed, got muon, which needs complete matrices")
    if sharding != ZERO_3:
        return
    if recipe.ema_decay:
        raise ValueError(f"ema_decay must be 0 with ZeRO-3, got {recipe.ema_decay}; set it to 0 or use ZeRO-2")
    for name in ("prompts", "benchmarks", "world"):
        if recipe.validation and getattr(recipe.validation, name):
            raise ValueError(f"validation.{name} must be left out with ZeRO-3; evaluate the checkpoints, or use ZeRO-2")


def join_deepspeed(*, use_cpu: bool) -> None:
    """Connect the processes before the model is built; on a CPU accelerate does not."""
    from deepspeed import comm

    if "WORLD_SIZE" not in os.environ:
        raise ValueError("trainer.deepspeed must be started by a launcher, got none; use torchrun for one process, too")
    if not comm.is_initialized():
        backend = "gloo" if use_cpu else None
        comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=WAIT_IN_TRAINING)
