"""The adversarial part of image tokenizer training: augmentation, frozen DINOv2 features, discriminator, schedule.

StyleGAN-T (arXiv:2301.09515, section 3.2) in UniTok's version, with UniTok's parameter names. All randomness is a
function of seed and step, drawn for the images of all processes: neither a resumption nor their number changes it.

Letters: B batch, H W pixels in [-1, 1], N patches, D feature width, M logits per image (levels * N).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Dinov2Backbone, Dinov2Config

from tokenizer.quantizer import mean_over_ranks, num_ranks, rank
from tokenizer.weights import read_tensors
from train.recipe import AdversarialRecipe

PATCH = 14
HEAD_WIDTH = 64  # of every published DINOv2
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_NAMES = (
    *(("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token")),
    *(("pos_embed", "embeddings.position_embeddings"), ("patch_embed.proj", "embeddings.patch_embeddings.projection")),
    *(("blocks.", "encoder.layer."), ("attn.qkv", "attention.attention.{}"), ("attn.proj", "attention.output.dense")),
    *(("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"), ("norm.", "layernorm.")),
)
"""Parts of DINOv2's published names and of those of transformers, where `attn.qkv` is split in three."""
NORM_GROUPS = 32
KERNEL = 9  # patches that the second layer of a head sees, along the row-major line
SHIFT = 0.125  # largest shift of an augmented image, as a share of its side
NEGLIGIBLE = 1e-6  # smaller factors count as 0 (UniTok)

REAL_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": lambda logits_BM: F.relu(1.0 - logits_BM).mean(),
    "softplus": lambda logits_BM: F.softplus(-logits_BM).mean(),
    "linear": lambda logits_BM: -logits_BM.mean(),
}
"""The discriminator's loss on logits of real images; on logits of reconstructions it is the same of their negative."""


def augment(
    pixels_B3HW: Tensor, generator: torch.Generator, *, probability: float, cutout: float, blur: float = 0.0
) -> Tensor:
    """Differentiable random changes of images (arXiv:2006.10738), so that the discriminator does not overfit: each of
    shift, color and cutout with this probability, drawn per batch. `generator`: on the CPU. `cutout`: side of the
    square that is set to zero, as a share of the image's. `blur`: 0 to 1; 1 leaves only the coarsest shapes."""
    if blur > 0:
        pixels_B3HW = blurred(pixels_B3HW, sigma=blur * math.sqrt(pixels_B3HW.shape[-2] / 2))
    shifts, recolors, cuts = (torch.rand(3, generator=generator) < probability).tolist()
    # Drawn even where unused, so that the numbers that follow do not depend on what came before.
    batch = len(pixels_B3HW)
    draws_B7 = torch.rand(batch * num_ranks(), 7, generator=generator)[rank() * batch :][:batch]
    if shifts:
        pixels_B3HW = shifted(pixels_B3HW, draws_B7[:, 0], draws_B7[:, 1])
    if recolors:
        pixels_B3HW = recolored(pixels_B3HW, *draws_B7[:, 2:5].to(pixels_B3HW.device).unbind(1))
    if cuts and cutout > 0:
        pixels_B3HW = cut_out(pixels_B3HW, draws_B7[:, 5], draws_B7[:, 6], share=cutout)
    return pixels_B3HW


def blurred(pixels_B3HW: Tensor, *, sigma: float) -> Tensor:
    """Convolve with 2^-(t / sigma)^2 up to 3 sigma, in both directions, reflecting at the borders."""
    radius = min(math.floor(3 * sigma), min(pixels_B3HW.shape[-2:]) - 1)
    if radius < 1:
        return pixels_B3HW
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=pixels_B3HW.device)
    taps = torch.exp2(-(offset / sigma).square())
    taps = (taps / taps.sum()).to(pixels_B3HW.dtype)
    for shape, margin in (((1, -1), (radius, radius, 0, 0)), ((-1, 1), (0, 0, radius, radius))):
        kernel_311 = taps.view(1, 1, *shape).expand(3, -1, -1, -1)
        pixels_B3HW = F.conv2d(F.pad(pixels_B3HW, margin, mode="reflect"), kernel_311, groups=3)
    return pixels_B3HW


