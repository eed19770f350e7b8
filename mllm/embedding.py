"""The embedding of image codes: the K codes of an image position in, a vector of the language model's width out.

`forward` embeds whole images at once, `step` new positions of each row of a decoding batch; both agree.
Two embeddings share this interface: `ProjectedEmbedding`, through the image tokenizer's codebooks (UniTok,
arXiv:2502.20321, section 3.3), and `SummedEmbedding`, one learned vector per code, as LlamaGen has it. Both can add a
learned embedding of the position's row and column, and one of the image before it. Knows no text and no logits.

Letters: P image positions in the batch (reading order), I images, N positions of an image, K codebooks, C codes,
E width of a codebook entry, Z = K * E, D language model width, R decoding rows, W new positions of each, S rows of a
cache, H heads, d head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence, unpad_sequence
from transformers.utils import torch_compilable_check

from mllm.config import MLLMConfig
from tokenizer.layers import AttentionProjection
from tokenizer.unitok import UniTok

POSITION_STD = 0.3
"""Of the position embedding at the start; the content it is added to has root mean square 1."""


EmbeddingCache = tuple[Tensor, Tensor] | None
"""Keys and values (R, H, N + 1, d) of the images being drawn; None where positions do not see each other."""


class CodeEmbedding(nn.Module, ABC):
    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.default_columns = config.grid_side
        side = config.max_grid_side if config.image_layout == "grid" else config.grid_side
        has_positions = config.image_position_embedding
        self.places = PositionEmbedding(side, config.hidden_size) if has_positions else None  # its name in checkpoints
        self.source = SourceEmbedding(config) if config.image_source_embedding else None

    @abstractmethod
    def embed_images(self, codes_PK: Tensor, image_lengths_I: Tensor) -> Tensor:
        """Whole images, (P, D), without position embedding; no position sees another image."""

    @abstractmethod
    def embed_next(self, codes_RWK: Tensor, index_RW: Tensor, cache: EmbeddingCache, slots_R: Tensor) -> Tensor:
        """New positions of these rows, (R, W, D), without position embedding."""

    def adopt(self, image_tokenizer: UniTok) -> None:
        """Copy what is the image tokenizer's and not learned here."""

    def forward(
        self,
        codes_PK: Tensor,
        image_lengths_I: Tensor,
        *,
        columns_I: Tensor | None = None,
        sources_PK: Tensor | None = None,
    ) -> Tensor:
        """Embed whole images, one after another in `codes_PK`; (P, D).

        Args:
            columns_I: columns of each image; default: all have those of the default size.
            sources_PK: `source_codes`; default: no image has one.
        """
        check_values(
            image_lengths_I.sum() == codes_PK.shape[0],
            lambda: (
                f"image lengths must add up to the codes, got {int(image_lengths_I.sum())} and {codes_PK.shape[0]} "
                "positions; pass one length per image"
            ),
        )
        embedded_PD = self.embed_images(codes_PK, image_lengths_I)
        if self.places is not None:
            lengths_I = image_lengths_I.to(codes_PK.device)
            if columns_I is None:
                columns_I = torch.full_like(lengths_I, self.default_columns)
            image_P, index_P = index_positions(lengths_I, len(codes_PK))
            embedded_PD = self.places(embedded_PD, index_P, columns_I[image_P])
        if self.source is not None:
            embedded_PD = embedded_PD + self.source(torch.full_like(codes_PK, -1) if sources_PK is None else sources_PK)
        return embedded_PD

    def new_cache(self, num_rows: int, num_positions: int) -> EmbeddingCache:
        """A static cache for images of up to `num_positions`."""
        return None

    def step(
        self,
        codes_RWK: Tensor,
        index_RW: Tensor,
        columns_R: Tensor,
        cache: EmbeddingCache,
        slots_R: Tensor,
        sources_RWK: Tensor | None = None,
    ) -> Tensor:
        """Embed W new positions of each row; (R, W, D). Writes the cache.

        Args:
            index_RW: where in its image each is (int64), -1 where none is; each sees those up to it.
            columns_R: of the images.
            slots_R: which rows of the cache are theirs.
            sources_RWK: the codes that the next position has in the image before, -1 where there are none.
        """
        embedded_RWD = self.embed_next(codes_RWK, index_RW, cache, slots_R)
        if self.places is not None:
            embedded_RWD = self.places(embedded_RWD, index_RW.clamp_min(0), columns_R[:, None])
        return embedded_RWD if self.source is None else embedded_RWD + self.source(sources_RWK)


