"""The numbers of the steps between two entries of the log, over all processes.

In: the loss parts and the inputs of every micro-batch. Out: means that every text token and every code enters with the
same weight, positions per second of the whole run, padding share, utilization, memory. All sums are float64.

Letters: B batch, T sequence, K codebooks.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mllm.loss import LossParts
from train.observing.throughput import FlopCount, memory_gib, peak_flops

Values = dict[str, float | list[float]]

SCALARS = ("text", "num_text", "image", "z", "num_image", "positions", "places")


class StepMetrics:
    """Sums until `drain`."""

    def __init__(self, num_codebooks: int, *, flops: FlopCount | None = None) -> None:
        self.num_codebooks, self.flops = num_codebooks, flops
        self.peak = peak_flops()
        self.last = time.monotonic()
        self.reset()

    def reset(self) -> None:
        self.num_batches = 0
        self.sums = torch.zeros(len(SCALARS) + self.num_codebooks, dtype=torch.float64)

    def add(self, parts: LossParts, inputs: dict[str, Any]) -> None:
        """Take in one micro-batch."""
        is_real_BT = inputs["segment_ids"] > 0
        scalars = (
            parts.text * parts.num_text,
            parts.num_text,
            parts.image * parts.num_image,
            parts.z * parts.num_image,
            parts.num_image,
            is_real_BT.sum(),
            is_real_BT.numel(),
        )
        per_codebook_K = parts.image_per_codebook_K * (parts.num_image // self.num_codebooks)
        device = per_codebook_K.device
        stacked = torch.stack([torch.as_tensor(value, device=device).detach().double() for value in scalars])
        self.sums = self.sums.to(device) + torch.cat([stacked, per_codebook_K.detach().double()])
        self.num_batches += 1

    def totals(self, accelerator: Accelerator) -> list[float]:
        """The sums over all processes, in the order of SCALARS and then by codebook; every process must call it."""
        sums: Tensor = accelerator.reduce(self.sums.to(accelerator.device), "sum")
        return sums.tolist()

    def drain(self, accelerator: Accelerator) -> Values:
        """The numbers since the last call; every process must call it."""
        sums = self.totals(accelerator)
        seconds, self.last = time.monotonic() - self.last, time.monotonic()
        self.reset()
        total = dict(zip(SCALARS, sums, strict=False))
        num_text, num_image = max(total["num_text"], 1), max(total["num_image"], 1)
        num_positions = num_image / self.num_codebooks
        values: Values = {
            "text_loss": total["text"] / num_text,
            "image_loss": total["image"] / num_image,
            "z_loss": total["z"] / num_image,
            "image_loss_per_codebook": [value / num_positions for value in sums[len(SCALARS) :]],
            "positions_per_second": total["positions"] / seconds,
            "padding_share": 1 - total["positions"] / max(total["places"], 1),
            "memory_gib": memory_gib(),
        }
        if self.flops is not None and self.peak is not None:
            done = self.flops.of(
                positions=total["positions"], text_targets=total["num_text"], code_targets=total["num_image"]
            )
            values["mfu"] = done / seconds / (self.peak * accelerator.num_processes)
        return values


def flattened(values: Values) -> dict[str, float]:
    """One number a name, as dashboards want it: `image_loss_per_codebook/0`, ..."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            flat |= {f"{name}/{number}": item for number, item in enumerate(value)}
        else:
            flat[name] = value
    return flat
