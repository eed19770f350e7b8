"""A model folder of random weights, complete: what `mllm.pipeline` loads, small enough to build in a test."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import LlamaConfig

from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok

SENTENCES = (
    "USER: a red circle on a white background ASSISTANT: a blue square left of a green star",
    "What color is the circle? red. Make the circle green. How many stars are there? three",
    "Depth estimation. Describe the picture. <unconditional> a small yellow triangle above a large heart",
)


def random_picture(seed: int = 3, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8))


def train_text_tokenizer(path: Path, *, vocab_size: int = 330) -> None:
    """A SentencePiece model with byte fallback, so that no text is unencodable."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def build_tiny_folder(
    folder: Path,
    *,
    layout: str = "fixed",
    context: int = 160,
    width: int = 24,
    outlines: bool = False,
    **fields: object,
) -> Path:
    """Write a whole model folder: 32 x 32 pictures of 2 x 2 positions, three codebooks of 17 codes.

    Args:
        width: of the backbone.
        outlines: whether it writes outlines before it draws.
        fields: more fields of the MLLMConfig.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train_text_tokenizer(folder / "tokenizer.model")
    text_tokenizer = load_text_tokenizer(folder / "tokenizer.model")
    vocabulary = extend_tokenizer(
        text_tokenizer,
        max_grid_side=3 if layout == "grid" else None,
        num_classes=fields.get("num_classes", 0),
        plans=outlines,
    )
    torch.manual_seed(0)
    image_tokenizer = UniTok(
        UniTokConfig(
            image_size=32,
            stem_width=4,
            stage_widths=(4, 8),
            stage_depths=(1, 1),
            width=12,
            depth=1,
            decoder_depth=1,
            num_heads=2,
            decoder_widths=(8, 4),
            decoder_depths=(1, 1),
            num_codebooks=3,
            codebook_size=17,
            code_width=4,
            projection_heads=2,
            embed_dim=0,
        )
    ).eval()
    text_config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=width,
        intermediate_size=40 if width == 24 else 2 * width,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=context,
        initializer_range=0.2,
    )
    config = MLLMConfig(
        text_config=text_config,
        num_codebooks=3,
        codebook_size=17,
        code_width=4,
        image_size=32,
        head_layers=1,
        **{
            "embedder_width": 24,
            "embedder_heads": 3,
            "image_layout": layout,
            "image_guidance": 2.0,
            **fields,
            **vocabulary.config_fields(),
        },
    )
    model = MLLMForConditionalGeneration(config).eval()
    model.code_embedding.adopt(image_tokenizer)
    model.save_pretrained(folder)
    MLLMProcessor(text_tokenizer, image_tokenizer, config).save_pretrained(folder)
    return folder
