"""The reference is upstream's algorithm (the released system's own output says so), and our decoding equals it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from mllm.benchmark.upstream_reference import UpstreamDrawing, UpstreamTokenizer
from mllm.config import MLLMConfig
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from tests.conftest import small_tokenizer_config
from tests.mllm.engine_helpers import IDS, build_prompt
from tests.mllm.golden_mllm import golden_outputs
from tokenizer.unitok import UniTok

NUM_POSITIONS = 9


@pytest.mark.parametrize("cached_head", [False, True])
def test_the_reference_gives_the_codes_of_the_released_system(
    golden_folders: dict[str, Path], cached_head: bool
) -> None:
    model = MLLMForConditionalGeneration.from_pretrained(golden_folders["converted"]).eval()
    drawing, expected = UpstreamDrawing(model, cached_head=cached_head), golden_outputs()
    for case, guidance, sees_prefix in (("full1", 1, True), ("full4", 4, True), ("last", 5, False)):
        ids = expected[f"{case}.prompt_ids"]
        mask = expected.get(f"{case}.attention_mask", torch.ones_like(ids)).bool()
        prompts = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        settings = SamplingConfig(greedy=True, guidance=guidance)
        codes = drawing.draw(prompts[:2], prompts[2:], num_positions=10, settings=settings, sees_prefix=sees_prefix)
        assert torch.equal(codes, expected[f"{case}.codes"].long()), case


def random_model(seed: int, context: str) -> MLLMForConditionalGeneration:
    """Sizes of its own for every seed; key/value heads shared, the head's sizes its own or the backbone's."""
    rng = np.random.default_rng(seed)
    heads = int(rng.choice([2, 4]))
    text = {"hidden_size": heads * int(rng.choice([6, 10])), "intermediate_size": int(rng.integers(20, 50))}
    text |= {"num_hidden_layers": int(rng.integers(1, 4)), "num_attention_heads": heads, "initializer_range": 0.3}
    text |= {"num_key_value_heads": heads // int(rng.choice([1, 2])), "max_position_embeddings": 96, "vocab_size": 61}
    codes = {"num_codebooks": int(rng.integers(1, 5)), "codebook_size": int(rng.integers(5, 40))}
    codes |= {"code_width": int(rng.integers(2, 6)), "image_size": 48, "embedder_width": 24, "embedder_heads": 3}
    head = {"head_layers": int(rng.integers(1, 4)), "head_num_heads": heads if rng.random() < 0.5 else None}
    head |= {"head_intermediate_size": 31 if rng.random() < 0.5 else None, "embedding_context": context}
    torch.manual_seed(seed)
    return MLLMForConditionalGeneration(MLLMConfig(text_config=LlamaConfig(**text), **codes, **head, **IDS)).eval()


GREEDY = SamplingConfig(greedy=True, guidance=3.0)
SETTINGS = (
    GREEDY,
    SamplingConfig(guidance=2.5),
    SamplingConfig(temperature=1.3),
    SamplingConfig(temperature=0.9, top_k=4, top_p=0.8, guidance=1.5),
)


@pytest.mark.parametrize("context", ["current", "prefix"])
@pytest.mark.parametrize("seed", range(3))
def test_our_codes_equal_the_reference(seed: int, context: str) -> None:
    model = random_model(seed, context)
    reference = UpstreamDrawing(model)
    conditional, unconditional = [build_prompt(length, seed=length) for length in (9, 4, 6)], build_prompt(2, seed=0)
    ids = [[*prompt.token_ids_T.tolist(), IDS["begin_image_id"]] for prompt in (*conditional, *[unconditional] * 3)]

    def upstream(settings: SamplingConfig, *, sees_prefix: bool) -> np.ndarray:
        noise = {"seeds": [0, 1, 2], "sees_prefix": sees_prefix}
        return reference.draw(ids[:3], ids[3:], num_positions=NUM_POSITIONS, settings=settings, **noise).numpy()

    for settings in SETTINGS:
        same = {"unconditional": unconditional, "mode": "image", "image": settings}
        rows = [GenerationRequest(prompt=prompt, seed=n, **same) for n, prompt in enumerate(conditional)]
        ours_NKP = np.stack([result.images[0].codes_KN for result in Engine(model).generate(rows)])
        assert np.array_equal(ours_NKP, upstream(settings, sees_prefix=context == "prefix")), settings
        if settings is GREEDY:  # the contexts differ, or all this would say nothing about them
            assert not np.array_equal(ours_NKP, upstream(settings, sees_prefix=context != "prefix"))


def test_our_tokenizer_equals_the_reference_and_keeps_its_own_modules() -> None:
    torch.manual_seed(0)
    ours = UniTok(small_tokenizer_config()).eval()
    reference = UpstreamTokenizer(ours)
    pixels_B3HW = torch.rand(3, 3, 48, 32) * 2 - 1
    codes_BKN = ours.encode(pixels_B3HW)
    assert torch.equal(reference.encode(pixels_B3HW), codes_BKN)
    pixels = ours.decode(codes_BKN, grid=(3, 2))
    torch.testing.assert_close(reference.decode(codes_BKN, grid=(3, 2)), pixels, atol=1e-5, rtol=1e-5)
    assert reference.network.decoder.last_weight is ours.decoder.last_weight
    assert type(ours.decoder.entry) is not type(reference.network.decoder.entry)
