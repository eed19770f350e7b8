"""The fields of a recipe that trains a class-conditional model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ClassData:
    """Pictures by class as training data (train/data/class_batches.py)."""

    folders: list[Path] = field(default_factory=list)
    """Codes of the same pictures (see train/data/class_codes.py), for example at two enlargements; each time one folder
    and one view is picked. Empty: the synthetic world's classes, encoded into the output folder."""
    world_pictures: int = 0
    """How many pictures of the world's classes, where `folders` is empty."""
    class_dropout: float = 0.0
    """Share of the samples whose class is dropped. 0 is enough to draw without guidance; 0.1 allows guidance."""
    seed: int = 0

    @property
    def is_given(self) -> bool:
        """Whether the recipe trains on pictures by class at all."""
        return bool(self.folders) or self.world_pictures > 0

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout is a share: found {self.class_dropout}; use 0 or more, below 1")
