"""Numbers of a training run: means over all processes between two log entries, speed, memory, and their file.

In the means every text token and every code weighs the same; sums are float64.

Letters: B batch, T sequence, K codebooks.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from mllm.benchmark.measure import peak_memory
from mllm.config import MLLMConfig
from mllm.files import append_lines, write_text
from mllm.model import LossParts
from mllm.sequence import sample_numbers

Values = dict[str, float | list[float]]

SCALARS = ("text", "num_text", "image", "z", "num_image", "num_real", "num_positions")
PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A800": 312e12,
    "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12,
}  # fmt: skip
"""Dense bfloat16, from the vendors' data sheets; the first name contained in the device's name counts."""


class StepMetrics:
    """Sums of the micro-batches until `drain`."""

    def __init__(self, num_codebooks: int, *, flops: FlopCount | None = None) -> None:
        self.num_codebooks, self.flops, self.peak = num_codebooks, flops, peak_flops()
        self.last = time.monotonic()
        self.reset()

    def reset(self) -> None:
        self.num_batches = 0
        self.sums = torch.zeros(len(SCALARS) + self.num_codebooks, dtype=torch.float64)

    def add(self, parts: LossParts, inputs: dict[str, Any]) -> None:
        is_real_BT = sample_numbers(inputs["position_ids"]) > 0
        text = (parts.text * parts.num_text, parts.num_text)
        image = (parts.image * parts.num_image, parts.z * parts.num_image, parts.num_image)
        scalars = (*text, *image, is_real_BT.sum(), is_real_BT.numel())
        per_codebook_K = parts.image_per_codebook_K * (parts.num_image // self.num_codebooks)
        device = per_codebook_K.device
        stacked = torch.stack([torch.as_tensor(value, device=device).detach().double() for value in scalars])
        self.sums = self.sums.to(device) + torch.cat([stacked, per_codebook_K.detach().double()])
        self.num_batches += 1

    def totals(self, accelerator: Accelerator) -> tuple[dict[str, float], list[float]]:
        """The sums over all processes: by name, and by codebook; every process must call it."""
        sums = accelerator.reduce(self.sums.to(accelerator.device), "sum").tolist()
        return dict(zip(SCALARS, sums, strict=False)), sums[len(SCALARS) :]

    def drain(self, accelerator: Accelerator) -> Values:
        """The numbers since the last call; every process must call it."""
        total, per_codebook = self.totals(accelerator)
        seconds, self.last = time.monotonic() - self.last, time.monotonic()
        self.reset()
        num_text, num_image = max(total["num_text"], 1), max(total["num_image"], 1)
        values: Values = {
            "text_loss": total["text"] / num_text,
            "image_loss": total["image"] / num_image,
            "z_loss": total["z"] / num_image,
            "image_loss_per_codebook": [value * self.num_codebooks / num_image for value in per_codebook],
            "positions_per_second": total["num_real"] / seconds,
            "padding_share": 1 - total["num_real"] / max(total["num_positions"], 1),
            "memory_gib": peak_memory(accelerator.device) / 2**30,
        }
        if self.flops is not None and self.peak is not None:
            done = self.flops.of(total["num_real"], text_targets=total["num_text"], code_targets=total["num_image"])
            values["mfu"] = done / seconds / (self.peak * accelerator.num_processes)
        return values


class FlopCount:
    """FLOPs of training, as in PaLM (arXiv:2204.02311, appendix B), for one model and row length. 6 per parameter and
    position (2 forward, 4 backward) and 12 * layers * width * length / 2 for causal attention, with no difference for
    frozen parts and recomputation; embedding tables cost nothing."""

    def __init__(self, model: Any, config: MLLMConfig, *, length: int) -> None:
        embedding, text_config = size_of(model.backbone.get_input_embeddings()), cast(Any, config.text_config)
        layers, width = text_config.num_hidden_layers, config.hidden_size
        self.per_position = 6.0 * (size_of(model.backbone) - embedding) + 6.0 * layers * width * length
        self.per_text = 6.0 * width * config.vocab_size
        head = model.code_head or nn.Module()  # none: understanding only
        tables = sum(size_of(module) for module in head.modules() if isinstance(module, nn.Embedding))
        passes = 1 if config.head_type == "depth_transformer" else config.num_codebooks
        self.per_code = 6.0 * (size_of(head) - tables) / passes

    def of(self, positions: float, *, text_targets: float, code_targets: float) -> float:
        return positions * self.per_position + text_targets * self.per_text + code_targets * self.per_code


def peak_flops() -> float | None:
    """Of one device in bfloat16; None where it is not known (every CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def size_of(module: nn.Module) -> int:
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


class MetricsLog:
    """Appends JSON lines to `metrics.jsonl`; a resumed run first drops entries after the step it resumes from."""

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        self.path = path
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(path, "".join(f"{line}\n" for line in lines if step_of(line) <= resumed_step))

    def write(self, step: int, values: Values) -> None:
        def rounded(digits: str) -> float:
            return float(f"{float(digits):.6g}")

        plain = json.dumps(values, default=float)  # numbers of torch and numpy as well
        values = json.loads(plain, parse_float=rounded, parse_int=rounded)
        append_lines(self.path, [{"step": step, **values}])


def step_of(line: str) -> float:
    """The step of an entry of the log; infinite where a line is none, as after a kill or on a disk that was full."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # "7" and "{}" are JSON, too
        return math.inf


def flattened(values: Values) -> dict[str, float]:
    """One number per name, for dashboards: `image_loss_per_codebook/0`, ..."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        flat |= {f"{name}/{k}": item for k, item in enumerate(value)} if isinstance(value, list) else {name: value}
    return flat


def as_words(values: Values) -> str:
    shown = []
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        shown.append(f"{name} {' '.join(f'{number:.4g}' for number in numbers)}")
    return " | ".join(shown)
