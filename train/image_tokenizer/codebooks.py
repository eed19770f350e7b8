"""Keep the codebooks alive while the tokenizer trains: place them on real features once, revive dead entries later.

In: the model, this process's pixels, the step. What happens is decided on the features of all processes and with
numbers that are a function of the step, so every process changes its codebooks in the same way.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from tokenizer.across_ranks import gather_rows
from tokenizer.model import UniTok
from train.image_tokenizer.recipe import CodebookSchedule


@torch.no_grad()
def tend_codebooks(
    model: UniTok, pixels_B3HW: Tensor, schedule: CodebookSchedule, *, step: int, steps: int, seed: int
) -> int:
    """Do what the schedule asks for after this step; returns how many entries were revived."""
    generator = torch.Generator().manual_seed(Random(f"codebooks/{seed}/{step}").getrandbits(63))
    if step + 1 == schedule.initialise_at:
        model.quantizer.initialise_from(gather_rows(model.features(pixels_B3HW)), generator=generator)
    is_time = step % schedule.every == 0 and schedule.initialise_at < step <= schedule.until * steps
    if not is_time or not model.quantizer.has_dead_entries(threshold=schedule.threshold):
        return 0
    features_BNZ = gather_rows(model.features(pixels_B3HW))
    return model.quantizer.revive(features_BNZ, threshold=schedule.threshold, generator=generator)
