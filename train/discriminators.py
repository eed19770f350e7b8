"""The adversarial part of tokenizer training: the discriminator's own training, and what it asks of the tokenizer.

Comes in: real and reconstructed pixels, and the step. Goes out: losses and weights. All randomness is a function of
the seed and the step, so a resumed run repeats it, on any number of processes. Knows no tokenizer.

Letters: B batch, H W pixels, M logits per picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Dinov2Backbone, Dinov2Config

from tokenizer.checkpoint import NameTable, read_tensors, require_same_tensors
from tokenizer.quantizer import mean_over_ranks
from train.recipe import AdversarialRecipe
from train.tokenizer_losses import DiffAugment

# What a frozen DINOv2 sees in a picture: features after several of its blocks, for the discriminator.
#
# Comes in: pixels in [-1, 1], and the weights in the layout of `dinov2_vits14_pretrain.pth`. Goes out: one (B, N, D)
# per
# chosen block, patch tokens with the class token added to each. The network is transformers' `Dinov2Backbone`; sizes
# are
# read from the file, so that a small stand-in of the same layout works. Gradients reach the pixels, no weight learns.
#
# Letters: B batch, H W pixels, N patches, D width.


PATCH = 14
HEAD_WIDTH = 64  # of every published DINOv2
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
RENAMED = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.{rest}", "embeddings.patch_embeddings.projection.{rest}"),
    ("blocks.{i}.norm1.{rest}", "encoder.layer.{i}.norm1.{rest}"),
    ("blocks.{i}.attn.proj.{rest}", "encoder.layer.{i}.attention.output.dense.{rest}"),
    ("blocks.{i}.ls1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"),
    ("blocks.{i}.norm2.{rest}", "encoder.layer.{i}.norm2.{rest}"),
    ("blocks.{i}.mlp.{rest}", "encoder.layer.{i}.mlp.{rest}"),
    ("blocks.{i}.ls2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"),
    ("norm.{rest}", "layernorm.{rest}"),
)
"""Published names to those of Hugging Face's files; `attn.qkv` is cut in three besides."""


class DinoFeatures(nn.Module):
    """Pixels of any square size at least one patch wide; the picture is brought to the next multiple of 14 below."""

    def __init__(self, state: Mapping[str, Tensor], *, image_size: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.side = image_size // PATCH * PATCH
        require_same_tensors(
            state, published_names(state), source="the file of DINOv2 weights (dinov2_vits14_pretrain.pth)"
        )
        depth = number_of_blocks(state)
        if self.side == 0 or not blocks or max(blocks) >= depth:
            raise ValueError(
                f"DINOv2 features need pictures of {PATCH} pixels or more and blocks below {depth}; got {image_size} "
                f"and {list(blocks)}; change adversarial.blocks or the image size"
            )
        width = state["cls_token"].shape[-1]
        sizes: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": width // HEAD_WIDTH,
            "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] // width,
            "image_size": self.side,
            "patch_size": PATCH,
            "out_indices": [block + 1 for block in blocks],  # 0 is the embedding
            "apply_layernorm": False,
            "reshape_hidden_states": False,
        }
        found: Any = Dinov2Backbone.from_pretrained(
            None,
            config=Dinov2Config(**sizes),
            state_dict=translated(state, self.side // PATCH),
            output_loading_info=True,
        )
        self.network, report = found
        assert not any(report.values()), f"names of the DINOv2 class have changed: {report}"
        mean, deviation = (torch.tensor(row).view(1, 3, 1, 1) for row in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        self.register_buffer("scale", 0.5 / deviation)
        self.register_buffer("shift", (0.5 - mean) / deviation)
        self.width, self.num_levels = width, len(blocks)
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, path: Path, *, image_size: int, blocks: Sequence[int]) -> DinoFeatures:
        """Read the published file, or one with the same names."""
        return cls(read_tensors(path), image_size=image_size, blocks=blocks)

    def train(self, mode: bool = True) -> DinoFeatures:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Features of pixels that `fit` has brought to size, (B, N, D) per block."""
        levels = self.network(pixels_B3HW * self.scale + self.shift).feature_maps
        return [tokens_BND[:, 1:] + tokens_BND[:, :1] for tokens_BND in levels]

    def fit(self, pixels_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """Bring pictures to the network's size: half of the time a random crop, else resampled whole (UniTok)."""
        crops, top, left = torch.rand(3, generator=generator).tolist()
        height, width = pixels_B3HW.shape[-2:]
        if (height, width) == (self.side, self.side):
            return pixels_B3HW
        if min(height, width) <= self.side:
            return F.interpolate(pixels_B3HW, (self.side, self.side), mode="bicubic", antialias=False)
        if crops >= 0.5:
            return F.interpolate(pixels_B3HW, (self.side, self.side), mode="area")
        y, x = int(top * (height - self.side + 1)), int(left * (width - self.side + 1))
        return pixels_B3HW[:, :, y : y + self.side, x : x + self.side]


def number_of_blocks(state: Mapping[str, Tensor]) -> int:
    return 1 + max((int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)), default=-1)


