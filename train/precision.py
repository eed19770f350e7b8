"""In which number format this machine multiplies matrices fastest without losing the training."""

from __future__ import annotations

import torch


def prefers_bfloat16() -> bool:
    """Whether bfloat16 is the faster choice here.

    A GPU that has it, or a CPU with instructions of its own (AMX or AVX512-BF16: measured 4 to 7 times faster than
    float32); on other CPUs it is emulated and slower.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
