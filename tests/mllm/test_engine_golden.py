"""Greedy text-to-image decoding against the released system's own output (tests/golden)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mllm.engine.step
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from mllm.sequence import TokenSequence
from tests.mllm.engine_helpers import text_prompt
from tests.mllm.golden_mllm import golden_outputs

NUM_POSITIONS = 10


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return golden_outputs()


def prompt_of(ids: list[int]) -> TokenSequence:
    """A prompt of text ids; its last, begin-of-image, is placed by the decoding loop."""
    assert ids[-1] == 3
    return text_prompt(ids[:-1], num_codebooks=8)


@pytest.mark.parametrize(
    ("case", "guidance", "context"), [("full1", 1.0, "prefix"), ("full4", 4.0, "prefix"), ("last", 5.0, "current")]
)
def test_greedy_drawing_equals_the_released_system(
    monkeypatch: pytest.MonkeyPatch,
    expected: dict[str, torch.Tensor],
    golden_folders: dict[str, Path],
    case: str,
    guidance: float,
    context: str,
) -> None:
    ids = expected[f"{case}.prompt_ids"]
    mask = expected.get(f"{case}.attention_mask", torch.ones_like(ids)).bool()
    prompts = [prompt_of(request[real].tolist()) for request, real in zip(ids, mask, strict=True)]
    image = SamplingConfig(greedy=True, guidance=guidance)
    requests = [
        GenerationRequest(
            prompt=prompts[n],
            unconditional=prompts[2 + n] if guidance > 1 else None,
            mode="image",
            image=image,
            window=1,
        )
        for n in range(2)
    ]
    seen: list[torch.Tensor] = []
    choose = mllm.engine.step.choose
    monkeypatch.setattr(
        mllm.engine.step, "choose", lambda logits, *rest: seen.append(logits.clone()) or choose(logits, *rest)
    )
    model = MLLMForConditionalGeneration.from_pretrained(golden_folders["converted"], embedding_context=context)
    results = Engine(model).generate(requests)
    guessed = Engine(model).generate([replace(request, window=None) for request in requests])
    assert [result.token_ids for result in guessed] == [result.token_ids for result in results]
    for ours, theirs in zip(guessed, results, strict=True):
        assert (ours.images[0].codes_KN == theirs.images[0].codes_KN).all()

    codes_2KN = np.stack([result.images[0].codes_KN[:, :NUM_POSITIONS] for result in results])
    assert (codes_2KN == expected[f"{case}.codes"].numpy()).all()
    logits_2NKC = torch.stack(seen[: NUM_POSITIONS * 8], dim=1).unflatten(1, (NUM_POSITIONS, 8))
    torch.testing.assert_close(logits_2NKC[:, :2], expected[f"{case}.logits_first"], rtol=1e-4, atol=1e-4)
    top_2NK8 = logits_2NKC.topk(8).values
    torch.testing.assert_close(top_2NK8, expected[f"{case}.logits_top"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_2NKC.sum(-1), expected[f"{case}.logits_sum"], rtol=1e-4, atol=0.05)
