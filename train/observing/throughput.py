"""How fast and how large a training run is: model FLOPs utilization where the device's peak is known, and memory.

FLOPs are counted as in PaLM (arXiv:2204.02311, appendix B): 6 per parameter and position (2 forward, 4 backward) and
12 * layers * width * length / 2 for causal attention, frozen parts and recomputation not set apart. Tables that rows
are looked up in cost nothing.
"""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

from mllm.config import MLLMConfig

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
        tables = sum(size_of(module) for module in model.code_head.modules() if isinstance(module, nn.Embedding))
        passes = 1 if config.head_type == "depth_transformer" else config.num_codebooks
        self.per_code = 6.0 * (size_of(model.code_head) - tables) / passes

    def of(self, *, positions: float, text_targets: float, code_targets: float) -> float:
        """FLOPs of so many positions, labelled text tokens and learned codes."""
        return positions * self.per_position + text_targets * self.per_text + code_targets * self.per_code


def memory_gib() -> float:
    """The most that this process held so far: of the GPU if there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
