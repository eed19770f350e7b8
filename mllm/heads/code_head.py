"""What every codebook head does, and guidance for it: the seam between the model, the loss and the decoding loop.

A head turns the hidden state of the position BEFORE an image position into logits over the K codes of that position.
Knows nothing of sampling (the caller chooses each code), sequences or images.

Letters: P image positions, R decoding rows, N guided pairs (N = R without guidance), D hidden width, K codebooks,
C codes per codebook.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ChooseCode = Callable[[int, Tensor], Tensor]
"""(k, logits_NC) -> codes_N: picks the code of codebook k for every pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Which rows are mixed: pair n draws from u + scale * (c - u) of its conditional row c and unconditional row u.

    A row without guidance names itself as its unconditional row; its scale then changes nothing.
    """

    conditional_N: Tensor  # int64 row numbers
    unconditional_N: Tensor  # int64 row numbers
    scale_N: Tensor  # float32

    def mix(self, hidden_RD: Tensor) -> Tensor:
        """Guided hidden states, mixed in float32. Before a linear layer this equals mixing logits, at half the rows."""
        conditional_ND = hidden_RD.index_select(0, self.conditional_N).float()
        unconditional_ND = hidden_RD.index_select(0, self.unconditional_N).float()
        mixed_ND = torch.lerp(unconditional_ND, conditional_ND, self.scale_N[:, None].float())
        return mixed_ND.to(hidden_RD.dtype)

    def pair_of_rows(self, num_rows: int) -> Tensor:
        """Which pair each row belongs to (R,), so that both rows of a pair get the code that was chosen for it."""
        pair_N = torch.arange(len(self.conditional_N), device=self.conditional_N.device)
        pair_R = pair_N.new_zeros(num_rows)
        return pair_R.index_copy(0, self.unconditional_N, pair_N).index_copy(0, self.conditional_N, pair_N)


class CodeDecoder(ABC):
    """A head made ready to decode a batch of images; it may keep copies and buffers for that time."""

    @abstractmethod
    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        """Codes (N, K) of one position for every row, chosen codebook by codebook."""


class CodeHead(nn.Module, ABC):
    """Interface of the heads: `forward` for teacher forcing, `decoder` for drawing. Both give the same logits."""

    @abstractmethod
    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Logits (P, K, C) of the codes of each position, given the hidden state of the preceding position."""

    @abstractmethod
    def decoder(self) -> CodeDecoder:
        """This head, ready to decode with the weights it has now."""
