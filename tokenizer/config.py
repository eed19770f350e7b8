"""Every size of the image tokenizer, in one frozen object.

Comes in: numbers. Goes out: a validated `UniTokConfig` with derived sizes as properties. Knows no tensors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class UniTokConfig:
    """Architecture of one tokenizer; the defaults are the released `vitamin_large` network."""

    image_size: int = 256
    """Side of the square training picture, in pixels; any multiple of the patch size works at run time."""

    stem_width: int = 160
    """Channels of the two 3x3 convolutions at the encoder's entrance."""
    stage_widths: tuple[int, ...] = (160, 320)
    """Channels of each convolution stage of the encoder; every stage halves the resolution."""
    stage_depths: tuple[int, ...] = (2, 4)
    """MBConv blocks in each encoder stage."""
    encoder_scope: Literal["picture", "patch"] = "picture"
    """What the codes of a position depend on: the whole picture (the released network), or the pixels of its own patch
    alone. Then equal patches have equal codes, and a change in one place changes no code elsewhere: pictures of flat
    shapes become much easier to predict and to edit for a small language model."""
    shrink: int = 1
    """Side of the squares of pixels that are averaged before the encoder, a power of two; the decoder has a stage more
    for every doubling. Flat drawings can be shown larger than what their codes are made from."""
    conv_expansion: int = 4
    """Inner width of an encoder MBConv block, as a multiple of its output width."""
    width: int = 1024
    """Hidden width of both transformers."""
    depth: int = 31
    """Transformer blocks of the encoder; 0 keeps every code local to the convolutions' view."""
    decoder_depth: int = 31
    """Transformer blocks of the decoder."""
    num_heads: int = 16
    """Attention heads of a transformer block."""
    mlp_ratio: float = 2.0
    """Inner width of a block's GeGLU, as a multiple of `width`."""
    drop_path: float = 0.1
    """Stochastic depth of the last transformer block; grows linearly from 0 at the first."""
    decoder_widths: tuple[int, ...] = (320, 160)
    """Channels of each convolution stage of the decoder; every stage doubles the resolution."""
    decoder_depths: tuple[int, ...] = (4, 2)
    """MBConv blocks in each decoder stage."""
    decoder_expansion: int = 4
    """Inner width of a decoder MBConv block; its full 3x3 convolution dominates the decoder's cost."""
    decoder_padding: Literal["zeros", "replicate"] = "zeros"
    """What the last convolution sees around the picture: nothing, as in the released network, or the border again. With
    nothing, a small decoder draws a gray frame, one pixel wide, on light backgrounds."""

    num_codebooks: int = 8
    """K: codes per image position."""
    codebook_size: int = 4096
    """C: entries per codebook."""
    code_width: int = 8
    """Dimensions of one codebook entry."""
    projection: Literal["attention", "linear"] = "attention"
    """How hidden states become code features and code vectors become hidden states."""
    projection_heads: int = 16
    """Heads of the attention projections."""
    projection_attention: Literal["full", "causal"] = "full"
    """Checkpoints before April 2025 are causal, the released one is full; their weights look the same."""
    vq_beta: float = 0.25
    """Weight of the commitment term inside the quantizer's loss."""
    entropy_temperature: float = 0.01
    """Softmax temperature of the entropy loss."""

    embed_dim: int = 768
    """Width of the joint picture-text embedding; 0 leaves the contrastive parts out."""
    text_vocab_size: int = 49408
    """Entries of the CLIP text vocabulary."""
    text_context: int = 77
    """Longest caption, in text tokens."""
    text_width: int = 768
    """Hidden width of the text tower."""
    text_heads: int = 12
    """Attention heads of the text tower."""
    text_layers: int = 12
    """Blocks of the text tower."""
    text_end_id: int | None = None
    """Token that ends a caption; None means the largest id of each caption, as in CLIP's vocabulary."""

    @classmethod
    def large(cls) -> UniTokConfig:
        """The released network: 820 M parameters, 256 px, 8 x 4096 codes at 16 x 16 positions."""
        return cls()

    @classmethod
    def tiny(cls) -> UniTokConfig:
        """A network small enough to train on two CPU cores: 128 px, 4 x 256 codes at 8 x 8 positions. Recipes of the
        bundled one begin with it."""
        return cls(
            image_size=128,
            stem_width=16,
            stage_widths=(32, 64),
            stage_depths=(2, 2),
            conv_expansion=2,
            width=192,
            depth=2,
            decoder_depth=2,
            num_heads=6,
            drop_path=0.0,
            decoder_widths=(64, 32),
            decoder_depths=(2, 1),
            decoder_expansion=1,
            num_codebooks=4,
            codebook_size=256,
            projection_heads=6,
            embed_dim=0,
        )

    def __post_init__(self) -> None:
        for name in ("stage_widths", "stage_depths", "decoder_widths", "decoder_depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON brings lists
        self._check_sizes()
        self._check_choices()

    def _check_sizes(self) -> None:
        may_be_zero = {"depth", "decoder_depth", "embed_dim"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (value < 0 or (value == 0 and field.name not in may_be_zero)):
                raise ValueError(f"{field.name} must be positive; got {value}; give a size of at least 1")
            if field.type == "tuple[int, ...]" and (not value or min(value) < 1):
                raise ValueError(f"{field.name} needs one positive size per stage; got {value}; give at least one")
        if self.shrink & (self.shrink - 1):
            raise ValueError(f"shrink must be a power of two; got {self.shrink}; use for example 2")
        more = self.shrink.bit_length() - 1
        encoder, decoder = (self.stage_widths, self.stage_depths), (self.decoder_widths, self.decoder_depths)
        if len({*map(len, encoder), *(len(sizes) - more for sizes in decoder)}) > 1:
            raise ValueError(
                f"encoder and decoder need the same number of stages{f', the decoder {more} more' if more else ''}; "
                f"got {encoder} and {decoder} with shrink {self.shrink}; give as many depths as widths on each side"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of the patch size; got {self.image_size} and {self.patch_size}; "
                "change image_size or the number of stages"
            )

    def _check_choices(self) -> None:
        for wide, heads in (("width", "num_heads"), ("text_width", "text_heads")):
            if getattr(self, wide) % getattr(self, heads):
                raise ValueError(
                    f"{wide} must be divisible by {heads}; got {getattr(self, wide)} and {getattr(self, heads)}; "
                    "change one of them"
                )
        if self.projection not in ("attention", "linear"):
            raise ValueError(f"unknown projection; got {self.projection!r}; use 'attention' or 'linear'")
        if self.projection_attention not in ("full", "causal"):
            raise ValueError(f"unknown projection_attention; got {self.projection_attention!r}; use 'full' or 'causal'")
        if self.encoder_scope not in ("picture", "patch"):
            raise ValueError(f"unknown encoder_scope; got {self.encoder_scope!r}; use 'picture' or 'patch'")
        if self.projection == "attention" and max(self.width, self.vector_width) % self.projection_heads:
            raise ValueError(
                f"projection_heads must divide the wider side of the projection; got {self.projection_heads} for "
                f"{max(self.width, self.vector_width)}; change projection_heads"
            )
        if self.decoder_padding not in ("zeros", "replicate"):
            raise ValueError(f"unknown decoder_padding; got {self.decoder_padding!r}; use 'zeros' or 'replicate'")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path is a probability below 1; got {self.drop_path}; use for example 0.1")
        if self.vq_beta < 0 or self.entropy_temperature <= 0:
            raise ValueError(
                "vq_beta must be at least 0 and entropy_temperature above 0; got "
                f"{self.vq_beta} and {self.entropy_temperature}; correct them"
            )

    @property
    def patch_size(self) -> int:
        """Pixels along one side of an image position: stem, every stage and the pool halve what `shrink` leaves."""
        return self.shrink * 2 ** (2 + len(self.stage_widths))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions of a picture of `image_size`."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def positions_per_image(self) -> int:
        """N: image positions of a picture of `image_size`."""
        return self.grid[0] * self.grid[1]

    @property
    def vector_width(self) -> int:
        """Z: width of the concatenated code vectors of one position."""
        return self.num_codebooks * self.code_width

    @property
    def has_text_tower(self) -> bool:
        """Whether pictures and captions share an embedding space."""
        return self.embed_dim > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UniTokConfig:
        """Read what `to_dict` wrote; unknown names are an error, missing ones take their default."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"tokenizer config has unknown fields; got {unknown}; remove them or update the program "
                f"(known: {sorted(known)})"
            )
        return cls(**values)
