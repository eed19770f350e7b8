"""Between wide hidden states and narrow code features, in both directions, with attention over the positions.

The same module embeds codes for a language model (causal there). The parameter names are those of UniTok's two
released checkpoints, because both hold this module.

Letters: B batch, N positions, I input width, O output width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.config import UniTokConfig
from tokenizer.layers import GeGLU

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each (B, H, N, E), to the attended values of the same shape."""


class ProjectionAttention(nn.Module):
    """Attention whose inner width is the larger of both sides; heads are averaged when narrowing, else concatenated."""

    def __init__(self, in_width: int, out_width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        inner_width = max(in_width, out_width)
        if inner_width % num_heads:
            raise ValueError(
                f"projection heads must divide the wider side; got {num_heads} heads for {inner_width}; "
                "change projection_heads"
            )
        self.num_heads = num_heads
        self.causal = causal
        self.averages_heads = in_width > out_width
        self.out_width = out_width
        self.qkv = nn.Linear(in_width, 3 * inner_width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner_width))
        self.v_bias = nn.Parameter(torch.zeros(inner_width))
        self.register_buffer("zero_k_bias", torch.zeros(inner_width))
        self.proj = nn.Linear(out_width, out_width)

    def forward(self, hidden_BNI: Tensor, *, attend: Attend | None = None) -> Tensor:
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(hidden_BNI, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if attend is None:
            attend = partial(attend, causal=self.causal)
        attended_BHNE = attend(query, key, value)
        if not self.averages_heads:
            return self.proj(attended_BHNE.transpose(1, 2).flatten(2))
        mean_BNE = attended_BHNE.mean(dim=1)
        if mean_BNE.shape[-1] != self.out_width:
            mean_BNE = F.adaptive_avg_pool1d(mean_BNE, self.out_width)
        return self.proj(mean_BNE)


class AttentionProjection(nn.Module):
    """Project (B, N, in_width) to (B, N, out_width): a linear path plus attention, then a GeGLU."""

    def __init__(self, in_width: int, out_width: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_width)
        self.norm3 = nn.LayerNorm(in_width)
        self.attn = ProjectionAttention(in_width, out_width, num_heads, causal=causal)
        self.proj = nn.Linear(in_width, out_width)
        self.norm2 = nn.LayerNorm(out_width)
        self.mlp = GeGLU(out_width, 2 * out_width)

    def forward(self, hidden_BNI: Tensor, *, attend: Attend | None = None) -> Tensor:
        """`attend` replaces the attention of the whole sequence, so that a caller can keep keys and values."""
        hidden_BNO = self.proj(self.norm3(hidden_BNI)) + self.attn(self.norm1(hidden_BNI), attend=attend)
        return hidden_BNO + self.mlp(self.norm2(hidden_BNO))


def build_projection(config: UniTokConfig, in_width: int, out_width: int) -> nn.Module:
    """The configured way between hidden states and code vectors."""
    match config.projection:
        case "attention":
            causal = config.projection_attention == "causal"
            return AttentionProjection(in_width, out_width, config.projection_heads, causal=causal)
        case "linear":
            return nn.Linear(in_width, out_width)
        case _:
            raise ValueError(f"unknown projection; got {config.projection!r}; use 'attention' or 'linear'")


def projection_dtype(projection: nn.Module) -> torch.dtype:
    """What a projection computes in."""
    return next(projection.parameters()).dtype
