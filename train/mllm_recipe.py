"""The fields of a recipe of kind `mllm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.optimizers import OptimizerRecipe


@dataclass(frozen=True, kw_only=True)
class WorldData:
    """The synthetic world as training data: every episode's pictures are encoded once, wordings are always new."""

    episodes: int = 60_000
    """Scenes (each with an edited scene) that pictures are made of."""
    dense_every: int = 4
    """One episode in so many also has its depth and segmentation pictures encoded."""
    jobs: dict[str, float] = field(default_factory=lambda: {"draw": 1.0})
    """Weight of each job in the mixture."""
    prompt_dropout: float = 0.1
    """Share of the drawing and editing samples whose instruction is dropped, so that guidance has its other branch."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MLLMRecipe:
    output: Path
    """Folder for checkpoints, metrics and the finished model."""
    kind: Literal["mllm"] = "mllm"
    image_tokenizer: Path
    """Folder of the image tokenizer."""
    text_tokenizer: Path
    """SentencePiece model of the text tokenizer."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of MLLMConfig, for a model that starts from nothing."""
    start_from: Path | None = None
    """Folder of a model to go on from, instead of `model`."""
    data: WorldData = field(default_factory=WorldData)
    length: int = 512
    """Positions of a packed row."""
    rows: int = 16
    """Packed rows of a batch on one process."""
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    compile_backbone: bool = False
    """Compile the backbone (a minute at the start, a quarter faster afterwards on a CPU)."""
    ema_decay: float = 0.0
    """Of the average of the weights that is shipped; 0 ships the last weights."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers.TrainingArguments: max_steps, lr_scheduler_type, save_steps, bf16, ..."""
