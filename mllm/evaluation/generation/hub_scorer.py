"""Any image-text model of transformers as scorer of pictures: P("Yes") as the first word of its answer to VQAScore's
question (Lin et al. 2024). Knows no model by name; the chat template of the model's processor frames the question.

Letters: V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.loading.device import choose_device
from mllm.self_judge import GENAI_QUESTION
from tokenizer.image_processor import open_image, to_rgb

ANSWER = "Yes"


@dataclass(frozen=True, slots=True)
class HubScorer:
    """An `ImageTextScorer`."""

    name: str
    model: nn.Module
    processor: Any
    batch_size: int = 1  # models differ in how they pad pictures, so each pair goes alone

    @classmethod
    def load(cls, name: str, *, device: str | None) -> HubScorer:
        """A model from a folder or the hub."""
        place = choose_device(device)
        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} is no image-text model that transformers can load: found {type(error).__name__}; give a "
                "folder or a hub id of one, as hf:NAME"
            ) from error
        return cls(name, model.eval().to(place), processor)

    @property
    def description(self) -> Mapping[str, Any]:
        return {
            "name": f"hf:{self.name}",
            "transformers": transformers.__version__,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "question": GENAI_QUESTION,
            "answer": ANSWER,
        }

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        return [self.score(path, text) for path, text in zip(pictures, texts, strict=True)]

    @torch.inference_mode()
    def score(self, picture: Path, text: str) -> float:
        """P("Yes") of one pair; of a word in pieces, that of its first piece."""
        image, question = to_rgb(open_image(picture)), GENAI_QUESTION.format(text=text)
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        logits_V = self.model(**inputs).logits[0, -1].float()
        first_id = self.processor.tokenizer.encode(ANSWER, add_special_tokens=False)[0]
        return logits_V.softmax(dim=-1)[first_id].item()
