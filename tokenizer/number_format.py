"""The number format that the machine multiplies fastest; optimizers, autocast and the image decoder follow it."""

import logging
from functools import lru_cache

import torch

logger = logging.getLogger(__name__)


@lru_cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """The number format in which a device multiplies matrices fastest without losing the training; logged once.
    bfloat16 on a GPU that has it and on a CPU with instructions for it (AMX or AVX512-BF16: 4 to 7 times faster than
    float32). Other hardware emulates it: an AVX2 CPU takes 6 to 20 times as long as in float32."""
    if device.type == "cpu":
        has_bfloat16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if has_bfloat16 else torch.float32
    logger.info("matrix products on %s use %s", device, str(dtype).removeprefix("torch."))
    return dtype
