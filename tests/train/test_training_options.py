"""What a recipe can ask for beside a plain run: frozen parts, bad steps, validation, slices, whole checkpoints."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mllm.model import MLLMForConditionalGeneration
from tests.train.launching import losses
from train.checkpoints import ZERO_3, needs_joining, reads_joined, sharding_of
from train.hardware import WAIT_IN_TRAINING
from train.metrics import PEAK_FLOPS, FlopCount
from train.optimizers import OptimizerRecipe
from train.recipe import (
    BadSteps,
    BadStepsError,
    MLLMRecipe,
    StepJudge,
    Validation,
    as_yaml,
    part_of,
    read_yaml,
    resolve,
)
from train.run import train_mllm
from train.trainer import join_deepspeed, training_arguments


def changed(recipe: MLLMRecipe, trainer: dict[str, object] | None = None, **changes: object) -> MLLMRecipe:
    return dataclasses.replace(recipe, trainer={**recipe.trainer, **(trainer or {})}, **changes)


@pytest.fixture
def short(mllm_recipe: MLLMRecipe) -> MLLMRecipe:
    """Three steps, no average, no checkpoint."""
    return changed(mllm_recipe, {"max_steps": 3, "save_steps": 100, "report_to": []}, ema_decay=0.0)


@pytest.fixture
def break_loss(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Loss of these calls of the model (1, 2, ...) is no number; the list may be changed by the test."""
    broken: list[int] = []
    calls = 0
    forward = MLLMForConditionalGeneration.forward

    def counted(self: MLLMForConditionalGeneration, *args: object, **kwargs: object) -> object:
        nonlocal calls
        output = forward(self, *args, **kwargs)
        calls += 1
        if calls in broken:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(MLLMForConditionalGeneration, "forward", counted)
    return broken


def test_only_the_named_parts_learn(short: MLLMRecipe) -> None:
    train_mllm(short)
    start = short.output / "final"
    recipe = changed(short, start_from=start, model={}, trains=["projector", "lm_head"], output=short.output / "next")
    train_mllm(recipe)
    before, after = load_file(start / "model.safetensors"), load_file(recipe.output / "final" / "model.safetensors")
    moved = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projector", "lm_head"}


def test_an_unknown_part_is_refused(short: MLLMRecipe) -> None:
    with pytest.raises(ValueError, match=r"unknown parts: found projektor; use all or backbone"):
        changed(short, trains=["projektor"])