def shifted(pixels_B3HW: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Shift each image by whole pixels, up to an eighth of its side; what comes in is zero. Draws in [0, 1)."""
    height, width = pixels_B3HW.shape[-2:]
    most_y, most_x = round(SHIFT * height), round(SHIFT * width)
    padded_BHW3 = F.pad(pixels_B3HW, (most_x, most_x, most_y, most_y)).permute(0, 2, 3, 1)
    tops = (2 * most_y - (down_B * (2 * most_y + 1)).floor().long()).tolist()
    lefts = (2 * most_x - (right_B * (2 * most_x + 1)).floor().long()).tolist()
    rows = zip(padded_BHW3, tops, lefts, strict=True)
    shifted_BHW3 = torch.stack([image_HW3[top : top + height, left : left + width] for image_HW3, top, left in rows])
    return shifted_BHW3.permute(0, 3, 1, 2)


def recolored(pixels_B3HW: Tensor, brightness_B: Tensor, saturation_B: Tensor, contrast_B: Tensor) -> Tensor:
    """Brightness plus up to half, saturation times 0 to 2, contrast times 0.5 to 1.5. Draws in [0, 1)."""
    brightness, saturation, contrast = (draw_B.view(-1, 1, 1, 1) for draw_B in (brightness_B, saturation_B, contrast_B))
    pixels_B3HW = pixels_B3HW + (brightness - 0.5)
    gray_B1HW = pixels_B3HW.mean(dim=1, keepdim=True)
    pixels_B3HW = (pixels_B3HW - gray_B1HW) * (2 * saturation) + gray_B1HW
    mean_B111 = pixels_B3HW.mean(dim=(1, 2, 3), keepdim=True)
    return (pixels_B3HW - mean_B111) * (contrast + 0.5) + mean_B111


def cut_out(pixels_B3HW: Tensor, middle_y_B: Tensor, middle_x_B: Tensor, *, share: float) -> Tensor:
    """Set a square around a random point to zero; it may reach over the border. Draws in [0, 1)."""

    def ranges(size: int, middle_B: Tensor) -> list[slice]:
        length = round(share * size)
        firsts = ((middle_B * (size + 1 - length % 2)).floor().long() - length // 2).tolist()
        return [slice(max(0, first), max(0, first + length)) for first in firsts]

    height, width = pixels_B3HW.shape[-2:]
    is_kept_B1HW = torch.ones_like(pixels_B3HW[:, :1], dtype=torch.bool)
    for index, part in enumerate(zip(ranges(height, middle_y_B), ranges(width, middle_x_B), strict=True)):
        is_kept_B1HW[index, 0][part] = False
    return pixels_B3HW * is_kept_B1HW


class DinoFeatures(nn.Module):
    """Features of several blocks of a frozen DINOv2: patch tokens with the class token added to each. Takes the weights
    of `dinov2_vits14_pretrain.pth`, or others with the same names. Gradients reach the pixels."""

    scale: Tensor
    shift: Tensor

    def __init__(self, state: Mapping[str, Tensor], *, image_size: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.side, self.num_levels = image_size // PATCH * PATCH, len(blocks)
        depth = 1 + max((int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))), default=0)
        if self.side == 0 or not blocks or max(blocks) >= depth:
            raise ValueError(
                f"DINOv2 must have images of {PATCH} pixels or more and blocks < {depth}, got {image_size} and "
                f"{blocks}; change image_size or adversarial.blocks"
            )
        levels: dict[str, Any] = {"out_indices": [block + 1 for block in blocks]}  # 0 is the embedding
        try:
            self.width = state["cls_token"].shape[-1]
            config = Dinov2Config(
                hidden_size=self.width,
                num_hidden_layers=depth,
                num_attention_heads=self.width // HEAD_WIDTH,
                mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] // self.width,
                image_size=self.side,
                patch_size=PATCH,
                **levels,
                apply_layernorm=False,
                reshape_hidden_states=False,
            )
            weights = translated(state, self.side // PATCH)
            read: Any = Dinov2Backbone.from_pretrained(
                None, config=config, state_dict=weights, output_loading_info=True
            )
            self.network, report = read
            if any(report.values()):
                raise KeyError(f"these names: {report}")
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"dino must be weights as in dinov2_vits14_pretrain.pth, got {reason}") from None
        mean, deviation = (torch.tensor(row).view(1, 3, 1, 1) for row in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        self.register_buffer("scale", 0.5 / deviation)
        self.register_buffer("shift", (0.5 - mean) / deviation)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DinoFeatures:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Features of pixels that `fit` has brought to size, (B, N, D) per block."""
        levels = self.network(pixels_B3HW * self.scale + self.shift).feature_maps
        return [tokens_BND[:, 1:] + tokens_BND[:, :1] for tokens_BND in levels]

    def fit(self, pixels_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """Bring images to the largest multiple of 14 pixels: a random crop half of the time, else resized (UniTok)."""
        choice, top, left = torch.rand(3, generator=generator).tolist()
        height, width = pixels_B3HW.shape[-2:]
        if (height, width) == (self.side, self.side):
            return pixels_B3HW
        if min(height, width) <= self.side:
            return F.interpolate(pixels_B3HW, (self.side, self.side), mode="bicubic", antialias=False)
        if choice >= 0.5:
            return F.interpolate(pixels_B3HW, (self.side, self.side), mode="area")
        y, x = int(top * (height - self.side + 1)), int(left * (width - self.side + 1))
        return pixels_B3HW[:, :, y : y + self.side, x : x + self.side]


def translated(state: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """The state dict of a checkpoint for transformers, with the positions resampled to `side` x `side` patches."""
    weights: dict[str, Tensor] = {}
    for name, tensor in {**state, "pos_embed": resampled_positions(state["pos_embed"], side)}.items():
        for theirs, ours in DINO_NAMES:
            name = name.replace(theirs, ours)
        parts = ("query", "key", "value") if "{}" in name else ("",)
        weights |= {name.format(part): rows.clone() for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True)}
    return weights


def resampled_positions(positions_1TD: Tensor, side: int) -> Tensor:
    """Position embeddings for another number of patches, as in DINOv2's code: bicubic, side enlarged by 0.1."""
    class_11D, patches_1ND = positions_1TD[:, :1], positions_1TD[:, 1:]
    old_side = round(patches_1ND.shape[1] ** 0.5)
    if old_side == side:
        return positions_1TD
    grid_1DHW = patches_1ND.unflatten(1, (old_side, old_side)).permute(0, 3, 1, 2).float()
    scale = (side + 0.1) / old_side
    grid_1DHW = F.interpolate(grid_1DHW, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([class_11D, grid_1DHW.flatten(2).transpose(1, 2)], dim=1)


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2): the variance stays."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, features_BDN: Tensor) -> Tensor:
        return (self.fn(features_BDN) + features_BDN) / math.sqrt(2)


class Discriminator(nn.Module):
    """Says whether features are of a real image, by one small convolutional head per level."""

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        if width % NORM_GROUPS:
            raise ValueError(f"DINOv2's width must be a multiple of {NORM_GROUPS}, got {width}; use another one")

        def block(kernel: int) -> nn.Sequential:
            convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
            return nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, width, eps=1e-6), nn.LeakyReLU(0.2))

        self.heads = nn.ModuleList(
            nn.Sequential(block(1), Residual(block(KERNEL)), nn.Conv1d(width, 1, 1)) for _ in range(num_levels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_normal_(module.weight, gain=0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Float32 logits (B, M) of features (B, N, D) per level; above zero means real."""
        logits = [head(level_BND.transpose(1, 2)) for head, level_BND in zip(self.heads, levels, strict=True)]
        return torch.cat([level_B1N.flatten(1) for level_B1N in logits], dim=1).float()


class AdversarialSchedule:
    """Strength of the adversarial part as a function of the step."""

    def __init__(self, recipe: AdversarialRecipe, *, steps: int) -> None:
        self.start, self.warmup, self.fade = recipe.start * steps, recipe.warmup * steps, recipe.fade * steps
        self.steps, self.final_learning_rate = steps, recipe.final_learning_rate

    def weight(self, step: int) -> float:
        """0 to 1; at 0 nothing adversarial runs."""
        since = step - self.start
        share = min(1.0, since / self.warmup) if self.warmup > 0 else float(since >= 0)
        return share if share > NEGLIGIBLE else 0.0

    def blur(self, step: int) -> float:
        """1 at the start, 0 after the fade."""
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
    """The discriminator with its optimizer, which `accelerator` saves and loads, and the frozen features."""

    def __init__(
        self, recipe: AdversarialRecipe, accelerator: Accelerator, *, image_size: int, steps: int, seed: int
    ) -> None:
        assert recipe.dino is not None, "TokenizerRecipe refuses an adversarial weight without weights"
        self.recipe, self.accelerator, self.seed = recipe, accelerator, seed
        self.schedule = AdversarialSchedule(recipe, steps=steps)
        self.features = DinoFeatures(read_tensors(recipe.dino), image_size=image_size, blocks=recipe.blocks)
        self.features.to(accelerator.device)
        self.unwrapped = Discriminator(self.features.width, self.features.num_levels)
        rates: dict[str, Any] = {"lr": recipe.learning_rate, "betas": recipe.betas, "eps": recipe.epsilon}
        optimizer = torch.optim.AdamW(decay_groups(self.unwrapped, recipe.weight_decay), **rates)
        self.heads, self.optimizer = accelerator.prepare(self.unwrapped, optimizer)
        self.weak = partial(augment, probability=recipe.augment_probability, cutout=recipe.cutout)
        self.strong = partial(augment, probability=1.0, cutout=recipe.cutout)

    def generator_for(self, step: int, purpose: str) -> torch.Generator:
        """Random numbers of one step, the same on every process."""
        number = Random(f"adversarial/{purpose}/{self.seed}/{step}").getrandbits(63)
        return torch.Generator().manual_seed(number)

    def generator_loss(self, reconstruction_B3HW: Tensor, step: int) -> Tensor:
        """The tokenizer's loss for reconstructions that the discriminator recognises; no gradient for the latter."""
        generator = self.generator_for(step, "tokenizer")
        with torch.autocast(reconstruction_B3HW.device.type, enabled=False):  # the blur needs float32
            images_B3HW = self.weak(reconstruction_B3HW.float(), generator, blur=self.schedule.blur(step))
        self.unwrapped.requires_grad_(False)
        with self.accelerator.autocast():
            logits_BM = self.unwrapped(self.features(self.features.fit(images_B3HW, generator)))
        self.unwrapped.requires_grad_(True)
        return -logits_BM.float().mean()

    def weight(self, image_loss: Tensor, adversarial: Tensor, last_weight: Tensor, step: int) -> Tensor:
        """Factor that makes the adversarial loss as strong, at the last layer, as the loss on the images. Taming
        Transformers (arXiv:2012.09841), equation 7, on gradients averaged over the processes."""
        factor = image_loss.new_ones(())
        if self.recipe.adaptive:
            factor = gradient_ratio(image_loss, adversarial, last_weight).clamp(*self.recipe.adaptive_range)
        return self.schedule.weight(step) * self.recipe.weight * factor

    def train_step(self, real_B3HW: Tensor, made_B3HW: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator; returns the parts of its loss."""
        batches = (real_B3HW.float(), made_B3HW.detach().float())
        generator, blur = self.generator_for(step, "discriminator"), self.schedule.blur(step)
        views = [self.weak(batch_B3HW, generator, blur=blur) for batch_B3HW in batches]
        views += [self.strong(batch_B3HW, generator) for batch_B3HW in batches]
        with self.accelerator.autocast():
            with torch.no_grad():
                levels = self.features(torch.cat([self.features.fit(view_B3HW, generator) for view_B3HW in views]))
            logits = self.heads(levels).float().chunk(4)
        parts = discriminator_loss(logits, objective=self.recipe.objective, consistency=self.recipe.consistency)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.schedule.learning_rate(step)
        loss, limit = torch.stack(list(parts.values())).sum(), self.recipe.max_grad_norm
        descend(self.accelerator, self.optimizer, self.heads, loss, max_norm=limit, step=step, name="discriminator's ")
        return {name: part.detach() for name, part in parts.items()}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What AdamW trains: weight decay for matrices and larger, none for vectors and scalars (norms, biases)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def descend(
    accelerator: Accelerator, optimizer: Any, model: Any, loss: Tensor, *, max_norm: float, step: int, name: str = ""
) -> Tensor:
    """One step of an optimizer; returns the norm of the gradient before it is clipped."""
    require_finite(f"{name}loss", loss, step=step)
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    if accelerator.scaler is None:  # float16's scaler skips such a step by itself
        require_finite(f"{name}gradient norm", norm, step=step)
    optimizer.step()
    return norm


def require_finite(name: str, value: Tensor, *, step: int) -> None:
    """End a diverged training before anything of it is saved."""
    if not torch.isfinite(value):
        raise ValueError(
            f"the {name} must be finite, got {value.item()} at step {step}; lower the learning rate and resume"
        )


def gradient_ratio(first: Tensor, second: Tensor, last_weight: Tensor) -> Tensor:
    """Norm of the first loss's gradient at this weight over that of the second's."""
    norms = []
    for loss in (first, second):
        (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
        norms.append(mean_over_ranks(gradient.float()).norm())
    return (norms[0] / (norms[1] + 1e-6)).detach()


def discriminator_loss(logits: Sequence[Tensor], *, objective: str, consistency: float) -> dict[str, Tensor]:
    """Tell real images from reconstructions, and judge strongly augmented images like weakly augmented ones. `logits`:
    (B, M) of weakly augmented real, weakly augmented reconstructed, strongly augmented real, and strongly augmented
    reconstructed images."""
    real_BM, made_BM, strong_real_BM, strong_made_BM = logits
    real_loss = REAL_LOSSES[objective]
    return {
        "discriminator_real": real_loss(real_BM),
        "discriminator_made": real_loss(-made_BM),
        "discriminator_consistency": consistency
        * (F.mse_loss(strong_real_BM, real_BM) + F.mse_loss(strong_made_BM, made_BM)),
    }
