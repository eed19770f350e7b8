"""Which attention do the projections of an old checkpoint have? Reconstruct pictures with both readings and compare.

UniTok's projections were causal before April 2025 and see the whole picture since then; the weights have the same names
and shapes, and no mark tells them apart, so the wrong reading loads without complaint and gives poor pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.metrics import psnr
from tokenizer.model import UniTok, build_empty
from tokenizer.weights import ProjectionAttention

CLEAR_MARGIN = 0.5
"""dB between the two readings below which the pictures do not decide."""


class AttentionProbe(NamedTuple):
    """Mean PSNR in dB of the pictures under each reading."""

    full: float
    causal: float

    @property
    def answer(self) -> ProjectionAttention | None:
        """The reading that reconstructs; None where both do about as well."""
        if abs(self.full - self.causal) < CLEAR_MARGIN:
            return None
        return "full" if self.full > self.causal else "causal"


@torch.inference_mode()
def probe_attention(model: UniTok, pixels_B3HW: Tensor) -> AttentionProbe:
    """Reconstruct with the weights of this model under both readings; the model stays as it is."""
    return AttentionProbe(*(reconstruction_psnr(read_as(model, kind), pixels_B3HW) for kind in ("full", "causal")))


def read_as(model: UniTok, projection_attention: ProjectionAttention) -> UniTok:
    """The same weights (shared, not copied) under one of the two readings."""
    twin = build_empty(replace(model.config, projection_attention=projection_attention))
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def reconstruction_psnr(model: UniTok, pixels_B3HW: Tensor) -> float:
    """Mean PSNR in dB, one picture after another to spare memory."""
    grid = model.grid_of(pixels_B3HW)
    values = [
        psnr(pixels_13HW, model.decode(model.encode(pixels_13HW), grid=grid)) for pixels_13HW in pixels_B3HW.split(1)
    ]
    return float(torch.cat(values).mean())
