"""The embedding of codes through the image tokenizer's codebooks.

Frozen codebook entries, l2-normalised and put side by side, pass through an attention projection within each image and
an MLP projector (UniTok, arXiv:2502.20321, section 3.3). `config.embedding_context` says what a position sees:

    prefix     its image so far; `step` keeps that layer's keys and values, so that it equals `forward` exactly
    isolated   itself alone in `step`, as in the upstream scripts (which then differ from training); `forward` stays as
               trained unless `isolated=True` is passed
    whole      its whole image, through the image tokenizer's own frozen projection: quantised features, as LLaVA with
               UniTok has them; only the projector is learned, and nothing can be drawn

Letters: P image positions in the batch (reading order), I images, N positions of one image, K codebooks,
C codes, E width of an entry, Z = K * E, D language model width, R decoding rows, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.embedding.code_embedding import CodeEmbedding, EmbeddingCache
from tokenizer.model import UniTok
from tokenizer.projection import AttentionProjection


class ProjectedEmbedding(CodeEmbedding):
    """Frozen codebooks, attention projection, projector."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__(config)
        self.context = config.embedding_context
        self.num_heads = config.embedder_heads
        shape = (config.num_codebooks, config.codebook_size)
        self.register_buffer("codebooks", torch.zeros(*shape, config.code_width))  # as the image tokenizer has them
        self.register_buffer("codebook_usage", torch.zeros(shape))  # carried for conversion, not used
        self.projection = AttentionProjection(
            config.code_vector_width, config.embedder_width, config.embedder_heads, causal=self.context != "whole"
        )
        if self.context == "whole":
            keep_as_buffers(self.projection)
        self.projector = Projector(config.embedder_width, config.hidden_size)

    def adopt(self, image_tokenizer: UniTok) -> None:
        """Copy the codebooks, and where the whole image is seen, the projection behind them."""
        self.set_codebooks(image_tokenizer.quantizer.codebooks)
        if self.context == "whole":
            self.set_projection(image_tokenizer.post_quant_proj)

    @torch.no_grad()
    def set_codebooks(self, codebooks_KCE: Tensor) -> None:
        """Copy the image tokenizer's codebooks; they are not trained here."""
        if codebooks_KCE.shape != self.codebooks.shape:
            raise ValueError(
                f"the image tokenizer has other codebooks than the model: found {tuple(codebooks_KCE.shape)}, the "
                f"model has {tuple(self.codebooks.shape)}; use the tokenizer that the config describes"
            )
        self.codebooks.copy_(codebooks_KCE)

    @torch.no_grad()
    def set_projection(self, projection: nn.Module) -> None:
        """Copy the projection that the image tokenizer has behind its codebooks."""
        theirs, ours = projection.state_dict(), self.projection.state_dict()
        found = {name: tuple(value.shape) for name, value in theirs.items()}
        heads = getattr(getattr(projection, "attn", None), "num_heads", None)
        if found != {name: tuple(value.shape) for name, value in ours.items()} or heads != self.num_heads:
            raise ValueError(
                f"the image tokenizer has another projection than the model: found {heads} heads and "
                f"{len(found)} weights, the model has {self.num_heads} heads and a width of "
                f"{self.projection.proj.out_features}; set embedder_width and embedder_heads as the tokenizer has them"
            )
        if self.context == "whole" and projection.attn.causal:
            raise ValueError(
                "the image tokenizer's projection looks back only: found projection_attention 'causal'; "
                "use a tokenizer whose projection sees the whole image, or another embedding_context"
            )
        self.projection.load_state_dict(theirs)

    def look_up(self, codes_PK: Tensor) -> Tensor:
        """Entries (P, Z), each of unit length."""
        offsets_K = torch.arange(self.codebooks.shape[0], device=codes_PK.device) * self.codebooks.shape[1]
        entries_PKE = F.embedding(codes_PK + offsets_K, self.codebooks.flatten(0, 1))
        return F.normalize(entries_PKE, dim=-1).flatten(1)

    def embed_images(self, codes_PK: Tensor, image_lengths_I: Tensor, *, isolated: bool) -> Tensor:
        vectors_PZ = self.look_up(codes_PK)
        projected_PZ = self._project_alone(vectors_PZ) if isolated else self._project(vectors_PZ, image_lengths_I)
        return self.projector(projected_PZ)

    def _project_alone(self, vectors_PZ: Tensor) -> Tensor:
        return self.projection(vectors_PZ[:, None])[:, 0]

    def _project(self, vectors_PZ: Tensor, image_lengths_I: Tensor) -> Tensor:
        """Each position with what it may see of its image."""
        lengths = image_lengths_I.tolist()
        if len(set(lengths)) == 1:
            return self.projection(vectors_PZ.view(len(lengths), lengths[0], -1)).flatten(0, 1)
        if self.context == "whole":  # padding would be seen
            return torch.cat([self.projection(vectors_NZ[None])[0] for vectors_NZ in vectors_PZ.split(lengths)])
        # unequal images: pad on the right, where a causal layer never looks
        is_real_IN = (
            torch.arange(max(lengths), device=vectors_PZ.device) < image_lengths_I.to(vectors_PZ.device)[:, None]
        )
        padded_INZ = vectors_PZ.new_zeros(*is_real_IN.shape, vectors_PZ.shape[-1])
        padded_INZ[is_real_IN] = vectors_PZ
        return self.projection(padded_INZ)[is_real_IN]

    def new_cache(self, num_rows: int, num_positions: int, *, columns: Sequence[int] | None = None) -> EmbeddingCache:
        cache = super().new_cache(num_rows, num_positions, columns=columns)
        if self.context == "prefix":
            weight = self.projection.attn.qkv.weight
            shape = (num_rows, self.num_heads, num_positions, weight.shape[0] // 3 // self.num_heads)
            cache.keys_RHNd, cache.values_RHNd = weight.new_zeros(shape), weight.new_zeros(shape)
        return cache

    def embed_next(self, codes_RK: Tensor, cache: EmbeddingCache, rows: Tensor) -> Tensor:
        vectors_RZ = self.look_up(codes_RK)
        match self.context:
            case "prefix":
                return self.projector(self._project_next(vectors_RZ, cache, rows))
            case "isolated":
                return self.projector(self._project_alone(vectors_RZ))
            case _:
                raise ValueError(
                    f"an unfinished image cannot be embedded: found embedding_context {self.context!r}; "
                    "give whole images, or use a model that draws"
                )

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


def keep_as_buffers(module: nn.Module) -> None:
    """Make a module's parameters buffers, as the codebooks are: saved under the same names, and never learned."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            shape = getattr(parameter, "ds_shape", None)  # cut by ZeRO-3 already: values are adopted or loaded later
            part.register_buffer(name, parameter.detach() if shape is None else parameter.new_zeros(shape))


class Projector(nn.Module):
    """LayerNorm, linear, GELU, linear."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=1e-6)
        self.linear1 = nn.Linear(in_width, out_width)
        self.linear2 = nn.Linear(out_width, out_width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(self.norm(hidden))))
