"""Sizes and options of the image tokenizer: a frozen, validated dataclass with derived sizes as properties."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

AttentionKind = Literal["full", "causal"]
Padding = Literal["zeros", "replicate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UniTokConfig:
    """Architecture of one tokenizer; the defaults are the released `vitamin_large` network."""

    image_size: int = 256  # side of training images in pixels; other multiples of the patch size work, too
    stem_width: int = 160  # channels of the encoder's first two 3x3 convolutions
    stage_widths: tuple[int, ...] = (160, 320)  # channels of each stage of the encoder, which halves the resolution
    stage_depths: tuple[int, ...] = (2, 4)  # MBConv blocks in each encoder stage
    encoder_scope: Literal["image", "patch"] = "image"
    """What the codes of a position depend on: the whole image (as released), or only the pixels of its own patch. With
    "patch", equal patches have equal codes and a local change changes no other code, which makes images of flat shapes
    much easier to predict and to edit for a small language model."""
    shrink: int = 1
    """Factor by which images are average-pooled before the encoder, a power of two; the decoder has one more stage per
    doubling. Flat drawings can be shown at a higher resolution than their codes are computed from."""
    conv_expansion: int = 4  # inner width of an encoder MBConv block, as a multiple of its output width
    width: int = 1024  # hidden width of both transformers
    depth: int = 31  # Transformer blocks of the encoder; 0 limits each code to the convolutions' receptive field
    decoder_depth: int = 31  # Transformer blocks of the decoder
    num_heads: int = 16  # attention heads of a transformer block
    mlp_ratio: float = 2.0  # inner width of a block's GeGLU, as a multiple of `width`
    drop_path: float = 0.1  # stochastic depth of the last transformer block; grows linearly from 0 at the first
    decoder_widths: tuple[int, ...] = (320, 160)  # channels of each stage of the decoder, which doubles the resolution
    decoder_depths: tuple[int, ...] = (4, 2)  # MBConv blocks in each decoder stage
    decoder_expansion: int = 4  # inner width of a decoder MBConv block, which dominates the decoder's cost
    decoder_padding: Padding = "zeros"
    """Padding of the last convolution. With "zeros" (as released), small decoders draw a gray frame, one pixel wide, on
    light backgrounds."""

    num_codebooks: int = 8  # K: codes per image position
    codebook_size: int = 4096  # C: entries per codebook
    code_width: int = 8  # dimensions of one codebook entry
    projection: Literal["attention", "linear"] = "attention"  # between hidden states and code vectors, both ways
    projection_heads: int = 16  # heads of the attention projections
    projection_attention: AttentionKind = "full"
    """UniTok checkpoints before April 2025 are causal, the released one is full; their weights have the same names."""
    vq_beta: float = 0.25  # weight of the commitment term in the quantizer's loss
    entropy_temperature: float = 0.01  # softmax temperature of the entropy loss

    embed_dim: int = 768  # width of the joint image-text embedding; 0 leaves the text tower out
    text_vocab_size: int = 49408  # entries of the CLIP text vocabulary
    text_context: int = 77  # longest caption, in text tokens
    text_width: int = 768  # hidden width of the text tower
    text_heads: int = 12  # attention heads of the text tower
    text_layers: int = 12  # blocks of the text tower
    text_end_id: int | None = None  # ends a caption; None: the largest id of each caption, as in CLIP's vocabulary

    @classmethod
    def large(cls) -> UniTokConfig:
        """The released network: 820 M parameters, 256 px, 8 x 4096 codes at 16 x 16 positions."""
        return cls()

    @classmethod
    def tiny(cls) -> UniTokConfig:
        """A network that trains on two CPU cores: 128 px, 4 x 256 codes at 8 x 8 positions."""
        return cls(
            image_size=128, num_codebooks=4, codebook_size=256, projection_heads=6, embed_dim=0,
            width=192, depth=2, decoder_depth=2, num_heads=6, drop_path=0.0,
            stem_width=16, stage_widths=(32, 64), stage_depths=(2, 2), conv_expansion=2,
            decoder_widths=(64, 32), decoder_depths=(2, 1), decoder_expansion=1,
        )  # fmt: skip

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, least = getattr(self, name), 0 if name in ("depth", "decoder_depth", "embed_dim") else 1
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {value!r}; choose one of them")
            if kind is int and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}; choose a larger size")
            if get_origin(kind) is tuple:
                object.__setattr__(self, name, tuple(value))  # JSON has lists
                if not value or min(value) < 1:
                    raise ValueError(f"{name} must be one size >= 1 per stage, got {value}; give at least one")
        if self.shrink & (self.shrink - 1):
            raise ValueError(f"shrink must be a power of two, got {self.shrink}; use for example 2")
        more = self.shrink.bit_length() - 1
        encoder, decoder = (self.stage_widths, self.stage_depths), (self.decoder_widths, self.decoder_depths)
        if len({*map(len, encoder), *(len(sizes) - more for sizes in decoder)}) > 1:
            raise ValueError(
                f"the decoder must have {f'{more} more stages than' if more else 'as many stages as'} the encoder, got "
                f"widths and depths {encoder} and {decoder}; give as many depths as widths on each side"
            )
        for name, divisor in (("image_size", "patch_size"), ("width", "num_heads"), ("text_width", "text_heads")):
            require_divisible(name, getattr(self, name), divisor, getattr(self, divisor))
        if self.projection == "attention":
            widest = max(self.width, self.vector_width)
            require_divisible("the larger of width and vector_width", widest, "projection_heads", self.projection_heads)
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}; use for example 0.1")
        if self.vq_beta < 0:
            raise ValueError(f"vq_beta must be >= 0, got {self.vq_beta}; use for example 0.25")
        if self.entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature must be > 0, got {self.entropy_temperature}; use for example 0.01")

    @property
    def patch_size(self) -> int:
        """Side of the pixels of one position: stem, stages and pool each halve what `shrink` leaves."""
        return self.shrink * 2 ** (2 + len(self.stage_widths))

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def positions_per_image(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def vector_width(self) -> int:
        """Z: width of the concatenated code vectors of one position."""
        return self.num_codebooks * self.code_width

    @property
    def has_text_tower(self) -> bool:
        return self.embed_dim > 0

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UniTokConfig:
        """Read what `to_dict` wrote; unknown names are an error, missing ones take their default."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"tokenizer config fields must be in {sorted(known)}, got {unknown}")
        if values.get("encoder_scope") == "picture":  # its name in older configs
            values = {**values, "encoder_scope": "image"}
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> UniTokConfig:
        """Read a JSON file of what `to_dict` wrote."""
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} must be an object of config fields, got {type(values).__name__}; correct it")
        try:
            return cls.from_dict(values)
        except TypeError as error:
            raise ValueError(f"{path} must have fields of the right types, got {error}; correct it") from error


def require_divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name} must be divisible by {divisor_name}, got {value} and {divisor}; change one of them")


def read_json(path: Path) -> Any:
    """The value of a JSON file; one that is damaged or nested too deeply is refused in a sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not valid JSON ({reason}); correct the file") from error
