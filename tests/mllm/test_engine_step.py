"""Steps of static sizes: no graph break, no wait for the device, and what the ordinary step gives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from transformers import GPT2Config

import mllm.engine.step
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.engine.step import COUNTS, StaticStep, StepInputs, power_of_two, round_up
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from tests.mllm.engine_helpers import ask, build_model, liking, outcome

PLAN_ID = 39


def some_requests() -> list[GenerationRequest]:
    """Guidance, filters, settings per codebook, and an image that has no room."""
    image = SamplingConfig(guidance=2.0, top_k=7, top_p=0.9, temperature=(0.5, 1.0, 2.0))
    return [
        ask(6, seed=1, mode="image", image=image),
        ask(9, seed=2, mode="image", image=SamplingConfig(temperature=0.2)),
        ask(5, seed=3, mode="interleaved", text=SamplingConfig(top_k=9), max_new_tokens=10),
    ]


@pytest.mark.parametrize("head_type", ["mlp", "depth_transformer"])
@torch.inference_mode()
def test_a_step_has_no_graph_break_and_waits_for_nothing(head_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(head_type=head_type, layout="grid")
    seen: list[StepInputs] = []
    monkeypatch.setattr(StaticStep, "compile", lambda self: lambda inputs: seen.append(inputs) or self.step(inputs))
    engine = Engine(model, compile=True)
    engine.generate(some_requests())
    inputs = next(each for each in seen if each.codes and each.codes.guidance and each.text and each.text.asks_wanted)
    step = engine.static.step
    expected = step(inputs)
    compiled = torch.compile(step.__call__, fullgraph=True, dynamic=False, backend="eager")  # traced, not translated
    torch.testing.assert_close(compiled(inputs)._asdict(), expected._asdict())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = step(pytree.tree_map_only(Tensor, mode.from_tensor, inputs))
    assert [output.shape for output in fake] == [output.shape for output in expected]


@pytest.mark.slow
@pytest.mark.parametrize("head_type", ["mlp", "depth_transformer"])
def test_compiled_steps_give_what_ordinary_ones_give(head_type: str) -> None:
    model = build_model(head_type=head_type, layout="grid", begin_plan_id=PLAN_ID)
    with liking(model, {PLAN_ID: 5.0}):
        expected = [outcome(result) for result in Engine(model).generate(some_requests())]
        engine = Engine(model, compile=True)
        assert [outcome(result) for result in engine.generate(some_requests())] == expected
    assert engine.static.prepared


def test_every_size_is_compiled_however_few_versions_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = build_model(), torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiled, backend="eager"))
    engine, request = Engine(model, compile=True), ask(6, mode="text", max_new_tokens=6, text=SamplingConfig(top_k=9))
    expected = outcome(Engine(model).generate([request])[0])
    with torch._dynamo.config.patch(recompile_limit=1):
        for window in (1, 2, 5):
            guessed = replace(request, window=window, expected_text=tuple(expected[0]))
            assert outcome(engine.generate([guessed])[0]) == expected
    assert len(engine.static.prepared) > 2


def test_few_sizes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StaticStep, "compile", lambda self: self.step)
    monkeypatch.setattr(mllm.engine.step, "MOST_PREPARED", 2)
    model = build_model()
    engine = Engine(model, compile=True)
    results = [outcome(result) for result in engine.generate(some_requests())]
    assert results == [outcome(result) for result in Engine(model).generate(some_requests())]
    assert len(engine.static.prepared) == 2


def test_sizes_are_few() -> None:
    assert [round_up(count) for count in (1, 2, 5, 80, 81, 200)] == [1, 4, 16, 80, 128, 256]
    assert [power_of_two(count, least=2) for count in (1, 2, 3, 64, 65)] == [2, 2, 4, 64, 128]
    assert all(round_up(count) >= count for count in range(1, 2 * COUNTS[-1]))


def test_backbones_of_other_kinds_are_refused() -> None:
    config = build_model().config
    config.text_config = GPT2Config(n_embd=24, n_head=4, n_layer=2, vocab_size=61)
    model = MLLMForConditionalGeneration(config)
    with pytest.raises(ValueError, match="compile"):
        Engine(model, compile=True)
