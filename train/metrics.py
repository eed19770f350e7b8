"""The numbers of the steps between two entries of the log, over all processes.

In: the loss parts and the inputs of every micro-batch. Out: means that every text token and every code enters with the
same weight, positions per second of the whole run, padding share, utilization, memory. All sums are float64.

Letters: B batch, T sequence, K codebooks.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.files import whole_file
from mllm.model import LossParts
from mllm.sequence import sample_numbers

# How fast and how large a training run is: model FLOPs utilization where the device's peak is known, and memory.
#
# FLOPs are counted as in PaLM (arXiv:2204.02311, appendix B): 6 per parameter and position (2 forward, 4 backward) and
# 12 * layers * width * length / 2 for causal attention, frozen parts and recomputation not set apart. Tables that rows
# are looked up in cost nothing.


PEAK_FLOPS = {
    # dense bfloat16, from the vendors' data sheets; the first name that is part of the device's name wins
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}


def peak_flops() -> float | None:
    """Of one device in bfloat16; None where it is not known (every CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def size_of(module: nn.Module) -> int:
    """Parameters of a module, also where each process holds a part of them only (ZeRO-3)."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


class FlopCount:
    """FLOPs of training on what a batch holds, for one model and row length."""

    def __init__(self, model: nn.Module, config: MLLMConfig, *, length: int) -> None:
        embedding = size_of(model.backbone.get_input_embeddings())
        layers, width = config.text_config.num_hidden_layers, config.hidden_size
        self.per_position = 6.0 * (size_of(model.backbone) - embedding) + 6.0 * layers * width * length
        self.per_text = 6.0 * width * config.vocab_size
        head = model.code_head or nn.Module()  # none: understanding only
        tables = sum(size_of(module) for module in head.modules() if isinstance(module, nn.Embedding))
        passes = 1 if config.head_type == "depth_transformer" else config.num_codebooks
        self.per_code = 6.0 * (size_of(head) - tables) / passes

    def of(self, *, positions: float, text_targets: float, code_targets: float) -> float:
        """FLOPs of so many positions, labelled text tokens and learned codes."""
        return positions * self.per_position + text_targets * self.per_text + code_targets * self.per_code


def memory_gib() -> float:
    """The most that this process held so far: of the GPU if there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


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
        is_real_BT = sample_numbers(inputs["position_ids"]) > 0
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


# Numbers of a training run, one JSON object a line, in a file that survives stops and can be plotted.


class MetricsLog:
    """Appends to `metrics.jsonl`; entries after the step that a run resumes from are dropped: none is doubled."""

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        self.path = path
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= resumed_step]
            with whole_file(path) as unfinished:
                unfinished.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, values: dict[str, float | list[float]]) -> None:
        """Add one entry."""
        rounded = {name: _rounded(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")


def _step_of(line: str) -> float:
    """The step of an entry; one that a killed run left half written is after all steps."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # "7" and "{}" are JSON, too
        return float("inf")


def _rounded(value: float | list[float]) -> float | list[float]:
    if isinstance(value, list):
        return [float(f"{item:.6g}") for item in value]
    return float(f"{value:.6g}")


def as_words(values: dict[str, float | list[float]]) -> str:
    """The numbers of one entry on one console line."""
    shown = []
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        shown.append(f"{name} {' '.join(f'{number:.4g}' for number in numbers)}")
    return " | ".join(shown)
