"""The memory needs on the documentation's page are those that the shapes give."""

from __future__ import annotations

from pathlib import Path

import torch

from mllm.released.memory import cache_bytes, caches_table, released_parts, weights_table
from tests.mllm.engine_helpers import build_model

PAGE = Path(__file__).resolve().parents[3] / "docs" / "released_weights.md"


def test_the_page_shows_the_tables_that_the_shapes_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert weights_table() in page
    assert caches_table() in page


def test_parts_have_the_numbers_of_the_released_models() -> None:
    parts = {part.name.split(" (")[0]: part for part in released_parts()}
    assert parts["language model"].num_values == 6_738_415_616
    assert parts["code embedding"].num_values == 28_859_648 + 33_792
    assert parts["head of the codes"].num_values == 741_376_000
    # without pos_embed (1024 zeros of upstream), with the count of usage updates
    assert parts["image tokenizer"].num_values == 820_298_692 + 34_816 - 1024 + 1
    assert round(parts["image tokenizer"].gigabytes("float32"), 2) == 3.28  # as large as the published file
    assert round(sum(part.gigabytes("bfloat16") for part in released_parts()[:3]), 1) == 15.0
    # a quantised head keeps its last layer and its embeddings of codes
    assert parts["head of the codes"].num_quantised == 3 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert parts["code embedding"].num_quantised == parts["image tokenizer"].num_quantised == 0


@torch.no_grad()
def test_caches_are_counted_as_they_are_allocated() -> None:
    for context in ("prefix", "current"):
        model = build_model(embedding_context=context)
        cache = model(torch.full((2, 7), 8), use_cache=True).past_key_values
        embedder = model.code_embedding.new_cache(2, model.config.positions_per_image)
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        tensors += [tensor for tensor in (embedder.keys_RHNd, embedder.values_RHNd) if tensor is not None]
        expected = cache_bytes(model.config, num_rows=2, num_tokens=7, type_name="float32")
        assert sum(tensor.nbytes for tensor in tensors) == expected
