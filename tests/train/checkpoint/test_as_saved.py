"""The model as it will be saved: within the context the average, a loaded model's attention, nothing compiled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from train.checkpoints import WeightAverage, as_saved
from train.hardware import SPELLED_OUT, speed_up
from train.recipe import BenchmarkInLoop, MLLMRecipe, Validation, WorldInLoop
from train.trainer import check_sharding

CONFIG = LlamaConfig(
    hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=5
)


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_average_is_lent_and_the_own_weights_come_back(fails: bool) -> None:
    backbone = LlamaModel(CONFIG)
    speed_up(backbone, compiles=True)
    compiled = backbone._compiled_call_impl
    average = WeightAverage(backbone, decay=0.5)
    first = weights_of(backbone)
    average.update()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(2.0)
    average.update()
    own = weights_of(backbone)
    try:
        with as_saved(backbone, backbone, average):
            assert backbone.config._attn_implementation == "sdpa" and backbone._compiled_call_impl is None
            torch.testing.assert_close(weights_of(backbone), [tensor + 1.0 for tensor in first])
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert all(map(torch.equal, weights_of(backbone), own))
    assert backbone.config._attn_implementation == SPELLED_OUT
    assert compiled is not None and backbone._compiled_call_impl is compiled


def test_small_steps_of_bfloat16_weights_are_averaged(tmp_path: Path) -> None:
    """In bfloat16 an average of decay 0.999 would never leave the first weights."""
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    average = WeightAverage(model, decay=0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.update()
        model.weight.fill_(1.5)
    for _ in range(100):
        average.update()
    again = WeightAverage(model, decay=0.999)
    average.save(tmp_path)
    again.load(tmp_path)
    expected = torch.full((2, 3), 1.5 - 0.5 * 0.999**100)
    for kept in (average, again):
        torch.testing.assert_close(kept.average.module.tensors[0].data, expected)
        with kept.lent_to(model):
            assert model.weight.dtype == torch.bfloat16 and torch.equal(model.weight, expected.to(torch.bfloat16))
        assert (model.weight == 1.5).all()


def test_without_an_average_the_weights_are_the_models_own() -> None:
    backbone = LlamaModel(CONFIG)
    own = weights_of(backbone)
    with as_saved(backbone, backbone, None):
        assert all(map(torch.equal, weights_of(backbone), own))


@pytest.mark.parametrize("name", ["prompts", "benchmarks", "world"])
def test_sharded_weights_are_refused_where_the_whole_model_must_answer(name: str, mllm_recipe: MLLMRecipe) -> None:
    nowhere = Path("none")
    benchmark = BenchmarkInLoop(name="gqa", questions=nowhere, annotations=nowhere, images=nowhere)
    wanted = {"prompts": ["a red circle"], "benchmarks": [benchmark], "world": WorldInLoop()}[name]
    recipe = dataclasses.replace(mllm_recipe, ema_decay=0.0, validation=Validation(**{name: wanted}))
    for is_zero3 in (False, True):
        arguments = SimpleNamespace(
            deepspeed="zero.json", hf_deepspeed_config=SimpleNamespace(is_zero3=lambda is_zero3=is_zero3: is_zero3)
        )
        if is_zero3:
            with pytest.raises(ValueError, match=f"validation.{name} .* which needs whole weights"):
                check_sharding(recipe, arguments)
        else:
            check_sharding(recipe, arguments)
