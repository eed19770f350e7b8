"""A run that is killed, or that several processes share, ends like one that is not: same losses, same weights."""

import dataclasses
import random
import shutil
from pathlib import Path

import pytest
import torch

from mllm.cli.main import main as toolkit
from mllm.world.scene import CLASSES
from tests.train.launching import ROOT, changed, command, kill_at, launch, losses, same, weights, write_recipe
from train.data.make_samples import main as make_samples
from train.recipe import AdapterRecipe, ClassData, MLLMData, MLLMRecipe, ShardSource
from train.trainer import train_mllm

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
    kill_at(command(launcher, paths["killed"]), tmp_path / "killed" / "metrics.jsonl", lines=step)
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


pytestmark = pytest.mark.slow

CASES = [
    *(("ddp", "torchrun", "whole"), ("zero2", "deepspeed", "whole"), ("zero3", "accelerate", "whole")),
    *(("zero3", "torchrun", "lora"), ("zero3_offload", "torchrun", "whole")),
    *(("ddp", "torchrun", "class"), ("zero3", "torchrun", "understanding")),
]
"""Strategy, launcher, kind: each strategy, launcher and kind at least once."""
MODELS = {
    "class": {"prompt_style": "class", "image_layout": "bare", "num_classes": len(CLASSES), "tasks": ["draw_class"]}
    | {"code_embedder": "summed"},
    "understanding": {"embedding_context": "whole", "embedder_width": 24, "head_type": "none", "prompt_style": "plain"}
    | {"tasks": ["ask", "describe"]},
}
DATA = {
    "class": {"classes": ClassData(world_images=90, class_dropout=0.1), "length": 22},
    "understanding": {"data": MLLMData(episodes=20, jobs={"describe": 1.0})},
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


def recipe_of(kind: str, plain: MLLMRecipe, run_folder: Path) -> MLLMRecipe:
    """Three steps of two batches, from one model that all runs of a kind share: ZeRO-3 draws other first weights."""
    model = MODELS.get(kind, {})
    trainer = {"max_steps": 3, "save_steps": 100, "report_to": []}
    plain = changed(plain, trainer, ema_decay=0.0, model={**plain.model, **model}, **DATA.get(kind, {}))
    start = run_folder / f"start-{kind if model else 'whole'}"
    if not start.is_dir():
        train_mllm(changed(plain, {"max_steps": 1}, output=start))
    recipe = dataclasses.replace(plain, model={}, start_from=start / "final", batches_per_step=2)
    if kind == "lora":
        adapter = AdapterRecipe(rank=4, alpha=8.0, dropout=0.0)
        recipe = dataclasses.replace(recipe, adapter=adapter, trainable=["projector", "code_head"])
    return recipe


@pytest.mark.parametrize(("strategy", "launcher", "kind"), CASES)
def test_two_processes_give_the_losses_of_one(
    mllm_recipe: MLLMRecipe, run_folder: Path, strategy: str, launcher: str, kind: str
) -> None:
    recipe = recipe_of(kind, mllm_recipe, run_folder)
    alone, output = run_folder / f"alone-{kind}", run_folder / f"{strategy}-{launcher}-{kind}"
    if not alone.is_dir():  # the run of one process that the others are compared to
        train_mllm(dataclasses.replace(recipe, output=alone))
    deepspeed = {} if strategy == "ddp" else {"deepspeed": str(ROOT / "scripts" / f"{strategy}.json")}
    launch(launcher, write_recipe(changed(recipe, deepspeed, output=output), run_folder / f"{output.name}.yaml"))
    for name in ("loss", "text_loss", "image_loss", "grad_norm"):
        one, both = losses(alone, name), losses(output, name)
        assert both.keys() == one.keys() == {1, 2, 3}
        torch.testing.assert_close(list(both.values()), list(one.values()), rtol=1e-4, atol=1e-5)
    one, both = weights(alone / "final"), weights(output / "final")
    assert one.keys() == both.keys()
    torch.testing.assert_close(both, one, rtol=1e-3, atol=1e-4)
