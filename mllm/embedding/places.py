"""Where an image position lies in its image, as a vector that is added to its embedding.

RoPE tells how many tokens lie between two places, which says nothing about two pictures whose distance varies with the
words between them. A learned vector for the row and one for the column give every position the same key in every
picture, so that "what is at this place of the first picture" can be looked up: edits and depth maps copy by it. What
is looked up belongs to the position that comes next; its column follows from this one's, its row only together with
the column, so it has a table of its own.

The content vector is normalised first: it comes out of an unbounded projector and grows in training (to two hundred
times the size of a text token's in one run), where nothing that is added to it could be seen. Off for the released
checkpoints.

Letters: P image positions, D language model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.rms_norm import RMSNorm

PLACE_STD = 0.3
"""Of the vectors at the start; the content they are added to has root mean square 1."""


class PlaceEmbedding(nn.Module):
    """Normalised content plus learned vectors of row, column, and the row of the next position in reading order."""

    def __init__(self, side: int, width: int) -> None:
        """For images of up to `side` rows and columns."""
        super().__init__()
        self.norm = RMSNorm(width, eps=1e-6)
        self.row = nn.Parameter(torch.empty(side, width))
        self.column = nn.Parameter(torch.empty(side, width))
        self.next_row = nn.Parameter(torch.empty(side + 1, width))  # the last position's successor begins a row more

    @torch.no_grad()
    def extend(self, side: int) -> None:
        """Make room for images of up to `side` rows and columns; new ones begin as the last one known."""
        for name, num_rows in (("row", side), ("column", side), ("next_row", side + 1)):
            table = getattr(self, name)
            new = table[-1:].expand(num_rows - len(table), -1)
            setattr(self, name, nn.Parameter(torch.cat([table, new]), requires_grad=table.requires_grad))

    def forward(self, content_PD: Tensor, index_P: Tensor, columns_P: Tensor) -> Tensor:
        """(P, D) from indices in reading order within the image, and how many columns that has."""
        return (
            self.norm(content_PD)
            + F.embedding(index_P // columns_P, self.row)
            + F.embedding(index_P % columns_P, self.column)
            + F.embedding((index_P + 1) // columns_P, self.next_row)
        )


def indices_within(lengths_I: Tensor) -> Tensor:
    """0, 1, ... within each image, images one after another; (P,)."""
    starts_I = lengths_I.cumsum(0) - lengths_I
    return torch.arange(int(lengths_I.sum()), device=lengths_I.device) - starts_I.repeat_interleave(lengths_I)
