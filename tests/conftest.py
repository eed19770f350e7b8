"""What tests of several packages share: no network, and a whole model folder with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mllm.config import MLLMConfig
    from mllm.vocabulary import Vocabulary
    from tokenizer.config import UniTokConfig

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may ask the hub
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process of tests; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SENTENCES = (
    "USER: ASSISTANT: a large red circle is to the left of a small blue square",
    "what color is it?",
    "yes, no.",
)


@pytest.fixture(scope="session")
def random_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as the pipeline loads it, very small, 48 x 48 pixels, with random weights."""
    import torch

    from mllm.model import MLLMForConditionalGeneration
    from mllm.processor import MLLMProcessor
    from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
    from tokenizer.unitok import UniTok
    from train.text_tokenizer import train_text_tokenizer

    folder = tmp_path_factory.mktemp("random_model")
    train_text_tokenizer(SENTENCES * 3, folder / "text" / "tokenizer.model", vocab_size=310)
    text_tokenizer = load_text_tokenizer(folder / "text")
    config = small_model_config(extend_tokenizer(text_tokenizer))
    torch.manual_seed(1)
    MLLMForConditionalGeneration(config).save_pretrained(folder / "model")
    MLLMProcessor(text_tokenizer, UniTok(small_tokenizer_config())).save_pretrained(folder / "model")
    return folder / "model"


def small_tokenizer_config() -> UniTokConfig:
    from tokenizer.config import UniTokConfig

    encoder = {"stem_width": 6, "stage_widths": (10, 14), "stage_depths": (1, 1), "conv_expansion": 2}
    decoder = {"decoder_depth": 1, "decoder_widths": (14, 6), "decoder_depths": (1, 1), "decoder_expansion": 2}
    blocks = {"width": 24, "depth": 1, "num_heads": 3, "drop_path": 0.0}
    codes = {"num_codebooks": 3, "codebook_size": 11, "code_width": 5, "projection_heads": 3, "embed_dim": 0}
    return UniTokConfig(image_size=48, **encoder, **decoder, **blocks, **codes)


def small_model_config(vocabulary: Vocabulary) -> MLLMConfig:
    from transformers import LlamaConfig

    from mllm.config import MLLMConfig

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160}
    ids = {"bos_token_id": vocabulary.bos_token_id, "eos_token_id": vocabulary.eos_token_id}
    text_config = LlamaConfig(vocab_size=vocabulary.size, **sizes, **heads, **ids)
    codes = {"num_codebooks": 3, "codebook_size": 11, "code_width": 5, "image_size": 48}
    ours = {"embedder_width": 24, "embedder_heads": 3, "head_layers": 1}
    return MLLMConfig(text_config=text_config, **codes, **ours, **vocabulary.config_fields())
