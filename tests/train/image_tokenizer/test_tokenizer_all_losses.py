"""Every loss on, on one and on two processes: it trains, it resumes exactly, and processes only share the work."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.train.image_tokenizer.tokenizer_recipes import everything, write_recipe
from train.recipe import CodebookSchedule, ShardsRecipe, TokenizerRecipe
from train.tokenizer_trainer import TokenizerTrainer

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("reconstruction", "perceptual", "vq", "entropy", "contrastive", "adversarial")
JUDGED = ("discriminator_real", "discriminator_made", "discriminator_consistency")


def log(output: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in entries]


def start(recipe: Path, *, processes: int) -> subprocess.Popen[bytes]:
    words = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", *words, "train.run", str(recipe)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(recipe: TokenizerRecipe, path: Path, *, processes: int) -> None:
    process = start(write_recipe(recipe, path), processes=processes)
    said = process.communicate()[0].decode()
    assert process.returncode == 0, said[-3000:]


def require_equal_weights(first: Path, second: Path) -> None:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_loss_trains_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = everything(tmp_path, tmp_path / "run")
    TokenizerTrainer(recipe).train()
    whole = log(recipe.output)
    assert all(name in whole[-1] for name in PARTS + JUDGED)
    assert "adversarial" not in whole[2] and "adversarial" in whole[3]  # its weight is 0 up to its first step
    assert any(entry["revived"] for entry in whole)
    shutil.copytree(recipe.output / "final", tmp_path / "kept")
    for path in recipe.output.glob("checkpoint-*"):
        if path.name not in ("checkpoint-2", "checkpoint-4"):
            shutil.rmtree(path)
    TokenizerTrainer(recipe).train()
    assert log(recipe.output) == whole
    require_equal_weights(recipe.output / "final", tmp_path / "kept")


def test_a_discriminator_that_goes_wrong_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    recipe = everything(tmp_path, tmp_path / "run", save_every=1)
    TokenizerTrainer(recipe).train(stop_at=3)
    trainer = TokenizerTrainer(recipe)
    assert trainer.adversary is not None
    next(trainer.adversary.heads.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ValueError):
        trainer.train()
    assert not (recipe.output / "checkpoint-4").exists()


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_pictures(tmp_path: Path) -> None:
    # Entries of the codebooks begin apart and are revived once, before the last step: equal ones would be told apart by
    # rounding alone, and the length of the gradient depends on which of two equal entries is taken.
    codebooks = CodebookSchedule(initialise_at=0, every=6, threshold=0.95, until=1.0)
    alone = everything(tmp_path, tmp_path / "one", shards=ShardsRecipe(), batch_size=8, codebooks=codebooks)
    shared = everything(tmp_path, tmp_path / "two", shards=ShardsRecipe(), batch_size=4, codebooks=codebooks)
    run(alone, tmp_path / "one.yaml", processes=1)  # with as many threads as each of the two: rounding picks codes
    run(shared, tmp_path / "two.yaml", processes=2)
    entries = list(zip(log(alone.output), log(shared.output), strict=True))
    assert entries[6][0]["revived"] > 0
    for one, two in entries[:7]:  # after the revival, rounding decides which of two near entries is taken
        for name, value in one.items():
            # the adversarial loss, and with it the gradient, is weighted by a quotient, which rounding moves most
            rel = 0.1 if name in ("adversarial", "gradient_norm") else 1e-2
            assert two[name] == pytest.approx(value, rel=rel, abs=2e-3), (one["step"], name)


@pytest.mark.slow
def test_a_killed_run_on_two_processes_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = everything(tmp_path, tmp_path / "whole", steps=12, save_every=3)
    killed = everything(tmp_path, tmp_path / "killed", steps=12, save_every=3)
    run(whole, tmp_path / "whole.yaml", processes=2)
    process = start(write_recipe(killed, tmp_path / "killed.yaml"), processes=2)
    metrics = killed.output / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 5):
        time.sleep(0.05)
    launcher = psutil.Process(process.pid)
    for one in [*launcher.children(recursive=True), launcher]:
        one.kill()
    process.communicate()
    assert not (killed.output / "final").exists()
    run(killed, tmp_path / "killed.yaml", processes=2)
    assert log(killed.output) == log(whole.output)
    require_equal_weights(killed.output / "final", whole.output / "final")


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    runs = [everything(tmp_path, tmp_path / f"{how}", steps=5, recompute_activations=how) for how in (False, True)]
    for recipe in runs:
        TokenizerTrainer(recipe).train()
    assert log(runs[0].output) == log(runs[1].output)


@pytest.fixture
def another_precision() -> Iterator[None]:
    """Accelerate keeps one precision per process; this lets a test choose its own and gives the others theirs back."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_loss_trains_in_bfloat16(tmp_path: Path, another_precision: None) -> None:
    full, half = (everything(tmp_path, tmp_path / kind, steps=4, precision=kind) for kind in ("no", "bf16"))
    TokenizerTrainer(full).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    TokenizerTrainer(half).train()
    first = {name: log(full.output)[0][name] for name in ("reconstruction", "perceptual", "contrastive")}
    for name, value in first.items():
        assert log(half.output)[0][name] == pytest.approx(value, rel=0.05), name
    for name in ("reconstruction", "perceptual", "discriminator_real", "discriminator_made"):
        assert log(half.output)[-1][name] == pytest.approx(log(full.output)[-1][name], rel=0.2), name


def test_a_checkpoint_of_the_other_projection_is_refused(tmp_path: Path) -> None:
    """Causal and full attention have the same weights; only the stored config tells them apart."""
    recipe = everything(tmp_path, tmp_path / "run", steps=2)
    TokenizerTrainer(recipe).train()
    causal = everything(
        tmp_path, tmp_path / "run", steps=2, architecture={**recipe.architecture, "projection_attention": "causal"}
    )
    with pytest.raises(ValueError):
        TokenizerTrainer(causal).train()
    stored = json.loads((recipe.output / "final" / "config.json").read_text())
    assert stored["projection_attention"] == "full"


def test_training_can_go_on_from_a_finished_tokenizer(tmp_path: Path) -> None:
    first = everything(tmp_path, tmp_path / "run", steps=2, ema_decay=0.0)
    TokenizerTrainer(first).train()
    second = everything(tmp_path, tmp_path / "more", architecture={}, start_from=first.output / "final")
    trainer = TokenizerTrainer(second)
    require = load_file(first.output / "final" / "model.safetensors")
    assert all(torch.equal(tensor, require[name]) for name, tensor in trainer.unwrapped.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lpips": None}, "loss.perceptual is 1.0 but lpips is not given"),
        ({"text_tokenizer": None}, "loss.contrastive is 1.0 but text_tokenizer is not given"),
        ({"start_from": Path("somewhere")}, "leave one of them out"),
    ],
)
def test_a_loss_without_its_files_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        everything(tmp_path, tmp_path / "run", **changes)


def test_a_recipe_says_what_it_leaves_out(tmp_path: Path) -> None:
    assert TokenizerRecipe(output=tmp_path).left_out == [
        "entropy", "perceptual (LPIPS)", "adversarial (DINOv2)", "contrastive",
    ]  # fmt: skip
    assert everything(tmp_path, tmp_path / "run").left_out == []
