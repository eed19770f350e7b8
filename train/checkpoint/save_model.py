"""A model folder as `mllm.Pipeline` loads it: model, text tokenizer, image tokenizer, processor."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mllm.model import MLLMForConditionalGeneration
from tokenizer.model import UniTok


def save_model_folder(
    folder: Path,
    *,
    model: MLLMForConditionalGeneration,
    text_tokenizer: PreTrainedTokenizerBase,
    image_tokenizer: UniTok,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write everything that inference needs.

    Args:
        state_dict: the weights where the model itself holds parts of them only.
    """
    from mllm.processor import MLLMProcessor

    model.save_pretrained(folder, state_dict=state_dict)
    MLLMProcessor(tokenizer=text_tokenizer, image_tokenizer=image_tokenizer).save_pretrained(folder)
