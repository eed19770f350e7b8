"""A model folder of random weights, complete: what `mllm.pipeline` loads, small enough to build in a test."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlamaConfig

from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok
from train.text_tokenizer import train_text_tokenizer

SENTENCES = (
    "USER: a red circle on a white background ASSISTANT: a blue square left of a green star",
    "What color is the circle? red. Make the circle green. How many stars are there? three",
    "Depth estimation. Describe the picture. <unconditional> a small yellow triangle above a large heart",
)


def random_image(seed: int = 3, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8))


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def turn(role: str, *content: Image.Image | str) -> dict[str, Any]:
    """A message of a chat as transformers has it."""
    items = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return {"role": role, "content": items}


def write_text_tokenizer(path: Path) -> None:
    train_text_tokenizer(SENTENCES, path, vocab_size=330)


def build_tiny_folder(
    folder: Path,
    *,
    layout: str = "fixed",
    context: int = 160,
    width: int = 24,
    image_size: int = 32,
    outlines: bool = False,
    **fields: object,
) -> Path:
    """Write a whole model folder: images of 2 x 2 positions at 32 pixels, three codebooks of 17 codes.

    Args:
        width: of the backbone.
        outlines: whether it writes outlines before it draws.
        fields: more fields of the MLLMConfig.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text_tokenizer(folder / "tokenizer.model")
    text_tokenizer = load_text_tokenizer(folder / "tokenizer.model")
    tokens = {"max_grid_side": 3 if layout == "grid" else None, "num_classes": fields.get("num_classes", 0)}
    vocabulary = extend_tokenizer(text_tokenizer, **tokens, plans=outlines)
    torch.manual_seed(0)
    codes = {"num_codebooks": 3, "codebook_size": 17, "code_width": 4, "image_size": image_size}
    encoder = {"stem_width": 4, "stage_widths": (4, 8), "stage_depths": (1, 1), "width": 12, "depth": 1, "num_heads": 2}
    decoder = {"decoder_depth": 1, "decoder_widths": (8, 4), "decoder_depths": (1, 1)}
    image_tokenizer = UniTok(UniTokConfig(**codes, **encoder, **decoder, projection_heads=2, embed_dim=0)).eval()
    sizes = {"vocab_size": vocabulary.size, "hidden_size": width, "intermediate_size": 40 if width == 24 else 2 * width}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 2, "initializer_range": 0.2}
    text_config = LlamaConfig(**sizes, **heads, max_position_embeddings=context)
    ours = {"embedder_width": 24, "embedder_heads": 3, "image_layout": layout, "image_guidance": 2.0, "head_layers": 1}
    config = MLLMConfig(text_config=text_config, **codes, **{**ours, **fields, **vocabulary.config_fields()})
    model = MLLMForConditionalGeneration(config).eval()
    model.code_embedding.adopt(image_tokenizer)
    model.save_pretrained(folder)
    MLLMProcessor(text_tokenizer, image_tokenizer, config).save_pretrained(folder)
    return folder
