"""First weights of a tokenizer that is trained from scratch (UniTok's scheme).

| where | what |
|---|---|
| encoder linear layers | truncated normal, std 0.02; bias 0 |
| encoder convolutions | normal, std sqrt(2 / fan_out); bias 0; the pool keeps PyTorch's default |
| decoder and projections, linear | truncated normal, std 0.02; bias 0 |
| decoder convolutions | Xavier normal, gain 0.5; bias 0 |
| codebooks | uniform within 1 / (36 sqrt(code_width)) |
| text tower | OpenCLIP's: attention std width^-0.5, outputs scaled by (2 layers)^-0.5, embeddings 0.02 and 0.01 |
| joint projection | PyTorch's default |
| norms | 1 and 0 (PyTorch's default) |
"""

from __future__ import annotations

import math

import torch
from torch import nn


def initialise(model: nn.Module) -> None:
    """Initialise a `UniTok` in place."""
    for name, module in model.named_modules():
        if name.startswith("text_encoder") or name == "projection":
            continue
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and not name.startswith("encoder.pool"):
            initialise_convolution(module, is_decoder=name.startswith("decoder"))
    bound = model.quantizer.codebooks.shape[-1] ** -0.5 / 36
    nn.init.uniform_(model.quantizer.codebooks, -bound, bound)
    if model.config.has_text_tower:
        initialise_text_tower(model.text_encoder)


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


def initialise_text_tower(tower: nn.Module) -> None:
    """OpenCLIP's scheme, in place."""
    width = tower.token_embedding.weight.shape[1]
    nn.init.normal_(tower.token_embedding.weight, std=0.02)
    nn.init.normal_(tower.positional_embedding, std=0.01)
    nn.init.normal_(tower.projection, std=width**-0.5)
    output_std = width**-0.5 * (2 * len(tower.blocks)) ** -0.5
    for block in tower.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(block.attn.proj.weight, std=output_std)
        nn.init.normal_(block.widen.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.narrow.weight, std=output_std)
        for linear in (block.attn.qkv, block.attn.proj):
            nn.init.zeros_(linear.bias)