class ProjectedEmbedding(CodeEmbedding):
    """Frozen, l2-normalised codebook entries side by side, an attention projection within each image, an MLP projector.

    What a position sees of its image (`config.embedding_context`):

        prefix         the codes so far; `step` keeps the projection's keys and values, so that it equals `forward`
        current        its own codes alone in `step`, as in the upstream scripts; `forward` stays as trained (prefix)
        bidirectional  all codes, through the image tokenizer's own frozen projection: quantised features, as LLaVA with
                       UniTok has them; only the projector is learned, and nothing can be drawn
    """

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__(config)
        self.context = config.embedding_context
        self.num_heads = config.embedder_heads
        shape = (config.num_codebooks, config.codebook_size)
        self.register_buffer("codebooks", torch.empty(*shape, config.code_width))  # as the image tokenizer has them
        self.codebooks.copy_(self.scattered_codebooks())
        self.register_buffer("codebook_usage", torch.zeros(shape))  # carried for conversion, not used
        self.projection = AttentionProjection(
            config.code_vector_width,
            config.embedder_width,
            config.embedder_heads,
            causal=self.context != "bidirectional",
        )
        if self.context == "bidirectional":
            keep_as_buffers(self.projection)
        self.projector = Projector(config.embedder_width, config.hidden_size)

    def scattered_codebooks(self) -> Tensor:
        """Entries that differ, for as long as there are none of an image tokenizer; not random, like all buffers."""
        steps = torch.arange(self.codebooks.numel(), dtype=torch.float64, device=self.codebooks.device)
        return (steps * 12.9898).sin().mul(43758.5453).frac().view_as(self.codebooks)  # a shader's hash, in (-1, 1)

    @torch.no_grad()
    def adopt(self, image_tokenizer: UniTok) -> None:
        """Copy the codebooks, and for bidirectional context the projection behind them."""
        codebooks_KCE = image_tokenizer.quantizer.codebooks
        if codebooks_KCE.shape != self.codebooks.shape:
            raise ValueError(
                f"the image tokenizer's codebooks must be {tuple(self.codebooks.shape)}, as the model has them, got "
                f"{tuple(codebooks_KCE.shape)}; use the tokenizer that the config describes"
            )
        self.codebooks.copy_(codebooks_KCE)
        if self.context == "bidirectional":
            self.set_projection(image_tokenizer.post_quant_proj)

    @torch.no_grad()
    def set_projection(self, projection: nn.Module) -> None:
        """Copy the projection that the image tokenizer has behind its codebooks."""
        theirs, mine = projection.state_dict(), self.projection.state_dict()
        heads = getattr(getattr(projection, "attn", None), "num_heads", None)
        same = {name: t.shape for name, t in theirs.items()} == {name: t.shape for name, t in mine.items()}
        if not same or heads != self.num_heads:
            ours = f"{self.num_heads} heads and width {self.projection.proj.out_features}"
            raise ValueError(
                f"the image tokenizer's projection must have {ours}, got {heads} heads and {len(theirs)} weights; set "
                "embedder_width and embedder_heads as the tokenizer has them"
            )
        if self.context == "bidirectional" and projection.attn.causal:
            raise ValueError(
                "the image tokenizer's projection must see the whole image, got projection_attention 'causal'; "
                "use another tokenizer, or another embedding_context"
            )
        self.projection.load_state_dict(theirs)

    def look_up(self, codes_PK: Tensor) -> Tensor:
        offsets_K = torch.arange(self.codebooks.shape[0], device=codes_PK.device) * self.codebooks.shape[1]
        entries_PKE = F.embedding(codes_PK + offsets_K, self.codebooks.flatten(0, 1))
        # ZeRO casts parameters and leaves buffers as they are
        return F.normalize(entries_PKE, dim=-1).flatten(-2).to(self.projection.norm1.weight.dtype)

    def embed_images(self, codes_PK: Tensor, image_lengths_I: Tensor) -> Tensor:
        return self.projector(self._project(self.look_up(codes_PK), image_lengths_I))

    def _project(self, vectors_PZ: Tensor, image_lengths_I: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the lengths are not known: all in one row, under a mask
            return self._project_row(vectors_PZ, image_lengths_I.to(vectors_PZ.device))
        lengths = image_lengths_I.tolist()
        if self.context == "bidirectional" and len(set(lengths)) > 1:  # no padding, which would be seen
            return torch.cat([self.projection(vectors_NZ[None])[0] for vectors_NZ in vectors_PZ.split(lengths)])
        padded_INZ = pad_sequence(vectors_PZ.split(lengths), batch_first=True)  # a causal layer never looks there
        return torch.cat(unpad_sequence(self.projection(padded_INZ), torch.tensor(lengths), batch_first=True))

    def _project_row(self, vectors_PZ: Tensor, image_lengths_I: Tensor) -> Tensor:
        """`_project` in one row of all images, whose mask takes memory quadratic in P."""
        image_P = image_of_positions(image_lengths_I, vectors_PZ.shape[0])
        is_seen_PP = image_P[:, None] == image_P
        is_seen_PP = is_seen_PP if self.context == "bidirectional" else is_seen_PP.tril()
        attend = partial(F.scaled_dot_product_attention, attn_mask=is_seen_PP)
        return self.projection(vectors_PZ[None], attend=attend)[0]

    def new_cache(self, num_rows: int, num_positions: int) -> EmbeddingCache:
        if self.context != "prefix":
            return None
        bias = self.projection.attn.q_bias
        shape = (num_rows, self.num_heads, num_positions + 1, bias.shape[0] // self.num_heads)
        keys = torch.zeros(shape, dtype=bias.dtype, device=self.codebooks.device)  # the bias may be offloaded
        return keys, torch.zeros_like(keys)

    def embed_next(self, codes_RWK: Tensor, index_RW: Tensor, cache: EmbeddingCache, slots_R: Tensor) -> Tensor:
        vectors_RWZ = self.look_up(codes_RWK)
        match self.context:
            case "prefix":
                assert cache is not None, "the context prefix needs a cache"
                return self.projector(self._project_next(vectors_RWZ, index_RW, cache, slots_R))
            case "current":
                projected = self.projection(vectors_RWZ.flatten(0, 1)[:, None])[:, 0]
                return self.projector(projected).unflatten(0, index_RW.shape)
            case _:
                raise ValueError(
                    f"embedding_context must be 'prefix' or 'current' to draw, got {self.context!r}; give complete "
                    "images, or use a model that draws"
                )

    def _project_next(
        self, vectors_RWZ: Tensor, index_RW: Tensor, cache: tuple[Tensor, Tensor], slots_R: Tensor
    ) -> Tensor:
        """New positions with those of their image that the cache holds; their own keys and values are added."""
        slots_R1 = slots_R[:, None]
        keys_SHNd, values_SHNd = cache

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # -1 is the last entry, which nothing reads
            keys_SHNd[slots_R1, :, index_RW] = key.transpose(1, 2).to(keys_SHNd.dtype)
            values_SHNd[slots_R1, :, index_RW] = value.transpose(1, 2).to(values_SHNd.dtype)
            is_seen_RWN = torch.arange(keys_SHNd.shape[2], device=index_RW.device) <= index_RW[..., None].clamp_min(0)
            keys, values = (stored.index_select(0, slots_R).to(query.dtype) for stored in cache)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=is_seen_RWN[:, None])

        return self.projection(vectors_RWZ, attend=attend)


class SummedEmbedding(CodeEmbedding):
    """K learned tables of C vectors; the tables lie below each other in one."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__(config)
        self.shape = (config.num_codebooks, config.codebook_size)
        self.codebooks = nn.Embedding(config.num_codebooks * config.codebook_size, config.hidden_size)

    def embed_images(self, codes_PK: Tensor, *_: Any) -> Tensor:
        num_codebooks, num_codes = self.shape
        offsets_K = torch.arange(num_codebooks, device=codes_PK.device) * num_codes
        return self.codebooks(codes_PK + offsets_K).sum(dim=-2)

    embed_next = embed_images  # positions do not see each other


class PositionEmbedding(nn.Module):
    """Normalised content plus learned vectors of row, column, and the row of the next position in reading order.

    RoPE tells how many tokens lie between two positions, which says nothing about two images whose distance varies with
    the text between them. These vectors give a position the same key in every image, so that "what is here in the first
    image" can be looked up: edits and depth maps copy by it. What is looked up belongs to the position that comes next;
    its column follows from this one's, its row only together with the column, so it has a table of its own.

    The content is normalised first: it comes out of an unbounded projector and grows in training (to two hundred times
    the size of a text token's in one run), where nothing that is added to it would count.
    """

    def __init__(self, side: int, width: int) -> None:
        """For images of up to `side` rows and columns."""
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
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


class SourceEmbedding(nn.Module):
    """A learned vector for each code that the next position has in the image before it.

    An edit repeats most of an image. With the codes to be repeated at hand nothing has to be looked up, and what is
    learned is what changes. The tables begin as zeros, so that a trained model can be given them.
    """

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.num_codes = config.codebook_size
        self.codebooks = nn.Parameter(torch.zeros(config.num_codebooks * config.codebook_size, config.hidden_size))

    def forward(self, codes_PK: Tensor) -> Tensor:
        """(P, D) of codes, zeros where they are -1."""
        offsets_K = torch.arange(codes_PK.shape[-1], device=codes_PK.device) * self.num_codes
        vectors_PD = F.embedding(codes_PK.clamp_min(0) + offsets_K, self.codebooks).sum(dim=-2)
        return vectors_PD * (codes_PK[..., :1] >= 0)


def source_codes(codes_PK: Tensor, image_lengths_I: Tensor, sample_I: Tensor) -> Tensor:
    """The codes that the next position has in the image before, (P, K); -1 where there are none: in the first image of
    a sample, and where the image before ends. `sample_I`: the number of each image's sample."""
    image_P, index_P = index_positions(image_lengths_I, len(codes_PK))
    is_first_I = F.pad(sample_I.diff() != 0, (1, 0), value=True)
    length_before_P = F.pad(image_lengths_I[:-1], (1, 0)).masked_fill(is_first_I, 0)[image_P]
    source_P = torch.arange(len(codes_PK), device=codes_PK.device) - length_before_P + 1
    return codes_PK[source_P.clamp(0, len(codes_PK) - 1)].masked_fill((index_P + 1 >= length_before_P)[:, None], -1)


class Projector(nn.Module):
    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=1e-6)
        self.linear1 = nn.Linear(in_width, out_width)
        self.linear2 = nn.Linear(out_width, out_width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(self.norm(hidden.to(self.norm.weight.dtype)))))


def image_of_positions(image_lengths_I: Tensor, num_positions: int) -> Tensor:
    images_I = torch.arange(image_lengths_I.shape[0], device=image_lengths_I.device)
    return images_I.repeat_interleave(image_lengths_I, output_size=num_positions)


def index_positions(image_lengths_I: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """The image of each position, and where in it that is."""
    image_P = image_of_positions(image_lengths_I, num_positions)
    first_I = image_lengths_I.cumsum(0) - image_lengths_I
    return image_P, torch.arange(num_positions, device=image_lengths_I.device) - first_I[image_P]


def check_values(holds: Tensor, message: Callable[[], str]) -> None:
    """Refuse inputs by their values. In compiled code the check is part of the graph: to read a value would end it."""
    if torch.compiler.is_dynamo_compiling():
        torch._assert_async(holds, "images, codes and image placeholders must match")
    else:
        torch_compilable_check(holds, message)


def keep_as_buffers(module: nn.Module) -> None:
    """Make a module's parameters buffers, as the codebooks are: saved under the same names, and never learned."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            shape = getattr(parameter, "ds_shape", None)  # cut by ZeRO-3 already: values are adopted or loaded later
            part.register_buffer(name, parameter.detach() if shape is None else parameter.new_zeros(shape))
