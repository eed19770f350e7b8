"""First weights of a tokenizer that is trained from scratch (UniTok's scheme).

| where | what |
|---|---|
| encoder linear layers | truncated normal, std 0.02; bias 0 |
| encoder convolutions | normal, std sqrt(2 / fan_out); bias 0; the pool keeps PyTorch's default |
| decoder and projections, linear | truncated normal, std 0.02; bias 0 |
| decoder convolutions | Xavier normal, gain 0.5; bias 0 |
| codebooks | uniform within 1 / (36 sqrt(code_width)) |
| norms | 1 and 0 (PyTorch's default) |
"""

from __future__ import annotations

import math

import torch
from torch import nn


def initialise(model: nn.Module) -> None:
    """Initialise a `UniTok` in place."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and not name.startswith("encoder.pool"):
            initialise_convolution(module, is_decoder=name.startswith("decoder"))
    bound = model.quantizer.codebooks.shape[-1] ** -0.5 / 36
    nn.init.uniform_(model.quantizer.codebooks, -bound, bound)


def initialise_convolution(convolution: nn.Conv2d, *, is_decoder: bool) -> None:
    """Xavier in the decoder, He by fan-out in the encoder."""
    if is_decoder:
        nn.init.xavier_normal_(convolution.weight, gain=0.5)
    else:
        out_width, _, height, width = convolution.weight.shape
        fan_out = out_width * height * width / convolution.groups
        nn.init.normal_(convolution.weight, std=math.sqrt(2.0 / fan_out))
    with torch.no_grad():
        convolution.bias.zero_()
