"""A run that is killed at any moment resumes and ends like an uninterrupted one: same losses, same weights."""

import dataclasses
import random
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mllm.cli.main import main as toolkit
from tests.train.launching import ROOT, command, environment, launch, losses, write_recipe
from train.data.make_samples import main as make_samples
from train.recipe import MLLMData, MLLMRecipe, ShardSource

pytestmark = pytest.mark.slow

STEPS = 12
PATIENCE = 300


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, tmp_path: Path) -> MLLMRecipe:
    """Two prepared folders, mixed and packed; more steps than either has rows, so one goes round."""
    assert make_samples([str(tmp_path / "raw"), "--count", "14", "--size", "32"]) == 0
    for name, source in (("captions", "captions"), ("dialogues", "chat")):
        words = ["prepare", str(tmp_path / "raw" / source), "--out", str(tmp_path / name)]
        assert toolkit([*words, "--image-tokenizer", str(mllm_recipe.image_tokenizer), "--shard-size", "5"]) == 0
    shards = [ShardSource(path=str(tmp_path / "captions"), weight=2.0), ShardSource(path=str(tmp_path / "dialogues"))]
    trainer = {**mllm_recipe.trainer, "max_steps": STEPS, "save_steps": 3, "save_total_limit": 2, "report_to": []}
    return dataclasses.replace(
        mllm_recipe, data=MLLMData(shards=shards, packing_buffers=4, buffer_size=8), batches_per_step=2, trainer=trainer
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a launcher and everything it started, workers first: they would outlive it."""
    family = psutil.Process(process.pid).children(recursive=True)
    for member in [*family, process]:
        member.kill()
    process.wait()
    psutil.wait_procs(family)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    log, end = folder / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (log.is_file() and len(log.read_text().splitlines()) >= step):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"step {step} was not reached in {PATIENCE} seconds"
        time.sleep(0.002)


def sharded(recipe: MLLMRecipe, zero: str | None) -> MLLMRecipe:
    """Trained by DeepSpeed; ZeRO-3 keeps no average of the weights."""
    deepspeed = {"deepspeed": str(ROOT / "scripts" / f"{zero}.json")} if zero else {}
    decay = 0.0 if zero == "zero3" else recipe.ema_decay
    return dataclasses.replace(recipe, trainer={**recipe.trainer, **deepspeed}, ema_decay=decay)


@pytest.mark.parametrize(("processes", "zero"), [(1, None), (2, "zero2"), (2, "zero3")])
def test_a_killed_run_ends_like_an_uninterrupted_one(
    recipe: MLLMRecipe, tmp_path: Path, processes: int, zero: str | None
) -> None:
    recipe = sharded(recipe, zero)
    launcher = None if processes == 1 else "torchrun"
    calm = write_recipe(dataclasses.replace(recipe, output=tmp_path / "calm"), tmp_path / "calm.yaml")
    launch(launcher, calm)
    killed = dataclasses.replace(recipe, output=tmp_path / "killed")
    path = write_recipe(killed, tmp_path / "killed.yaml")
    step = random.SystemRandom().randrange(2, STEPS - 2)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(launcher, path), cwd=ROOT, env=environment(), **quiet)
    wait_for_step(killed.output, step, process)
    kill(process)
    launch(launcher, path)
    expected = losses(tmp_path / "calm")
    assert list(expected) == list(range(1, STEPS + 1))
    assert losses(killed.output) == expected, f"killed at step {step}"
    one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("calm", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one), f"killed at step {step}"


@pytest.mark.parametrize(("zero", "before", "after"), [(None, 1, 2), ("zero2", 2, 1), ("zero3", 1, 2)])
def test_a_run_resumes_with_another_number_of_processes(
    recipe: MLLMRecipe, tmp_path: Path, zero: str | None, before: int, after: int
) -> None:
    """The losses and weights of the run that kept its number."""
    recipe = sharded(dataclasses.replace(recipe, trainer={**recipe.trainer, "max_steps": 6}), zero)
    path = write_recipe(recipe, tmp_path / "recipe.yaml")
    launch("torchrun", path, processes=before)
    expected, weights = losses(recipe.output), load_file(recipe.output / "final" / "model.safetensors")
    for name in ("checkpoint-6", "final"):
        shutil.rmtree(recipe.output / name)
    launch("torchrun", path, processes=after)
    assert losses(recipe.output) == pytest.approx(expected, rel=1e-4)
    again = load_file(recipe.output / "final" / "model.safetensors")
    for name in weights:
        torch.testing.assert_close(again[name], weights[name], rtol=1e-3, atol=1e-4)
