"""A model of this toolkit as scorer of pictures: its own P("yes"), no second model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.evaluation.fingerprint import model_fingerprint
from mllm.pipeline import Pipeline
from mllm.self_judge import BATCH_SIZE
from tokenizer.image_processor import open_image


@dataclass(frozen=True, slots=True)
class SelfScorer:
    """An `ImageTextScorer`."""

    pipeline: Pipeline
    batch_size: int = BATCH_SIZE

    @classmethod
    def load(cls, folder: str | None, *, device: str | None) -> SelfScorer:
        return cls(Pipeline.load(folder, **({} if device is None else {"device": device})))

    @property
    def description(self) -> Mapping[str, Any]:
        return {
            "name": "self",
            "fingerprint": model_fingerprint(self.pipeline.model),
            "dtype": str(self.pipeline.model.dtype).removeprefix("torch."),
            "question": self.pipeline.question_form,
        }

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        return self.pipeline.judge([open_image(path) for path in pictures], texts)
