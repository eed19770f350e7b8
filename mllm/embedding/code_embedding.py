"""What every embedding of image codes does: the seam between the model, the decoding loop and how codes become vectors.

Codes of image positions in, vectors of the language model's width out. `forward` embeds whole images at once; `step`
embeds the newest position of each row, so that both agree exactly. With `image_places` a learned vector of its row and
column is added to every position, however it is embedded (mllm/embedding/places.py). The embeddings are in
mllm/embedding/projected.py and mllm/embedding/summed.py; mllm/embedding/builder.py builds the one that a config asks
for.

Letters: P image positions in the batch (reading order), I images, N positions of the longest image, K codebooks,
D language model width, R decoding rows, H heads, d head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.embedding.places import PlaceEmbedding, indices_within
from tokenizer.model import UniTok


@dataclass(kw_only=True, slots=True)
class EmbeddingCache:
    """What is kept of the image that each row is drawing. Owned and written by `CodeEmbedding.step`."""

    keys_RHNd: Tensor | None  # None where each position is embedded alone
    values_RHNd: Tensor | None
    num_seen_R: Tensor  # int64: positions of the image so far
    columns_R: Tensor  # int64: of the images that the row draws

    def reset(self, rows: Tensor | None = None) -> None:
        """Begin a new image in these rows (default: all)."""
        self.num_seen_R[slice(None) if rows is None else rows] = 0


class CodeEmbedding(nn.Module, ABC):
    """The input side of image positions."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.default_columns = config.grid_side
        side = config.max_grid_side if config.image_layout == "grid" else config.grid_side
        self.places = PlaceEmbedding(side, config.hidden_size) if config.image_places else None

    @abstractmethod
    def embed_images(self, codes_PK: Tensor, image_lengths_I: Tensor, *, isolated: bool) -> Tensor:
        """Whole images, (P, D), without their places; no position sees another image."""

    @abstractmethod
    def embed_next(self, codes_RK: Tensor, cache: EmbeddingCache, rows: Tensor) -> Tensor:
        """The newest position of these rows, (R, D), without its place."""

    @abstractmethod
    def adopt(self, image_tokenizer: UniTok) -> None:
        """Copy what is the image tokenizer's and not learned here."""

    def forward(
        self,
        codes_PK: Tensor,
        image_lengths_I: Tensor,
        *,
        columns_I: Tensor | None = None,
        isolated: bool = False,
    ) -> Tensor:
        """Embed whole images, one after another in `codes_PK`; (P, D).

        Args:
            columns_I: columns of each image; default: all have those of the default size.
            isolated: let every position see itself alone.
        """
        if int(image_lengths_I.sum()) != codes_PK.shape[0]:
            raise ValueError(
                f"image lengths do not add up to the codes: found {int(image_lengths_I.sum())} and "
                f"{codes_PK.shape[0]} positions; pass one length per image"
            )
        embedded_PD = self.embed_images(codes_PK, image_lengths_I, isolated=isolated)
        if self.places is None:
            return embedded_PD
        lengths_I = image_lengths_I.to(codes_PK.device)
        if columns_I is None:
            columns_I = torch.full_like(lengths_I, self.default_columns)
        return self.places(embedded_PD, indices_within(lengths_I), columns_I.repeat_interleave(lengths_I))

    def new_cache(self, num_rows: int, num_positions: int, *, columns: Sequence[int] | None = None) -> EmbeddingCache:
        """A static cache for images of up to `num_positions`; here one that only counts.

        Args:
            columns: of the images of each row; default: all have those of the default size.
        """
        device = next(self.parameters()).device
        return EmbeddingCache(
            keys_RHNd=None,
            values_RHNd=None,
            num_seen_R=torch.zeros(num_rows, dtype=torch.int64, device=device),
            columns_R=torch.tensor(columns or [self.default_columns] * num_rows, device=device),
        )

    def step(self, codes_RK: Tensor, cache: EmbeddingCache, *, rows: Tensor | None = None) -> Tensor:
        """Embed the newest position of each row; (R, D). Advances the cache.

        Args:
            rows: which cache rows `codes_RK` belongs to (int64); default: all, in order.
        """
        if rows is None:
            rows = torch.arange(codes_RK.shape[0], device=codes_RK.device)
        embedded_RD = self.embed_next(codes_RK, cache, rows)
        if self.places is not None:
            embedded_RD = self.places(embedded_RD, cache.num_seen_R[rows], cache.columns_R[rows])
        cache.num_seen_R[rows] += 1
        return embedded_RD
