"""Pictures that a model draws in the middle of its training, on one sheet: quality for the eye.

In: the model as it would be saved now and sentences. Out: `step-N.png`. The same seeds every time, so that sheets can
be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm.pipeline import Pipeline
from tokenizer.picture_sheet import side_by_side


class SampleSheet:
    """Called with a pipeline on the first process."""

    names: Sequence[str] = ()

    def __init__(self, prompts: Sequence[str], *, folder: Path) -> None:
        self.prompts, self.folder = prompts, folder

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = [pipeline.draw(prompt, seed=0)[0] for prompt in self.prompts]
        side_by_side(pictures).save(self.folder / f"step-{step}.png")
        return {}
