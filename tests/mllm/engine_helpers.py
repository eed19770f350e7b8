"""A random model of odd sizes, with prompts, requests and training samples for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, PreTrainedConfig

from mllm.config import MLLMConfig
from mllm.engine.request import GenerationRequest, GenerationResult
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import IGNORED, TokenSequence

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
    ids = np.array([1, *text[: num_tokens // 2], *image * num_images, *text[num_tokens // 2 :]])
    return TokenSequence(
        token_ids_T=ids,
        labels_T=np.full_like(ids, -100),
        codes_PK=rng.integers(0, CODEBOOK_SIZE, (positions * num_images, NUM_CODEBOOKS)),
        image_lengths_I=np.full(num_images, positions),
        code_targets_P=np.zeros(positions * num_images, dtype=bool),
    )


def text_prompt(ids: list[int], *, num_codebooks: int) -> TokenSequence:
    return TokenSequence(
        token_ids_T=np.array(ids),
        labels_T=np.full(len(ids), -100),
        codes_PK=np.zeros((0, num_codebooks), dtype=np.int64),
        image_lengths_I=np.zeros(0, dtype=np.int64),
        code_targets_P=np.zeros(0, dtype=bool),
    )


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
    return TokenSequence(
        token_ids_T=np.array(ids),
        labels_T=np.array(labels),
        codes_PK=rng.integers(0, CODEBOOK_SIZE, (len(targets), NUM_CODEBOOKS)),
        image_lengths_I=np.full(len(targets) // positions, positions),
        code_targets_P=np.array(targets, dtype=bool),
    )


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
