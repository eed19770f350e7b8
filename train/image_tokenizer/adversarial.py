"""The adversarial part of tokenizer training: the discriminator's own training, and what it asks of the tokenizer.

Comes in: real and reconstructed pixels, and the step. Goes out: losses and weights. All randomness is a function of
the seed and the step, so a resumed run repeats it, on any number of processes. Knows no tokenizer.

Letters: B batch, H W pixels, M logits per picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from tokenizer.across_ranks import mean_over_ranks
from train.image_tokenizer.diff_augment import DiffAugment
from train.image_tokenizer.dino_features import DinoFeatures
from train.image_tokenizer.discriminator import Discriminator
from train.image_tokenizer.recipe import AdversarialRecipe

NEGLIGIBLE = 1e-6  # smaller factors count as 0 (UniTok)


def unrealness_hinge(logits_BM: Tensor) -> Tensor:
    return F.relu(1.0 - logits_BM).mean()


def unrealness_softplus(logits_BM: Tensor) -> Tensor:
    return F.softplus(-logits_BM).mean()


def unrealness_linear(logits_BM: Tensor) -> Tensor:
    return -logits_BM.mean()


UNREALNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": unrealness_hinge,
    "softplus": unrealness_softplus,
    "linear": unrealness_linear,
}
"""What the discriminator pays for logits of real pictures; for made ones it pays the same for their negative."""


@dataclass(frozen=True)
class AdversarialSchedule:
    """Where the adversarial part stands at a step; every value is a pure function of the step."""

    start: float
    """Step at which its clock begins."""
    warmup: float
    """Steps until its weight is full."""
    fade: float
    """Steps until pictures are no longer blurred for the discriminator."""
    steps: int
    """Of the whole training."""
    final_learning_rate: float
    """Share of the discriminator's learning rate that its cosine ends at."""

    def weight(self, step: int) -> float:
        """0 to 1; at 0 nothing adversarial runs."""
        since = step - self.start
        share = min(1.0, since / self.warmup) if self.warmup > 0 else float(since >= 0)
        return share if share > NEGLIGIBLE else 0.0

    def blur(self, step: int) -> float:
        """1 at the start, 0 once faded."""
        since = max(0.0, step - self.start)
        left = 1.0 - min(1.0, since / self.fade) if self.fade > 0 else 0.0
        return left if left > NEGLIGIBLE else 0.0

    def learning_rate(self, step: int) -> float:
        """Share of the discriminator's learning rate: linear warm-up, then half a cosine."""
        since, total = step - self.start, self.steps - self.start
        if since < self.warmup:
            return max(0.0, since / self.warmup)
        progress = min(1.0, (since - self.warmup) / max(1.0, total - self.warmup - 1))
        return self.final_learning_rate + (1 - self.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


class Adversary:
    """Owns the discriminator, its optimizer and the frozen features; `accelerator` saves and loads the first two."""

    def __init__(
        self, recipe: AdversarialRecipe, *, accelerator: Accelerator, image_size: int, steps: int, seed: int
    ) -> None:
        assert recipe.dino is not None, "TokenizerRecipe refuses an adversarial weight without weights"
        self.recipe, self.accelerator, self.seed = recipe, accelerator, seed
        self.schedule = AdversarialSchedule(
            recipe.start * steps, recipe.warmup * steps, recipe.fade * steps, steps, recipe.final_learning_rate
        )
        self.features = DinoFeatures.from_file(recipe.dino, image_size=image_size, blocks=recipe.blocks)
        self.features.to(accelerator.device)
        heads = Discriminator(self.features.width, self.features.num_levels)
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in heads.parameters() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in heads.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.epsilon,
        )
        self.heads, self.optimizer = accelerator.prepare(heads, optimizer)
        self.light = DiffAugment(probability=recipe.augment_probability, cutout=recipe.cutout)
        self.strong = DiffAugment(probability=1.0, cutout=recipe.cutout)

    def generator_for(self, step: int, purpose: str) -> torch.Generator:
        """Random numbers of one step, the same on every process."""
        number = Random(f"adversarial/{purpose}/{self.seed}/{step}").getrandbits(63)
        return torch.Generator().manual_seed(number)

    def unconvincingness(self, reconstruction_B3HW: Tensor, step: int) -> Tensor:
        """What the tokenizer pays for pictures that look made; the discriminator does not learn from it."""
        generator = self.generator_for(step, "tokenizer")
        with torch.autocast(reconstruction_B3HW.device.type, enabled=False):  # the blur wants float32
            pictures = self.light(reconstruction_B3HW.float(), generator, blur=self.schedule.blur(step))
        heads: Any = self.accelerator.unwrap_model(self.heads)
        heads.requires_grad_(False)
        with self.accelerator.autocast():
            logits_BM = heads(self.features(self.features.fit(pictures, generator)))
        heads.requires_grad_(True)
        return -logits_BM.float().mean()

    def weight(self, plain: Tensor, adversarial: Tensor, last_weight: Tensor, step: int) -> Tensor:
        """Factor of the adversarial loss: as strong, at the last layer, as the loss on the pictures themselves.

        Taming Transformers (arXiv:2012.09841), equation 7, on gradients averaged over the processes.
        """
        factor = plain.new_ones(())
        if self.recipe.adaptive:
            factor = balance(plain, adversarial, last_weight).clamp(*self.recipe.adaptive_range)
        return self.schedule.weight(step) * self.recipe.weight * factor

    def learn(self, real_B3HW: Tensor, made_B3HW: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator; returns what it paid, in parts."""
        pictures = (real_B3HW.float(), made_B3HW.detach().float())
        generator, blur = self.generator_for(step, "discriminator"), self.schedule.blur(step)
        views = [self.light(batch, generator, blur=blur) for batch in pictures]
        views += [self.strong(batch, generator) for batch in pictures]
        with self.accelerator.autocast():
            with torch.no_grad():
                levels = self.features(torch.cat([self.features.fit(view, generator) for view in views]))
            logits = self.heads(levels).float().chunk(4)
        parts = discriminator_loss(logits, objective=self.recipe.objective, consistency=self.recipe.consistency)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.schedule.learning_rate(step)
        self.optimizer.zero_grad()
        self.accelerator.backward(torch.stack(list(parts.values())).sum())
        norm = self.accelerator.clip_grad_norm_(self.heads.parameters(), self.recipe.max_grad_norm)
        if self.accelerator.scaler is None:  # float16's scaler leaves such a step out by itself
            require_finite("discriminator's gradient norm", norm, step=step)
        self.optimizer.step()
        return {name: part.detach() for name, part in parts.items()}


def require_finite(name: str, value: Tensor, *, step: int) -> None:
    """End a training that went wrong before anything of it is saved.

    Raises:
        ValueError: the value is no number, or none that weights can be moved by.
    """
    if not torch.isfinite(value):
        raise ValueError(
            f"the {name} became {value.item()} at step {step}; the last good checkpoint is kept: "
            "lower the learning rate and start again from it"
        )


def balance(plain: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """How much larger the gradient of the first loss is at this weight than that of the second."""
    norms = []
    for loss in (plain, adversarial):
        (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
        norms.append(mean_over_ranks(gradient.float()).norm())
    return (norms[0] / (norms[1] + 1e-6)).detach()


def discriminator_loss(logits: Sequence[Tensor], *, objective: str, consistency: float) -> dict[str, Tensor]:
    """Tell real from made, and say the same of strongly changed pictures.

    Args:
        logits: (B, M) of real, made, strongly changed real, strongly changed made pictures.
    """
    real_BM, made_BM, strong_real_BM, strong_made_BM = logits
    unrealness = UNREALNESS[objective]
    return {
        "discriminator_real": unrealness(real_BM),
        "discriminator_made": unrealness(-made_BM),
        "discriminator_consistency": consistency
        * (F.mse_loss(strong_real_BM, real_BM) + F.mse_loss(strong_made_BM, made_BM)),
    }