def test_a_loss_that_is_no_number_ends_the_run_and_nothing_of_it_is_saved(
    short: MLLMRecipe, break_loss: list[int]
) -> None:
    break_loss.append(2)
    with pytest.raises(BadStepsError, match=r"wrong at step 2: the loss is nan.*lower the learning rate"):
        train_mllm(changed(short, {"save_steps": 1}))
    assert [path.name for path in short.output.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(
        tensor.isfinite().all() for tensor in load_file(short.output / "checkpoint-1/model.safetensors").values()
    )


def test_an_allowed_bad_step_leaves_the_weights_alone(short: MLLMRecipe, break_loss: list[int]) -> None:
    break_loss.append(2)
    train_mllm(changed(short, {"save_steps": 1}, bad_steps=BadSteps(allowed=1)))
    first, second, third = (load_file(short.output / f"checkpoint-{step}/model.safetensors") for step in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(second[name], third[name]) for name in second)
    with pytest.raises(ValueError, match="use 0 or more"):
        BadSteps(allowed=-1)


def test_skipped_steps_are_counted_over_a_stop(short: MLLMRecipe, break_loss: list[int]) -> None:
    break_loss += [2, 4]  # the third step is the fourth call: the run is stopped before it ends
    recipe = changed(short, {"save_steps": 1}, bad_steps=BadSteps(allowed=1))
    train_mllm(recipe)
    shutil.rmtree(recipe.output / "checkpoint-3")
    with pytest.raises(BadStepsError, match=r"wrong at step 3: the loss is nan, after 1 skipped steps"):
        train_mllm(recipe)


def test_a_spike_is_judged_against_what_was_seen_before_a_stop(tmp_path: Path) -> None:
    before = StepJudge(BadSteps(spike=3.0))
    for step in range(60):
        assert before.fault_of_loss(1.0 + step / 7) is None
    before.save(tmp_path)
    after = StepJudge(BadSteps(spike=3.0))
    assert after.fault_of_loss(40.0) is None  # nothing to compare it with
    after.load(tmp_path)
    assert after.recent == before.recent and after.recent.maxlen == before.recent.maxlen
    assert after.fault_of_loss(40.0) == before.fault_of_loss(40.0) is not None


def test_a_batch_of_which_nothing_is_learned_has_loss_zero(short: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MLLMForConditionalGeneration.forward

    def unlabelled(self: MLLMForConditionalGeneration, **inputs: torch.Tensor) -> object:
        inputs["labels"] = inputs["labels"].fill_(-100)
        inputs["code_targets"] = torch.zeros_like(inputs["code_targets"])
        return forward(self, **inputs)

    monkeypatch.setattr(MLLMForConditionalGeneration, "forward", unlabelled)
    monkeypatch.setattr("train.trainer.count_items", lambda *_, **__: torch.tensor(0.0))
    train_mllm(changed(short, {"max_steps": 1}))
    assert losses(short.output) == {1: 0.0}


def test_validation_is_by_task_and_keeps_the_best_checkpoint(short: MLLMRecipe) -> None:
    trainer = {"max_steps": 4, "save_steps": 1, "eval_steps": 1, "save_total_limit": 1}
    prompts = ["a red circle"]
    recipe = changed(short, trainer, validation=Validation(batches=2, prompts=prompts))
    recipe = dataclasses.replace(recipe, optimizer=OptimizerRecipe(learning_rate=0.2))  # so large that it gets worse
    train_mllm(recipe)
    overall = losses(recipe.output, "eval_loss")
    for task in recipe.data.jobs:
        assert losses(recipe.output, f"eval_{task}_loss").keys() == overall.keys() == {1, 2, 3, 4}
    assert set(losses(recipe.output, "eval_ask_image_loss").values()) == {0.0}
    best = min(overall, key=lambda step: overall[step])
    kept = {int(path.name.split("-")[1]) for path in recipe.output.glob("checkpoint-*")}
    assert {best, 4} <= kept and len(kept) == 2
    assert Image.open(recipe.output / "samples" / "step-4.png").size == (32, 32)


def test_gradient_checkpointing_and_slices_change_no_loss(short: MLLMRecipe) -> None:
    train_mllm(short)
    other = changed(short, {"gradient_checkpointing": True}, max_logits_mib=1, output=short.output.parent / "other")
    train_mllm(other)
    for name in ("loss", "text_loss", "image_loss", "z_loss", "grad_norm"):
        one, two = losses(short.output, name), losses(other.output, name)
        torch.testing.assert_close(list(two.values()), list(one.values()), rtol=1e-4, atol=1e-6)


def test_more_accumulation_is_the_same_step(short: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """`batches_per_step` fixes the batches of a step; what a process does not add up, the others do."""
    train_mllm(changed(short, batches_per_step=2))
    assert losses(short.output).keys() == {1, 2, 3}
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="found 6 and 4; use a multiple"):
        train_mllm(changed(short, batches_per_step=6))


def test_a_tracker_gets_every_codebook(short: MLLMRecipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_mllm(changed(short, {"report_to": ["tensorboard"]}))
    (file,) = short.output.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    logged = [entry.value for entry in events.Scalars("train/image_loss_per_codebook/1")]
    entries = [json.loads(line) for line in (short.output / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([entry["image_loss_per_codebook"][1] for entry in entries], rel=1e-4)
    assert all(entry["memory_gib"] > 0 and 0 <= entry["padding_share"] < 1 for entry in entries)


def test_8_bit_adamw_says_what_to_install(short: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match=r"pip install 'mllm-toolkit\[quantization\]'"):
        train_mllm(changed(short, optimizer=OptimizerRecipe(name="adamw8bit")))


def test_deepspeed_without_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="no launcher was found; start with torchrun"):
        join_deepspeed(use_cpu=True)


def test_processes_wait_for_the_first_as_long_as_it_takes(short: MLLMRecipe) -> None:
    """It encodes the world, draws and answers while the others wait; the library's limit is half an hour."""
    assert training_arguments(short).ddp_timeout_delta == WAIT_IN_TRAINING > timedelta(hours=1)
    assert training_arguments(changed(short, {"ddp_timeout": 60})).ddp_timeout == 60


def test_flops_are_counted_by_hand(short: MLLMRecipe) -> None:
    train_mllm(short)
    model = MLLMForConditionalGeneration.from_pretrained(short.output / "final")
    count = FlopCount(model, model.config, length=10)
    layers = sum(p.numel() for p in model.backbone.layers.parameters()) + 32  # and the last norm
    per_position = 6 * layers + 6 * 2 * 32 * 10
    head = sum(p.numel() for name, p in model.code_head.named_parameters() if not name.startswith("codebooks."))
    expected = 5 * per_position + 2 * 6 * 32 * model.config.vocab_size + 3 * 6 * head
    assert count.of(positions=5, text_targets=2, code_targets=3) == pytest.approx(expected)
    assert all(peak > 1e13 for peak in PEAK_FLOPS.values())


def test_a_checkpoint_of_another_sharding_is_refused(short: MLLMRecipe) -> None:
    train_mllm(changed(short, {"save_steps": 2}))
    shutil.rmtree(short.output / "final")
    (parts := short.output / "checkpoint-3" / "global_step3").mkdir()
    for rank in range(3):
        (parts / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(ValueError, match="written under ZeRO-2, and the recipe now asks for plain data parallel; set"):
        train_mllm(short)
    (parts / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    assert sharding_of(parts.parent) == ZERO_3
    assert needs_joining(parts.parent, 2) and not needs_joining(parts.parent, 3) and not needs_joining(None, 2)


def test_a_joined_checkpoint_is_asked_for_beside_what_the_file_says(tmp_path: Path) -> None:
    config = {"zero_optimization": {"stage": 2}, "checkpoint": {"parallel_write": {"pipeline_stage": True}}}
    (tmp_path / "zero.json").write_text(json.dumps(config))
    joined = reads_joined(str(tmp_path / "zero.json"))
    assert joined == reads_joined(config) and joined["checkpoint"] == {**config["checkpoint"], "load_universal": True}


def test_a_killed_writer_leaves_no_checkpoint_that_counts(short: MLLMRecipe) -> None:
    recipe = changed(short, {"save_steps": 1})
    train_mllm(recipe)
    whole = losses(recipe.output)
    newest = recipe.output / "checkpoint-3"
    (newest / "unfinished").touch()  # as if it had been killed while this one was written
    (newest / "model.safetensors").write_bytes(b"half")
    with (recipe.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    train_mllm(recipe)
    assert losses(recipe.output) == whole
    assert not list(recipe.output.rglob("unfinished"))


def test_averages_in_eight_bits_train_like_whole_ones(short: MLLMRecipe) -> None:
    pytest.importorskip("bitsandbytes", reason="AdamW in 8 bits needs bitsandbytes, an optional extra")
    curves = {}
    for name in ("adamw", "adamw8bit"):
        recipe = changed(short, optimizer=OptimizerRecipe(name=name, learning_rate=1e-3), output=short.output / name)
        train_mllm(recipe)
        curves[name] = losses(recipe.output)
    assert curves["adamw8bit"].keys() == curves["adamw"].keys()
    assert curves["adamw8bit"] == pytest.approx(curves["adamw"], rel=0.02)
    assert curves["adamw8bit"] != curves["adamw"]


@pytest.mark.parametrize("word", ["no", '"no"'])
def test_no_is_a_strategy(mllm_recipe: MLLMRecipe, tmp_path: Path, word: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(as_yaml(mllm_recipe).replace("\ntrainer:", f"\ntrainer:\n  save_strategy: {word}"))
    assert training_arguments(resolve(MLLMRecipe, read_yaml(path))).save_strategy == "no"
