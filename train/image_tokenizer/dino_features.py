"""What a frozen DINOv2 sees in a picture: features after several of its blocks, for the discriminator.

Comes in: pixels in [-1, 1], and the weights in the layout of `dinov2_vits14_pretrain.pth`. Goes out: one (B, N, D) per
chosen block, patch tokens with the class token added to each. The network is transformers' `Dinov2Backbone`; sizes are
read from the file, so that a small stand-in of the same layout works. Gradients reach the pixels, no weight learns.

Letters: B batch, H W pixels, N patches, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Backbone, Dinov2Config

from tokenizer.weight_file import read_tensors, require_names
from tokenizer.weights import pattern, translate

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
        require_names(state, published_names(state), kind="DINOv2 weights (dinov2_vits14_pretrain.pth)")
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
    table = [(pattern(theirs), ours) for theirs, ours in RENAMED]
    result = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name)
        if found:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                result[f"encoder.layer.{found[1]}.attention.attention.{part}.{found[2]}"] = rows.clone()
        else:
            result[translate(name, table)] = tensor
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
