"""Two processes are one that is faster: DDP, ZeRO-2 and ZeRO-3, every kind of training, by every launcher."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mllm.world.scene import CLASSES
from tests.train.launching import ROOT, changed, launch, losses, weights, write_recipe
from train.recipe import AdapterRecipe, ClassData, MLLMData, MLLMRecipe
from train.trainer import train_mllm

pytestmark = pytest.mark.slow

CASES = [
    *(("ddp", "torchrun", "whole"), ("zero2", "deepspeed", "whole"), ("zero3", "accelerate", "whole")),
    *(("ddp", "deepspeed", "lora"), ("zero2", "accelerate", "lora"), ("zero3", "torchrun", "lora")),
    *(("zero3_offload", "torchrun", "whole"), ("ddp", "torchrun", "class"), ("zero3", "torchrun", "understanding")),
]
"""Strategy, launcher, kind: each launcher meets each strategy once, whole or as adapters."""
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
