"""What the tokenizer pays at a step: every loss that the recipe names, weighted, by name.

In: the model's output, the real pixels, the step. Out: weighted parts whose sum is trained on. A loss of weight 0 is
neither computed nor loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.model import UniTokOutput
from tokenizer.perceptual import LPIPS
from train.image_tokenizer.adversarial import Adversary
from train.image_tokenizer.losses import contrastive_loss, reconstruction_loss
from train.image_tokenizer.recipe import TokenizerRecipe


class TokenizerObjective:
    """Holds the frozen network of the perceptual loss and the adversary, where there are any."""

    def __init__(self, recipe: TokenizerRecipe, *, adversary: Adversary | None, device: torch.device) -> None:
        self.recipe, self.weights, self.adversary = recipe, recipe.loss, adversary
        self.lpips: LPIPS | None = None
        if recipe.loss.perceptual:
            assert recipe.lpips is not None, "TokenizerRecipe refuses a perceptual weight without weights"
            self.lpips = LPIPS.from_file(recipe.lpips).to(device)

    def __call__(
        self, output: UniTokOutput, pixels_B3HW: Tensor, *, step: int, last_weight: nn.Parameter
    ) -> dict[str, Tensor]:
        """The weighted parts.

        Args:
            last_weight: of the decoder, where the adversarial loss is balanced against those on the pictures.
        """
        weights, made_B3HW = self.weights, output.reconstruction_B3HW
        codebooks_wait = step < self.recipe.codebooks.initialise_at
        parts = {
            "reconstruction": reconstruction_loss(
                made_B3HW,
                pixels_B3HW,
                l1_weight=weights.l1,
                l2_weight=weights.l2,
                detail_weight=weights.detail,
            )
        }
        if self.lpips is not None:
            parts["perceptual"] = weights.perceptual * self.lpips(made_B3HW, pixels_B3HW).mean()
        plain = torch.stack(list(parts.values())).sum()
        # Kept in the graph with weight 0, so that the codebooks have a gradient on every process from the first step.
        parts["vq"] = (0.0 if codebooks_wait else weights.vq) * output.vq_loss
        if weights.entropy:
            parts["entropy"] = weights.entropy * output.entropy_loss
        if weights.contrastive:
            parts["contrastive"] = weights.contrastive * contrastive_loss(
                output.image_features, output.text_features, output.logit_scale
            )
        if self.adversary is not None and self.adversary.schedule.weight(step):
            loss = self.adversary.unconvincingness(made_B3HW, step)
            parts["adversarial"] = self.adversary.weight(plain, loss, last_weight, step) * loss
        return parts
