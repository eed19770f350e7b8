"""The released system's own numbers: training loss, gradients, embeddings and logits, greedy text-to-image decoding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mllm.engine.step
from mllm.benchmark.upstream_reference import UpstreamDrawing
from mllm.checkpoint import RELEASED
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from mllm.sequence import plain_sequence
from tests.mllm.engine_helpers import outcome
from tests.mllm.golden_mllm import IMAGE_MARK, expand_images, golden_outputs, golden_weights

NUM_POSITIONS, EXPECTED = 10, golden_outputs()


@pytest.fixture(scope="module")
def model(golden_folder: Path) -> MLLMForConditionalGeneration:
    return MLLMForConditionalGeneration.from_pretrained(golden_folder)


def training_batch() -> dict[str, Tensor]:
    """A text-to-image row and an image-to-text row."""
    marked_BT = EXPECTED["train.input_ids"]
    ids_BT = expand_images(marked_BT, marked_BT, fill_value=IMAGE_MARK)
    return {
        "input_ids": ids_BT,
        "attention_mask": ids_BT != 0,
        "labels": expand_images(marked_BT, EXPECTED["train.labels"], fill_value=-100),
        "codes": EXPECTED["train.codes"].transpose(1, 2).flatten(0, 1),
        "image_lengths": torch.tensor([16, 16]),
        "code_targets": torch.arange(32) < 16,
    }


def test_the_key_table_goes_there_and_back_bit_equal(model: MLLMForConditionalGeneration) -> None:
    weights = golden_weights()
    back = RELEASED.to_theirs(model.state_dict(), codebook_size=4096)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_loss_and_gradients(model: MLLMForConditionalGeneration) -> None:
    model.train()
    output = model(**training_batch())
    torch.testing.assert_close(output.loss, EXPECTED["train.loss"], atol=1e-5, rtol=0)
    model.zero_grad()
    output.loss.backward()
    named = {name: value.grad for name, value in model.named_parameters()}
    gradients = RELEASED.to_theirs(named, codebook_size=4096)
    cases = [name for name in EXPECTED if name.startswith("train.gradnorm.")]
    assert len(cases) == 8
    for case in cases:
        norm = gradients[case.removeprefix("train.gradnorm.")].norm()
        torch.testing.assert_close(norm, EXPECTED[case], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_embeddings_and_text_logits(model: MLLMForConditionalGeneration) -> None:
    batch = training_batch()
    embedded_PD = model.code_embedding(batch["codes"], batch["image_lengths"])
    torch.testing.assert_close(embedded_PD.view(2, 16, 256), EXPECTED["train.embedded_images"], atol=1e-4, rtol=1e-4)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "codes", "image_lengths")}
    logits_BTV, is_real_BT = model(**inputs).logits, batch["attention_mask"]
    torch.testing.assert_close(logits_BTV[is_real_BT], EXPECTED["train.text_logits"][is_real_BT], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_understanding(model: MLLMForConditionalGeneration) -> None:
    ids_BT = expand_images(EXPECTED["und.input_ids"], EXPECTED["und.input_ids"], fill_value=IMAGE_MARK)
    codes_PK, lengths_I = EXPECTED["und.codes"][0].T, torch.tensor([16])
    embedded_BTD = model.embed(ids_BT, codes_PK, lengths_I)
    torch.testing.assert_close(embedded_BTD, EXPECTED["und.inputs_embeds"], atol=1e-4, rtol=1e-4)
    logits_BTV = model(ids_BT, codes=codes_PK, image_lengths=lengths_I).logits
    torch.testing.assert_close(logits_BTV, EXPECTED["und.logits"], atol=1e-4, rtol=1e-4)


def prompts_of(case: str) -> list[list[int]]:
    """Conditional ones, then unconditional ones if there are any."""
    ids = EXPECTED[f"{case}.prompt_ids"]
    mask = EXPECTED.get(f"{case}.attention_mask", torch.ones_like(ids)).bool()
    return [row[real].tolist() for row, real in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    ("case", "guidance", "context"), [("full1", 1.0, "prefix"), ("full4", 4.0, "prefix"), ("last", 5.0, "current")]
)
def test_greedy_drawing_equals_the_released_system(
    monkeypatch: pytest.MonkeyPatch,
    golden_folders: dict[str, Path],
    case: str,
    guidance: float,
    context: str,
) -> None:
    rows = prompts_of(case)
    assert all(row[-1] == 3 for row in rows), "begin-of-image, which the decoding loop places"
    prompts = [plain_sequence(row[:-1], num_codebooks=8) for row in rows]
    image = SamplingConfig(greedy=True, guidance=guidance)
    requests = [
        GenerationRequest(prompt=prompt, unconditional=other, mode="image", image=image, window=1)
        for prompt, other in zip(prompts[:2], prompts[2:] or [None, None], strict=True)
    ]
    seen: list[Tensor] = []
    choose = mllm.engine.step.choose
    monkeypatch.setattr(
        mllm.engine.step, "choose", lambda logits, *rest: seen.append(logits.clone()) or choose(logits, *rest)
    )
    model = MLLMForConditionalGeneration.from_pretrained(golden_folders["converted"], embedding_context=context)
    results = Engine(model).generate(requests)
    guessed = Engine(model).generate([replace(request, window=None) for request in requests])
    assert [outcome(result) for result in guessed] == [outcome(result) for result in results]

    codes_2KN = np.stack([result.images[0].codes_KN[:, :NUM_POSITIONS] for result in results])
    assert (codes_2KN == EXPECTED[f"{case}.codes"].numpy()).all()
    logits_2NKC = torch.stack(seen[: NUM_POSITIONS * 8], dim=1).unflatten(1, (NUM_POSITIONS, 8))
    torch.testing.assert_close(logits_2NKC[:, :2], EXPECTED[f"{case}.logits_first"], rtol=1e-4, atol=1e-4)
    top_2NK8 = logits_2NKC.topk(8).values
    torch.testing.assert_close(top_2NK8, EXPECTED[f"{case}.logits_top"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_2NKC.sum(-1), EXPECTED[f"{case}.logits_sum"], rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("cached_head", [False, True])
def test_the_reference_of_benchmarks_gives_the_codes_of_the_released_system(
    golden_folders: dict[str, Path], cached_head: bool
) -> None:
    """That our decoding equals the reference, benchmarks check themselves before they measure (test_measuring.py)."""
    model = MLLMForConditionalGeneration.from_pretrained(golden_folders["converted"]).eval()
    drawing = UpstreamDrawing(model, cached_head=cached_head)
    for case, guidance, sees_prefix in (("full1", 1, True), ("full4", 4, True), ("last", 5, False)):
        prompts, settings = prompts_of(case), SamplingConfig(greedy=True, guidance=guidance)
        codes = drawing.draw(prompts[:2], prompts[2:], num_positions=10, settings=settings, sees_prefix=sees_prefix)
        assert torch.equal(codes, EXPECTED[f"{case}.codes"].long()), case
