"""The fields of a recipe of kind `image_tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TokenizerLossWeights:
    l1: float = 0.2
    """Mean absolute error of the reconstruction."""
    l2: float = 1.0
    """Mean squared error of the reconstruction."""
    detail: float = 0.0
    """How much more a pixel counts where the picture is busy (flat drawings profit, photographs need none)."""
    vq: float = 1.0
    """Commitment and codebook loss."""
    entropy: float = 0.0
    """Entropy loss: sure about each feature, even over the codebook."""
    contrastive: float = 0.0
    """Pictures against their captions; 0 leaves the text tower out of training. Needs `text_tokenizer`."""


@dataclass(frozen=True, kw_only=True)
class CodebookSchedule:
    initialise_at: int = 300
    """Steps without quantization; then the codebooks are placed on the encoder's features (k-means)."""
    every: int = 10
    """Steps between two revivals of dead codebook entries."""
    threshold: float = 0.05
    """An entry is dead when its usage is below this share of the mean."""
    until: float = 0.8
    """Share of the training after which no entry is revived, so that the decoder can settle."""


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    output: Path
    """Folder for checkpoints, metrics and the finished tokenizer."""
    kind: Literal["image_tokenizer"] = "image_tokenizer"
    preset: Literal["tiny", "large"] = "tiny"
    """The UniTokConfig to start from."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of UniTokConfig that differ from the preset."""
    text_tokenizer: Path | None = None
    """SentencePiece model that turns captions into ids for the text tower."""
    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    final_learning_rate: float = 0.02
    """Share of the learning rate that the cosine ends at."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    """Of the average of the weights that is shipped; 0 ships the last weights."""
    loss: TokenizerLossWeights = field(default_factory=TokenizerLossWeights)
    codebooks: CodebookSchedule = field(default_factory=CodebookSchedule)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of the matrix products (autocast); the quantizer is always float32. "auto": what is fastest on this machine."""
    num_workers: int = 1
    """Processes that render pictures."""
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    sheet_every: int = 500
    """Steps between two sheets of reconstructions, written as PNG."""
    keep_checkpoints: int = 2
