"""Training the unified model: it learns, resumes exactly, skips bad steps, and its numbers mean what they say."""

import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from PIL import Image

from mllm.model import MLLMForConditionalGeneration
from tests.train.launching import ROOT, changed, launch, losses, same, scaled_forward, weights, write_recipe
from train import recipe as recipes
from train.checkpoints import UNSHARDED, ZERO_2, ZERO_3
from train.hardware import WAIT_IN_TRAINING
from train.metrics import MetricsLog
from train.recipe import BadSteps, MLLMRecipe, OptimizerRecipe, Validation
from train.trainer import LossMonitor, check_supported, prepare_output, train_mllm, training_arguments


@pytest.fixture
def short(mllm_recipe: MLLMRecipe) -> MLLMRecipe:
    """Three steps, no average, no checkpoint."""
    return changed(mllm_recipe, {"max_steps": 3, "save_steps": 100, "report_to": []}, ema_decay=0.0)


@pytest.fixture
def scale_loss(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Factors of the loss in these calls of the model (1, 2, ...); the test fills them in."""
    factors: dict[int, float] = {}
    monkeypatch.setattr(MLLMForConditionalGeneration, "forward", scaled_forward(factors))
    return factors


def weights_at(recipe: MLLMRecipe, step: int) -> dict[str, torch.Tensor]:
    return weights(recipe.output / f"checkpoint-{step}")


@pytest.mark.parametrize("optimizer", ["muon", "adamw8bit"])
def test_a_resumed_run_equals_an_uninterrupted_one(mllm_recipe: MLLMRecipe, optimizer: str) -> None:
    """Also when it was killed while a checkpoint and a line of the log were written."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="AdamW in 8 bits needs bitsandbytes, an optional extra")
    optimized = OptimizerRecipe(name=optimizer, learning_rate=3e-3, matrix_learning_rate=1e-2)
    recipe = changed(mllm_recipe, optimizer=optimized)
    train_mllm(recipe)
    whole, final = losses(recipe.output), weights(recipe.output / "final")
    unfinished = recipe.output / ".unfinished" / "checkpoint-4"
    unfinished.parent.mkdir(exist_ok=True)
    (recipe.output / "checkpoint-4").rename(unfinished)
    (unfinished / "model.safetensors").write_bytes(b"half")
    shutil.rmtree(recipe.output / "checkpoint-6")
    shutil.rmtree(recipe.output / "final")
    with (recipe.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    train_mllm(recipe)
    assert losses(recipe.output) == whole
    assert same(weights(recipe.output / "final"), final)
    assert not (recipe.output / ".unfinished" / "checkpoint-4").exists()
    prepare_output(changed(recipe, rows=5), training_arguments(recipe))  # a finished run keeps its recipe
    assert recipes.resolve(MLLMRecipe, recipes.read_yaml(recipe.output / "recipe.yaml")) == recipe


def test_a_resumed_run_drops_lines_of_its_log_that_are_no_entries(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "lo{"step": 3}\n\x00\n7\n{}\n{"step": 2}\n{"step": 4}\n')
    MetricsLog(path, resumed_step=3).write(4, {"loss": 0.5})
    assert path.read_text() == '{"step": 1, "loss": NaN}\n{"step": 2}\n{"step": 4, "loss": 0.5}\n'


def test_training_lowers_the_loss_and_a_tracker_gets_every_codebook(mllm_recipe: MLLMRecipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = changed(mllm_recipe, {"max_steps": 14, "save_steps": 20, "report_to": ["tensorboard"]})
    train_mllm(recipe)
    values = losses(recipe.output)
    assert values[14] < 0.85 * values[1]
    (file,) = recipe.output.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    logged = [entry.value for entry in events.Scalars("train/image_loss_per_codebook/1")]
    entries = losses(recipe.output, "image_loss_per_codebook").values()
    assert logged == pytest.approx([entry[1] for entry in entries], rel=1e-4)
    assert all(0 <= share < 1 for share in losses(recipe.output, "padding_share").values())


def test_bad_steps_change_nothing_and_one_too_many_ends_a_run(short: MLLMRecipe, scale_loss: dict[int, float]) -> None:
    scale_loss |= {2: float("nan"), 4: float("inf")}  # the third step, done again, is the fourth call
    recipe = changed(short, {"save_steps": 1}, bad_steps=BadSteps(allowed=1))
    train_mllm(recipe)
    assert same(weights_at(recipe, 1), weights_at(recipe, 2))
    assert not same(weights_at(recipe, 2), weights_at(recipe, 3))
    assert losses(recipe.output)[3] < 10  # a number again: NaN used to stay in the log
    shutil.rmtree(recipe.output / "checkpoint-3")
    with pytest.raises(ValueError, match=r"bad step 3 after 1 skipped"):
        train_mllm(recipe)
    assert {path.name for path in recipe.output.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_a_skipped_spike_is_logged_as_it_was_and_measured_against_what_was_seen_before_a_stop(
    short: MLLMRecipe, scale_loss: dict[int, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its gradient is dropped; the logged loss used to become infinite with it."""
    before, after = (LossMonitor(BadSteps(spike=3.0, allowed=2)) for _ in range(2))
    assert not any(before.is_bad_loss(1.0 + step / 7, step=step) for step in range(60))
    before.save(tmp_path)
    assert not after.is_bad_loss(40.0, step=0)  # nothing to compare it with
    after.load(tmp_path)
    assert after.recent == before.recent and after.recent.maxlen == before.recent.maxlen
    assert after.is_bad_loss(40.0, step=60) and before.is_bad_loss(40.0, step=60)
    monkeypatch.setattr(LossMonitor, "MIN_SEEN", 1)
    scale_loss[2] = 100.0
    recipe = changed(short, {"save_steps": 1}, bad_steps=BadSteps(allowed=1, spike=3.0))
    train_mllm(recipe)
    found = losses(recipe.output)
    assert 50 * found[1] < found[2] < float("inf") and found[3] < 2 * found[1]
    assert same(weights_at(recipe, 1), weights_at(recipe, 2))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_skips_a_bad_step_in_bfloat16(stage: int, short: MLLMRecipe, tmp_path: Path) -> None:
    """Also where the file says not to look at gradients, as DeepSpeed 0.18 did not."""
    config = json.loads((ROOT / "train" / "recipes" / f"zero{stage}.json").read_text())
    config["bf16"] = {"enabled": True, "check_grad_overflow": False}
    recipe = changed(short, {"save_steps": 1, "bf16": True, "deepspeed": config}, bad_steps=BadSteps(allowed=1))
    launch("torchrun", write_recipe(recipe, tmp_path / "recipe.yaml"), module="tests.train.workers bad_step")
    assert same(weights_at(recipe, 1), weights_at(recipe, 2))
    assert not same(weights_at(recipe, 2), weights_at(recipe, 3))
    assert all(tensor.isfinite().all() for tensor in weights_at(recipe, 3).values())


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
    trainer = {"max_steps": 4, "save_steps": 4, "eval_steps": 1, "save_total_limit": 1}
    recipe = changed(
        short,
        trainer,
        validation=Validation(batches=2, prompts=["a red circle"]),
        optimizer=OptimizerRecipe(learning_rate=0.2),  # so large that it gets worse
    )
    train_mllm(recipe)
    overall = losses(recipe.output, "eval_loss")
    for task in recipe.data.jobs:
        assert losses(recipe.output, f"eval_{task}_loss").keys() == overall.keys() == {1, 2, 3, 4}
    assert set(losses(recipe.output, "eval_ask_image_loss").values()) == {0.0}
    best = min(overall, key=lambda step: overall[step])
    kept = {int(path.name.split("-")[1]) for path in recipe.output.glob("checkpoint-*")}
    assert {best, 4} <= kept and len(kept) == 2
    assert Image.open(recipe.output / "samples" / "step-4.png").size == (32, 32)


def test_checkpointing_and_slices_change_no_loss(short: MLLMRecipe) -> None:
    plain = changed(short, {"max_steps": 2}, batches_per_step=2)
    sliced = changed(plain, {"gradient_checkpointing": True}, max_logits_mib=1, output=short.output.parent / "other")
    for recipe in (plain, sliced):
        train_mllm(recipe)
    for name in ("loss", "text_loss", "image_loss", "z_loss", "grad_norm"):
        one, two = losses(plain.output, name), losses(sliced.output, name)
        torch.testing.assert_close(list(two.values()), list(one.values()), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_refused_before_training(short: MLLMRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what needs complete weights, with ZeRO-3."""
    muon = changed(short, optimizer=OptimizerRecipe(name="muon"))
    wanted = (Validation(prompts=["a red circle"]), Validation(world=recipes.WorldInLoop()))
    whole = (changed(short, ema_decay=0.9), *(changed(short, validation=each) for each in wanted))
    for recipe, zero, named in ((muon, ZERO_2, "muon"), *((recipe, ZERO_3, "with ZeRO-3") for recipe in whole)):
        check_supported(recipe, UNSHARDED if recipe is muon else ZERO_2)
        with pytest.raises(ValueError, match=named):
            check_supported(recipe, zero)
    for trainer, named in (({"learning_rat": 1.0}, "learning_rat"), ({"max_steps": -3}, "at least 1, got -3")):
        with pytest.raises(ValueError, match=named):
            train_mllm(changed(short, trainer))
    with pytest.raises(ValueError, match="raise length"):
        train_mllm(changed(short, length=3))
    assert not list(short.output.rglob("*.parquet")), "refused before images are encoded"
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'mllm-toolkit\[quantization\]'"):
        train_mllm(changed(short, optimizer=OptimizerRecipe(name="adamw8bit")))


def test_arguments_and_a_warning_where_a_rate_cannot_fall(short: MLLMRecipe, caplog: pytest.LogCaptureFixture) -> None:
    """Processes wait for the first one, which encodes, draws and answers; the library's limit is half an hour."""
    assert training_arguments(short).ddp_timeout_delta == WAIT_IN_TRAINING > timedelta(hours=1)
    assert training_arguments(changed(short, {"save_strategy": False})).save_strategy == "no"  # YAML reads false
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 100, "max_steps": 1000}
    for decay, warned in ((900, False), (4500, True)):
        training_arguments(changed(short, {**schedule, "lr_scheduler_kwargs": {"num_decay_steps": decay}}))
        assert ("begins at 20 % of the learning rate" in caplog.text) == warned
