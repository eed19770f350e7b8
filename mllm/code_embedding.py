"""Codes of image positions in, vectors of the language model's width out.

Frozen codebook entries, l2-normalised and put side by side, pass through a causal attention projection within each
image and an MLP projector (UniTok, arXiv:2502.20321, section 3.3). `forward` embeds whole images at once; `step` embeds
the newest position of each row and keeps that layer's keys and values, so that both agree exactly.

With context "isolated" a position sees itself alone in `step`, as in the upstream scripts (which then differ from
training); `forward` stays as trained unless `isolated=True` is passed. With `image_places` a learned vector of its row
and column is added to every position (mllm/place_embedding.py).

Letters: P image positions in the batch (reading order), I images, N positions of the longest image, K codebooks,
C codes, E width of an entry, Z = K * E, D language model width, R decoding rows, H heads, d head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.place_embedding import PlaceEmbedding, indices_within
from tokenizer.projection import AttentionProjection


@dataclass(kw_only=True, slots=True)
class EmbeddingCache:
    """Keys and values of the image that each row is drawing. Owned and written by `CodeEmbedding.step`."""

    keys_RHNd: Tensor | None  # None where each position is embedded alone
    values_RHNd: Tensor | None
    num_seen_R: Tensor  # int64: positions of the image so far

    def reset(self, rows: Tensor | None = None) -> None:
        """Begin a new image in these rows (default: all)."""
        self.num_seen_R[slice(None) if rows is None else rows] = 0


class CodeEmbedding(nn.Module):
    """The input side of image positions."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.context = config.embedding_context
        self.num_heads = config.embedder_heads
        shape = (config.num_codebooks, config.codebook_size)
        self.register_buffer("codebooks", torch.zeros(*shape, config.code_width))  # as the image tokenizer has them
        self.register_buffer("codebook_usage", torch.zeros(shape))  # carried for conversion, not used
        self.projection = AttentionProjection(
            config.code_vector_width, config.embedder_width, config.embedder_heads, causal=True
        )
        self.projector = Projector(config.embedder_width, config.hidden_size)
        self.places = PlaceEmbedding(config.grid_side, config.hidden_size) if config.image_places else None

    @torch.no_grad()
    def set_codebooks(self, codebooks_KCE: Tensor) -> None:
        """Copy the image tokenizer's codebooks; they are not trained here."""
        if codebooks_KCE.shape != self.codebooks.shape:
            raise ValueError(
                f"the image tokenizer has other codebooks than the model: found {tuple(codebooks_KCE.shape)}, the "
                f"model has {tuple(self.codebooks.shape)}; use the tokenizer that the config describes"
            )
        self.codebooks.copy_(codebooks_KCE)

    def look_up(self, codes_PK: Tensor) -> Tensor:
        """Entries (P, Z), each of unit length."""
        offsets_K = torch.arange(self.codebooks.shape[0], device=codes_PK.device) * self.codebooks.shape[1]
        entries_PKE = F.embedding(codes_PK + offsets_K, self.codebooks.flatten(0, 1))
        return F.normalize(entries_PKE, dim=-1).flatten(1)

    def forward(self, codes_PK: Tensor, image_lengths_I: Tensor, *, isolated: bool = False) -> Tensor:
        """Embed whole images, one after another in `codes_PK`; (P, D). No position sees another image."""
        if int(image_lengths_I.sum()) != codes_PK.shape[0]:
            raise ValueError(
                f"image lengths do not add up to the codes: found {int(image_lengths_I.sum())} and "
                f"{codes_PK.shape[0]} positions; pass one length per image"
            )
        vectors_PZ = self.look_up(codes_PK)
        projected_PZ = self._project_alone(vectors_PZ) if isolated else self._project(vectors_PZ, image_lengths_I)
        embedded_PD = self.projector(projected_PZ)
        if self.places is None:
            return embedded_PD
        return self.places(embedded_PD, indices_within(image_lengths_I.to(codes_PK.device)))

    def _project_alone(self, vectors_PZ: Tensor) -> Tensor:
        return self.projection(vectors_PZ[:, None])[:, 0]

    def _project(self, vectors_PZ: Tensor, image_lengths_I: Tensor) -> Tensor:
        """Each position with those before it in its image."""
        lengths = image_lengths_I.tolist()
        if len(set(lengths)) == 1:
            return self.projection(vectors_PZ.view(len(lengths), lengths[0], -1)).flatten(0, 1)
        # unequal images: pad on the right, where a causal layer never looks
        is_real_IN = (
            torch.arange(max(lengths), device=vectors_PZ.device) < image_lengths_I.to(vectors_PZ.device)[:, None]
        )
        padded_INZ = vectors_PZ.new_zeros(*is_real_IN.shape, vectors_PZ.shape[-1])
        padded_INZ[is_real_IN] = vectors_PZ
        return self.projection(padded_INZ)[is_real_IN]

    def new_cache(self, num_rows: int, num_positions: int) -> EmbeddingCache:
        """A static cache for images of up to `num_positions`."""
        weight = self.projection.attn.qkv.weight
        num_seen_R = torch.zeros(num_rows, dtype=torch.int64, device=weight.device)
        if self.context == "isolated":
            return EmbeddingCache(keys_RHNd=None, values_RHNd=None, num_seen_R=num_seen_R)
        shape = (num_rows, self.num_heads, num_positions, weight.shape[0] // 3 // self.num_heads)
        return EmbeddingCache(
            keys_RHNd=weight.new_zeros(shape), values_RHNd=weight.new_zeros(shape), num_seen_R=num_seen_R
        )

    def step(self, codes_RK: Tensor, cache: EmbeddingCache, *, rows: Tensor | None = None) -> Tensor:
        """Embed the newest position of each row; (R, D). Advances the cache.

        Args:
            rows: which cache rows `codes_RK` belongs to (int64); default: all, in order.
        """
        if rows is None:
            rows = torch.arange(codes_RK.shape[0], device=codes_RK.device)
        vectors_RZ = self.look_up(codes_RK)
        is_alone = cache.keys_RHNd is None
        projected_RZ = self._project_alone(vectors_RZ) if is_alone else self._project_next(vectors_RZ, cache, rows)
        embedded_RD = self.projector(projected_RZ)
        if self.places is not None:
            embedded_RD = self.places(embedded_RD, cache.num_seen_R[rows])
        cache.num_seen_R[rows] += 1
        return embedded_RD

    def _project_next(self, vectors_RZ: Tensor, cache: EmbeddingCache, rows: Tensor) -> Tensor:
        """The newest position with those of its image that the cache holds; its own keys and values are added."""
        position_R = cache.num_seen_R[rows]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            cache.keys_RHNd[rows, :, position_R] = key[:, :, 0].to(cache.keys_RHNd.dtype)
            cache.values_RHNd[rows, :, position_R] = value[:, :, 0].to(cache.values_RHNd.dtype)
            is_seen_RN = torch.arange(cache.keys_RHNd.shape[2], device=rows.device) <= position_R[:, None]
            keys, values = cache.keys_RHNd[rows].to(query.dtype), cache.values_RHNd[rows].to(query.dtype)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=is_seen_RN[:, None, None])

        return self.projection(vectors_RZ[:, None], attend=attend)[:, 0]


class Projector(nn.Module):
    """LayerNorm, linear, GELU, linear."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=1e-6)
        self.linear1 = nn.Linear(in_width, out_width)
        self.linear2 = nn.Linear(out_width, out_width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(self.norm(hidden))))
