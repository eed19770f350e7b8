"""Losses on held-out batches, of each task alone, on any number of processes.

In: a model and packed batches by task. Out: the same means as in training. Processes take batches in turn; all go
forward equally often, because a sharded model (ZeRO-3) gathers its weights together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import Dataset

from mllm.loss import LossParts
from train.observing.step_metrics import StepMetrics

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
