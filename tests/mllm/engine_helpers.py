"""A random model of odd sizes, with prompts, requests and training samples for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, PreTrainedConfig

from mllm.config import MLLMConfig
from mllm.engine.request import GenerationRequest, GenerationResult
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import IGNORED, TokenSequence, plain_sequence

NUM_CODEBOOKS, CODEBOOK_SIZE, VOCABULARY = 3, 11, 61
IDS = {"begin_image_id": 3, "end_image_id": 4, "image_token_id": 5}
GRID_IDS = {"new_line_id": 6, "first_row_size_id": 40, "first_column_size_id": 46, "max_grid_side": 6}
FIRST_TEXT_ID = 7


BACKBONE = {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
BACKBONE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0}
"""Sizes of a config of transformers."""


def build_model(
    *, layout: str = "fixed", text_config: PreTrainedConfig | None = None, **fields: object
) -> MLLMForConditionalGeneration:
    """Two layers, three codebooks, 3 x 3 positions; weights large enough that choices differ."""
    codes = {"num_codebooks": NUM_CODEBOOKS, "codebook_size": CODEBOOK_SIZE, "code_width": 4, "image_size": 48}
    heads = {"embedder_width": 24, "embedder_heads": 3, "head_layers": 2, "image_layout": layout}
    text_config = text_config or LlamaConfig(**BACKBONE, initializer_range=0.3)
    ids = {**IDS, **(GRID_IDS if layout == "grid" else {})}
    torch.manual_seed(5)
    return MLLMForConditionalGeneration(MLLMConfig(text_config=text_config, **codes, **heads, **ids, **fields)).eval()


def build_prompt(
    num_tokens: int, *, seed: int, num_images: int = 0, positions: int = 9, layout: str = "fixed"
) -> TokenSequence:
    """Random text, with whole images in its middle; those of the grid layout have three columns."""
    rng = np.random.default_rng(seed)
    text = rng.integers(FIRST_TEXT_ID, 38, num_tokens).tolist()
    body = [IDS["image_token_id"]] * positions
    if layout == "grid":
        sizes = (GRID_IDS["first_row_size_id"] + positions // 3 - 1, GRID_IDS["first_column_size_id"] + 2)
        body = [*sizes, *([IDS["image_token_id"]] * 3 + [GRID_IDS["new_line_id"]]) * (positions // 3)]
    image = [IDS["begin_image_id"], *body, IDS["end_image_id"]]
    ids = [1, *text[: num_tokens // 2], *image * num_images, *text[num_tokens // 2 :]]
    return plain_sequence(ids, images=random_images(num_images, positions, rng), num_codebooks=NUM_CODEBOOKS)


def random_images(num_images: int, positions: int, rng: np.random.Generator) -> list[np.ndarray]:
    return list(rng.integers(0, CODEBOOK_SIZE, (num_images, positions, NUM_CODEBOOKS)))


def learned_sample(*, seed: int, plan: list[str], positions: int = 9) -> TokenSequence:
    """Parts in the order of `plan`: "text" or "image", in capitals where learned."""
    rng = np.random.default_rng(seed)
    ids, labels, targets = [1], [IGNORED], []
    for kind in plan:
        is_learned = kind.isupper()
        if kind.lower() == "text":
            part = rng.integers(FIRST_TEXT_ID, 38, rng.integers(2, 7)).tolist()
            labels += part if is_learned else [IGNORED] * len(part)
        else:
            part = [IDS["begin_image_id"], *[IDS["image_token_id"]] * positions, IDS["end_image_id"]]
            labels += [part[0] if is_learned else IGNORED, *[IGNORED] * (positions + 1)]
            targets += [is_learned] * positions
        ids += part
    images = random_images(len(targets) // positions, positions, rng)
    sequence = plain_sequence(ids, labels=labels, images=images, num_codebooks=NUM_CODEBOOKS)
    return replace(sequence, code_targets_P=np.array(targets, dtype=bool))


def ask(num_tokens: int = 7, *, seed: int = 0, num_images: int = 0, mode: str = "image", **fields: Any) -> Any:
    """A request whose prompt and, if it is left out, noise follow from the seed; with something to guide away from."""
    prompt, other = build_prompt(num_tokens, seed=seed, num_images=num_images), build_prompt(3, seed=90 + seed)
    return GenerationRequest(**{"prompt": prompt, "unconditional": other, "mode": mode, "seed": seed, **fields})


def outcome(result: GenerationResult) -> tuple:
    """All that a result holds, to be compared."""
    parts = [part if isinstance(part, list) else part.codes_KN.tolist() for part in result.parts]
    return result.token_ids, parts, result.plans, result.seed, result.finish_reason, result.image_refused


@contextmanager
def liking(model: MLLMForConditionalGeneration, biases: dict[int, float]) -> Iterator[MLLMForConditionalGeneration]:
    """Within, the model likes some tokens more."""
    bias_V = torch.zeros(model.config.vocab_size)
    bias_V[list(biases)] = torch.tensor(list(biases.values()))
    hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias_V)
    try:
        yield model
    finally:
        hook.remove()
