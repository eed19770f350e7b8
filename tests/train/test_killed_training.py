"""A run that is killed at any moment resumes and ends like an uninterrupted one: same losses, same weights."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from mllm.cli.main import main as toolkit
from tests.train.launching import ROOT, changed, command, kill_at, launch, losses, same, weights, write_recipe
from train.data.make_samples import main as make_samples
from train.recipe import MLLMData, MLLMRecipe, ShardSource

pytestmark = pytest.mark.slow

STEPS = 12


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, tmp_path: Path) -> MLLMRecipe:
    """Two prepared folders, mixed and packed; more steps than either has rows, so one goes round."""
    assert make_samples([str(tmp_path / "raw"), "--count", "14", "--size", "32"]) == 0
    for name, source in (("captions", "captions"), ("dialogues", "chat")):
        words = ["prepare", str(tmp_path / "raw" / source), "--out", str(tmp_path / name)]
        assert toolkit([*words, "--image-tokenizer", str(mllm_recipe.image_tokenizer), "--shard-size", "5"]) == 0
    shards = [ShardSource(path=str(tmp_path / "captions"), weight=2.0), ShardSource(path=str(tmp_path / "dialogues"))]
    trainer = {"max_steps": STEPS, "save_steps": 3, "save_total_limit": 2, "report_to": []}
    data = MLLMData(shards=shards, packing_buffers=4, buffer_size=8)
    return changed(mllm_recipe, trainer, data=data, batches_per_step=2)


def sharded(recipe: MLLMRecipe, zero: str | None) -> MLLMRecipe:
    """Trained by DeepSpeed; ZeRO-3 keeps no average of the weights."""
    deepspeed = {"deepspeed": str(ROOT / "scripts" / f"{zero}.json")} if zero else {}
    return changed(recipe, deepspeed, ema_decay=0.0 if zero == "zero3" else recipe.ema_decay)


@pytest.mark.parametrize(("processes", "zero"), [(1, None), (2, "zero2"), (2, "zero3")])
def test_a_killed_run_ends_like_an_uninterrupted_one(
    recipe: MLLMRecipe, tmp_path: Path, processes: int, zero: str | None
) -> None:
    recipe = sharded(recipe, zero)
    launcher = None if processes == 1 else "torchrun"
    paths = {}
    for name in ("calm", "killed"):
        paths[name] = write_recipe(changed(recipe, output=tmp_path / name), tmp_path / f"{name}.yaml")
    launch(launcher, paths["calm"])
    step = random.SystemRandom().randrange(2, STEPS - 2)
    kill_at(step, command(launcher, paths["killed"]), tmp_path / "killed")
    launch(launcher, paths["killed"])
    expected = losses(tmp_path / "calm")
    assert list(expected) == list(range(1, STEPS + 1))
    assert losses(tmp_path / "killed") == expected, f"killed at step {step}"
    assert same(weights(tmp_path / "calm/final"), weights(tmp_path / "killed/final")), f"killed at step {step}"


@pytest.mark.parametrize(("zero", "before", "after"), [(None, 1, 2), ("zero2", 2, 1), ("zero3", 1, 2)])
def test_a_run_resumes_with_another_number_of_processes(
    recipe: MLLMRecipe, tmp_path: Path, zero: str | None, before: int, after: int
) -> None:
    """The losses and weights of the run that kept its number."""
    recipe = sharded(changed(recipe, {"max_steps": 6}), zero)
    path, final = write_recipe(recipe, tmp_path / "recipe.yaml"), recipe.output / "final"
    launch("torchrun", path, processes=before)
    expected, trained = losses(recipe.output), weights(final)
    for name in ("checkpoint-6", "final"):
        shutil.rmtree(recipe.output / name)
    launch("torchrun", path, processes=after)
    assert losses(recipe.output) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(weights(final), trained, rtol=1e-3, atol=1e-4)
