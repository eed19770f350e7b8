"""The mlp head: a residual MLP that predicts the K codes of a position all at once. Fast; blind to the other codes.

In: hidden states. Out: logits (P, K, C) in one pass. For ablations and small models.

Letters: P image positions, R decoding rows, N guided pairs, D hidden width, K codebooks, C codes per codebook.
"""

import torch
from torch import Tensor, nn

from mllm.heads.code_head import ChooseCode, CodeDecoder, CodeHead, Guidance
from mllm.heads.depth_transformer import GatedMLP
from mllm.rms_norm import RMSNorm


class MLPHead(CodeHead, CodeDecoder):
    """Pre-norm gated MLP blocks, a norm, and one linear layer to K * C logits."""

    def __init__(
        self,
        *,
        width: int,
        intermediate_width: int,
        num_layers: int,
        norm_eps: float,
        num_codebooks: int,
        num_codes: int,
    ) -> None:
        super().__init__()
        self.shape = (num_codebooks, num_codes)
        self.blocks = nn.ModuleList(ResidualBlock(width, intermediate_width, norm_eps) for _ in range(num_layers))
        self.norm = RMSNorm(width, eps=norm_eps)
        self.linear_head = nn.Linear(width, num_codebooks * num_codes)

    def transform(self, hidden_PD: Tensor) -> Tensor:
        """Hidden states just before the linear layer."""
        for block in self.blocks:
            hidden_PD = block(hidden_PD)
        return self.norm(hidden_PD)

    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Logits (P, K, C); `codes_PK` is not looked at, since no code depends on another."""
        return self.linear_head(self.transform(hidden_PD)).unflatten(-1, self.shape)

    def decoder(self) -> CodeDecoder:
        """The head itself: there is nothing to prepare."""
        return self

    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        """Codes (N, K) of one position for every row, guided before the linear layer."""
        hidden_ND = self.transform(hidden_RD)
        if guidance is not None:
            hidden_ND = guidance.mix(hidden_ND)
        logits_NKC = self.linear_head(hidden_ND).unflatten(-1, self.shape)
        return torch.stack([choose(k, logits_NKC[:, k]) for k in range(self.shape[0])], dim=1)


class ResidualBlock(nn.Module):
    """x + MLP(norm(x))."""

    def __init__(self, width: int, intermediate_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=norm_eps)
        self.mlp = GatedMLP(width, intermediate_width)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        return hidden_PD + self.mlp(self.norm(hidden_PD))
