"""What a tokenizer must offer to be measured, and how one is found: ours by a folder, others by a function.

`--codec package.module:function` names a function without arguments that returns a `MeasuredTokenizer`; nothing
has to be inherited.

Letters: B batch, H W pixels, K codebooks, N positions, D feature width.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mllm.loading.image_tokenizer import find_image_tokenizer
from tokenizer.model import UniTok


class MeasuredTokenizer(Protocol):
    """Any tokenizer of discrete codes."""

    name: str
    image_size: int
    codebook_size: int

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to codes (B, K, N)."""
        ...

    def decode(self, codes_BKN: Tensor) -> Tensor:
        """Codes to pixels in [-1, 1]."""
        ...

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """One vector per picture (B, D), for the linear probe."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredUniTok:
    """A tokenizer of this toolkit."""

    model: UniTok

    @property
    def name(self) -> str:
        return f"unitok {self.model.fingerprint()}"

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    @property
    def codebook_size(self) -> int:
        return self.model.config.codebook_size

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        return self.model.encode(pixels_B3HW.to(self.model.device)).cpu()

    def decode(self, codes_BKN: Tensor) -> Tensor:
        return self.model.decode(codes_BKN.to(self.model.device)).cpu()

    @torch.no_grad()
    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """The mean of the quantized vectors over the positions."""
        codes_BKN = self.model.encode(pixels_B3HW.to(self.model.device))
        return self.model.quantizer.lookup(codes_BKN).mean(dim=1).float().cpu()


def find_measured(model: str | None, codec: str | None, *, device: torch.device | str) -> MeasuredTokenizer:
    """The tokenizer that a person named."""
    if codec is None:
        return MeasuredUniTok(find_image_tokenizer(model, device=device).eval())
    module, colon, function = codec.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{codec!r} names no tokenizer; write package.module:function")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{codec!r} cannot be used: {error}; name a function that returns the tokenizer") from error
