"""From a recipe to the library's training arguments: what the recipe says, and what packed batches need.

Made before the model: under DeepSpeed ZeRO-3 they are what tells transformers to load every weight in parts.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from train.checkpoint.checkpoints import newest_checkpoint
from train.checkpoint.resharding import PLAIN, ZERO_2, ZERO_3, needs_joining, reads_joined
from train.data.processes import WAIT_IN_TRAINING
from train.mllm_recipe import MLLMRecipe
from train.precision import prefers_bfloat16

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
        "bf16": prefers_bfloat16(),
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
