"""Models with random weights in the sizes of the benchmarks, prompts for them, and what one position costs.

Speed does not depend on what the weights say, so nothing is downloaded.

Letters: R rows of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaConfig

from mllm.benchmark.machine import Roofline
from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import TokenSequence

BEGIN_IMAGE_ID = 3  # the released model's
VOCABULARY = 1000  # no text is decoded here
FIRST_TEXT_ID = 7
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model and a picture."""

    width: int
    heads: int
    intermediate: int
    layers: int
    head_layers: int = 3
    codebooks: int = 8
    codebook_size: int = 512
    side: int = 8  # image positions along a side
    prompt: int = 16  # tokens
    embedder_width: int | None = None  # None: as the model
    embedder_heads: int | None = None


SIZES = {
    "XXS": Size(width=32, heads=2, intermediate=40, layers=2, head_layers=2, codebooks=3, codebook_size=16, side=3),
    "XS": Size(width=128, heads=4, intermediate=344, layers=4),
    "S": Size(width=256, heads=4, intermediate=688, layers=4),
    "M": Size(width=512, heads=8, intermediate=1376, layers=8, codebook_size=1024),
    "L": Size(width=1024, heads=16, intermediate=2752, layers=8, codebook_size=4096, side=6, prompt=32),
    # the released model's head and code embedding over one layer of its backbone
    "head-7b": Size(
        width=4096,
        heads=32,
        intermediate=11008,
        layers=1,
        codebook_size=4096,
        side=2,
        embedder_width=1024,
        embedder_heads=16,
    ),
    "7b": Size(
        width=4096,
        heads=32,
        intermediate=11008,
        layers=32,
        codebook_size=4096,
        side=16,
        prompt=64,
        embedder_width=1024,
        embedder_heads=16,
    ),
}


def build_random_model(
    size: Size, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> MLLMForConditionalGeneration:
    """A model of this size, the same one every time."""
    text_config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    config = MLLMConfig(
        text_config=text_config,
        num_codebooks=size.codebooks,
        codebook_size=size.codebook_size,
        image_size=16 * size.side,
        embedder_width=size.embedder_width or size.width,
        embedder_heads=size.embedder_heads or size.heads,
        head_layers=size.head_layers,
        prompt_style="unitok",
    )
    torch.manual_seed(SEED)
    with device:
        model = MLLMForConditionalGeneration(config)
    return model.eval().requires_grad_(False).to(dtype)


def random_prompt(num_tokens: int, *, seed: int) -> TokenSequence:
    """Text without meaning."""
    ids = np.random.default_rng(seed).integers(FIRST_TEXT_ID, VOCABULARY, num_tokens)
    return TokenSequence(
        token_ids_T=ids,
        labels_T=np.full_like(ids, -100),
        codes_PK=np.zeros((0, 1), dtype=np.int64),
        image_lengths_I=np.zeros(0, dtype=np.int64),
        code_targets_P=np.zeros(0, dtype=bool),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """What one position of a decoding batch moves and computes, with every weight read once per use."""

    weight_bytes: float
    cache_bytes: float
    flops: float

    def floor(self, roofline: Roofline) -> float:
        return roofline.floor(num_bytes=self.weight_bytes + self.cache_bytes, flops=self.flops)


def num_parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def head_cost(model: MLLMForConditionalGeneration, *, rows: int) -> Cost:
    """The head's K steps. Its embeddings of codes are looked up, so they are not streamed."""
    head, num_codebooks = model.code_head, model.config.num_codebooks
    streamed = num_codebooks * num_parameters(head.layers, head.norm, head.linear_head)
    itemsize = model.lm_head.weight.element_size()
    cache = num_codebooks * 2 * model.config.head_layers * model.config.hidden_size * (num_codebooks + 1) / 2
    return Cost(streamed * itemsize, rows * cache * itemsize, 2.0 * rows * streamed)


def position_cost(model: MLLMForConditionalGeneration, *, rows: int, context: float) -> Cost:
    """Backbone, head and code embedding for one image position, at this many places in the cache."""
    head = head_cost(model, rows=rows)
    embedding = model.code_embedding
    streamed = num_parameters(model.backbone.layers, embedding.projection, embedding.projector)
    itemsize = model.lm_head.weight.element_size()
    text = model.config.text_config
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * context
    return Cost(
        head.weight_bytes + streamed * itemsize,
        head.cache_bytes + rows * cache * itemsize,
        head.flops + 2.0 * rows * streamed,
    )