def published_names(state: Mapping[str, Tensor]) -> list[str]:
    """Every name that a published file with this many blocks has."""
    both = ("weight", "bias")
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names = ["cls_token", "mask_token", "pos_embed"]
    names += [f"{layer}.{part}" for layer in ("patch_embed.proj", "norm") for part in both]
    for index in range(max(1, number_of_blocks(state))):
        names += [f"blocks.{index}.{layer}.{part}" for layer in layers for part in both]
        names += [f"blocks.{index}.{scale}.gamma" for scale in ("ls1", "ls2")]
    return names


def translated(state: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """Published names and layout to Hugging Face's, with the positions resampled to `side` x `side` patches."""
    result, others = {}, {}
    for name, tensor in state.items():
        found = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name)
        if found:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                result[f"encoder.layer.{found[1]}.attention.attention.{part}.{found[2]}"] = rows.clone()
        else:
            others[name] = tensor
    result |= NameTable(RENAMED).to_ours(others)
    result["embeddings.position_embeddings"] = resampled_positions(state["pos_embed"], side)
    return result


def resampled_positions(positions_1TD: Tensor, side: int) -> Tensor:
    """Positions of another number of patches, as DINOv2's own code has them: bicubic, side enlarged by 0.1."""
    class_11D, patches_1ND = positions_1TD[:, :1], positions_1TD[:, 1:]
    old_side = round(patches_1ND.shape[1] ** 0.5)
    if old_side == side:
        return positions_1TD
    grid_1DHW = patches_1ND.unflatten(1, (old_side, old_side)).permute(0, 3, 1, 2).float()
    scale = (side + 0.1) / old_side
    grid_1DHW = F.interpolate(grid_1DHW, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([class_11D, grid_1DHW.flatten(2).transpose(1, 2)], dim=1)


# Judges whether features come from a real picture (StyleGAN-T, arXiv:2301.09515, section 3.2, as UniTok has it).
#
# Comes in: features of a frozen network, one (B, N, D) per level. Goes out: logits (B, M), one per patch and level;
# above zero means real. Parameter names are UniTok's. Knows no pixels.
#
# Letters: B batch, N patches, D width, M = levels * N.


NORM_GROUPS = 32
KERNEL = 9  # patches that the second layer of a head looks at, along the row-major line


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2): the variance stays."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, features_BDN: Tensor) -> Tensor:
        return (self.fn(features_BDN) + features_BDN) / math.sqrt(2)


def block(width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, width, eps=1e-6), nn.LeakyReLU(0.2))


class Discriminator(nn.Module):
    """One small convolutional head per level of features."""

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        if width % NORM_GROUPS:
            raise ValueError(
                f"the discriminator normalises in {NORM_GROUPS} groups; got features of width {width}; "
                "give a network with a multiple of it"
            )
        self.heads = nn.ModuleList(
            nn.Sequential(block(width, 1), Residual(block(width, KERNEL)), nn.Conv1d(width, 1, 1))
            for _ in range(num_levels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_normal_(module.weight, gain=0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Float32 logits (B, M) of features (B, N, D) per level."""
        logits = [head(level_BND.transpose(1, 2)) for head, level_BND in zip(self.heads, levels, strict=True)]
        return torch.cat([level_B1N.flatten(1) for level_B1N in logits], dim=1).float()


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
