"""Transformer layers that encoder, decoder and projections share. Knows no pictures and no codes.

Letters: B batch, N positions, D hidden width, H heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6  # UniTok's blocks; the projections' outer norms keep PyTorch's 1e-5
LONGEST_PLAIN_ATTENTION = 256  # positions; above, the scores would take more memory than the fused kernel saves time


def attend(query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, *, causal: bool) -> Tensor:
    """Scaled dot-product attention over all positions, or over the past.

    PyTorch's fused CPU kernel takes eight times as long as plain matrix products to go backward through a short
    sequence, so training on a CPU spells them out.
    """
    num_positions = query_BHNE.shape[2]
    if query_BHNE.device.type != "cpu" or not torch.is_grad_enabled() or num_positions > LONGEST_PLAIN_ATTENTION:
        return F.scaled_dot_product_attention(query_BHNE, key_BHNE, value_BHNE, is_causal=causal)
    scores_BHNN = (query_BHNE * query_BHNE.shape[-1] ** -0.5) @ key_BHNE.transpose(2, 3)
    if causal:
        is_future_NN = torch.ones(num_positions, num_positions, dtype=torch.bool).triu(1)
        scores_BHNN = scores_BHNN.masked_fill(is_future_NN, float("-inf"))
    return scores_BHNN.softmax(dim=-1) @ value_BHNE


class GeGLU(nn.Module):
    """Gated MLP that normalises its own input (Shazeer 2020, arXiv:2002.05202).

    The released network normalises twice, here and in the caller; the weights expect it. The gate is the tanh
    approximation of GELU.
    """

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.w0 = nn.Linear(width, inner_width)
        self.w1 = nn.Linear(width, inner_width)
        self.w2 = nn.Linear(inner_width, width)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        hidden_BND = self.norm(hidden_BND)
        return self.w2(F.gelu(self.w0(hidden_BND), approximate="tanh") * self.w1(hidden_BND))


class DropPath(nn.Module):
    """Drop a residual branch of whole samples in training (stochastic depth, arXiv:1603.09382)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch_BND: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return branch_BND
        keep = 1.0 - self.probability
        kept_B11 = branch_BND.new_empty(branch_BND.shape[0], 1, 1).bernoulli_(keep)
        return branch_BND * kept_B11 / keep

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, width: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        query, key, value = self.qkv(hidden_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended_BHNE = attend(query, key, value, causal=self.causal)
        return self.proj(attended_BHNE.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and GeGLU, each with its own residual."""

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GeGLU(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        hidden_BND = hidden_BND + self.drop_path(self.attn(self.norm1(hidden_BND)))
        return hidden_BND + self.drop_path(self.mlp(self.norm2(hidden_BND)))


class TransformerStack(nn.ModuleList):
    """Blocks one after the other; training can recompute their insides instead of keeping them."""

    recompute = False

    def forward(self, hidden_BND: Tensor) -> Tensor:
        for block in self:
            if self.recompute and self.training:
                hidden_BND = checkpoint(block, hidden_BND, use_reentrant=False)
            else:
                hidden_BND = block(hidden_BND)
        return hidden_BND


def build_stack(depth: int, width: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> TransformerStack:
    """Blocks whose stochastic depth grows linearly from 0 to `drop_path`."""
    rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
    return TransformerStack(TransformerBlock(width, num_heads, mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates)
