"""Pictures that a model draws in the middle of its training, on one sheet: quality for the eye.

In: the model as it would be saved now (train/as_saved.py) and sentences. Out: `step-N.png`. The same seeds every time,
so that sheets can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from tokenizer.picture_sheet import side_by_side
from train.batch_source import Tokenizers


class SampleSheet:
    """Called with a step, on every process; the first one draws and the others wait."""

    def __init__(
        self, model: MLLMForConditionalGeneration, tokenizers: Tokenizers, prompts: Sequence[str], *, folder: Path
    ) -> None:
        self.model, self.tokenizers, self.prompts, self.folder = model, tokenizers, prompts, folder

    def __call__(self, step: int) -> None:
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.draw().save(self.folder / f"step-{step}.png")
        state.wait_for_everyone()

    def draw(self) -> Image.Image:
        """One picture of every sentence."""
        processor = MLLMProcessor(self.tokenizers.text, self.tokenizers.image, self.model.config)
        pipeline = Pipeline(self.model, processor)
        return side_by_side([pipeline.draw(prompt, seed=0)[0] for prompt in self.prompts])
