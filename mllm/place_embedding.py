"""Where an image position lies in its image, as a vector that is added to its embedding.

RoPE tells how many tokens lie between two places, which says nothing about two pictures whose distance varies with the
words between them. A learned vector for the row and one for the column give every position the same key in every
picture, so that "what is at this place of the first picture" can be looked up: edits and depth maps copy by it. A
second pair of tables tells the row and column of the position that comes next, the one that is about to be predicted.

The content vector is normalised first: it comes out of an unbounded projector and grows in training (to two hundred
times the size of a text token's in one run), where nothing that is added to it could be seen. Off for the released
checkpoints.

Letters: P image positions, D language model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.rms_norm import RMSNorm


class PlaceEmbedding(nn.Module):
    """Normalised content, plus learned vectors of row and column, of the position itself and of its successor in
    reading order. The vectors start at zero."""

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.columns = columns
        self.norm = RMSNorm(width, eps=1e-6)
        self.row = nn.Parameter(torch.zeros(columns, width))
        self.column = nn.Parameter(torch.zeros(columns, width))
        self.next_row = nn.Parameter(torch.zeros(columns + 1, width))  # the last position's successor begins a row more
        self.next_column = nn.Parameter(torch.zeros(columns, width))

    def forward(self, content_PD: Tensor, index_P: Tensor) -> Tensor:
        """(P, D) from indices in reading order within the image."""
        next_P = index_P + 1
        return (
            self.norm(content_PD)
            + F.embedding(index_P // self.columns, self.row)
            + F.embedding(index_P % self.columns, self.column)
            + F.embedding(next_P // self.columns, self.next_row)
            + F.embedding(next_P % self.columns, self.next_column)
        )


def indices_within(lengths_I: Tensor) -> Tensor:
    """0, 1, ... within each image, images one after another; (P,)."""
    starts_I = lengths_I.cumsum(0) - lengths_I
    return torch.arange(int(lengths_I.sum()), device=lengths_I.device) - starts_I.repeat_interleave(lengths_I)
