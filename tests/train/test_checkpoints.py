"""Averaged weights, the model as it would be saved, folders that count, and what DeepSpeed is asked for."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from train import checkpoints
from train.callbacks import WeightAverage, inference_model
from train.checkpoints import UNSHARDED, ZERO_2, ZERO_3, resumes
from train.hardware import CPU_EAGER, speed_up

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
CONFIG = LlamaConfig(hidden_size=8, intermediate_size=6, num_hidden_layers=1, vocab_size=5, **HEADS)


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_within_the_context_the_model_is_the_one_that_would_be_saved() -> None:
    """The average for weights, a loaded model's attention, nothing compiled; then everything as before."""
    backbone = LlamaModel(CONFIG)
    speed_up(backbone, compiles=True)
    compiled = backbone._compiled_call_impl
    average = WeightAverage(backbone, decay=0.5)
    first = weights_of(backbone)
    average.on_step_end()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(2.0)
    average.on_step_end()
    own = weights_of(backbone)
    for error in (None, KeyboardInterrupt):
        with pytest.raises(error) if error else nullcontext(), inference_model(backbone, backbone, average):
            assert backbone.config._attn_implementation == "sdpa" and backbone._compiled_call_impl is None
            torch.testing.assert_close(weights_of(backbone), [tensor + 1.0 for tensor in first])
            if error:
                raise error
        assert all(map(torch.equal, weights_of(backbone), own))
        assert backbone.config._attn_implementation == CPU_EAGER
        assert compiled is not None and backbone._compiled_call_impl is compiled


def test_small_steps_of_bfloat16_weights_are_averaged(tmp_path: Path) -> None:
    """In bfloat16 an average of decay 0.999 would never leave the first weights."""
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    average = WeightAverage(model, decay=0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.on_step_end()
        model.weight.fill_(1.5)
    for _ in range(100):
        average.on_step_end()
    again = WeightAverage(model, decay=0.999)
    average.save(tmp_path)
    again.load(tmp_path)
    expected = torch.full((2, 3), 1.5 - 0.5 * 0.999**100)
    for kept in (average, again):
        torch.testing.assert_close(kept.weights["weight"], expected)
        kept.copy_to_model()
        assert model.weight.dtype == torch.bfloat16 and torch.equal(model.weight, expected.to(torch.bfloat16))


def test_a_checkpoint_of_another_sharding_is_refused(tmp_path: Path) -> None:
    (partitions := tmp_path / "global_step3").mkdir()
    checkpoints.check_sharding(tmp_path, UNSHARDED)
    for rank in range(3):
        (partitions / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    checkpoints.check_sharding(tmp_path, ZERO_2)
    (partitions / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    checkpoints.check_sharding(tmp_path, ZERO_3)
    for other in (UNSHARDED, ZERO_2):
        with pytest.raises(ValueError):
            checkpoints.check_sharding(tmp_path, other)
    assert [checkpoints.needs_resharding(tmp_path, ranks) for ranks in (2, 3)] == [True, False]


def test_deepspeed_is_asked_for_what_a_run_needs_beside_what_its_file_says() -> None:
    """Before 0.19 it did not look at gradients in bfloat16, and a bad step made all weights NaN."""
    config = {"bf16": {"enabled": "auto", "check_grad_overflow": False}, "zero_optimization": {"stage": 2}}
    config["checkpoint"] = {"parallel_write": {"pipeline_stage": True}}
    for name in ("zero2", "zero3", "scripts/zero3.json", "zero3_offload"):
        shipped = checkpoints.deepspeed_settings(name, universal=False)  # they leave to the recipe what it says
        assert shipped["zero_optimization"]["stage"] == int(Path(name).name[4]) and "optimizer" not in shipped
        numbers = [shipped[key] for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping")]
        assert {*numbers, shipped["bf16"]["enabled"]} == {"auto"}
    settings = checkpoints.deepspeed_settings(config, universal=True)
    assert settings["checkpoint"] == {**config["checkpoint"], "load_universal": True}
    assert settings["bf16"] == {"enabled": "auto", "check_grad_overflow": True}


def test_a_finished_run_says_what_to_do() -> None:
    assert resumes(Path("run/checkpoint-4"), 5) == "resuming from run/checkpoint-4"
    assert "run is finished: set more steps" in resumes(Path("run/checkpoint-4"), 4)
