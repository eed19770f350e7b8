"""Two processes are one that is faster: DDP, ZeRO-2 and ZeRO-3, whole models and adapters, by every launcher."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm.vocabulary import load_text_tokenizer
from tests.train.launching import ROOT, launch, losses, write_recipe
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.checkpoints import save_model_folder
from train.recipe import AdapterRecipe, MLLMRecipe
from train.trainer import train_mllm

pytestmark = pytest.mark.slow

CASES = [
    *(("ddp", "torchrun", "whole"), ("zero2", "deepspeed", "whole"), ("zero3", "accelerate", "whole")),
    *(("ddp", "deepspeed", "lora"), ("zero2", "accelerate", "lora"), ("zero3", "torchrun", "lora")),
    ("zero3_offload", "torchrun", "whole"),
]
"""Strategy, launcher, kind: each launcher meets each strategy once, whole or as adapters."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture
def recipe(mllm_recipe: MLLMRecipe, run_folder: Path) -> MLLMRecipe:
    """Three steps of two batches, from one model that all runs share."""
    start = run_folder / "start"
    if not start.is_dir():
        image_tokenizer = UniTok.from_pretrained(mllm_recipe.image_tokenizer)
        text_tokenizer = load_text_tokenizer(mllm_recipe.text_tokenizer)
        model = build_model(mllm_recipe, text_tokenizer, image_tokenizer)
        save_model_folder(start, model=model, text_tokenizer=text_tokenizer, image_tokenizer=image_tokenizer)
    trainer = {**mllm_recipe.trainer, "max_steps": 3, "save_steps": 100, "report_to": []}
    return dataclasses.replace(
        mllm_recipe, model={}, start_from=start, batches_per_step=2, ema_decay=0.0, trainer=trainer
    )


@pytest.mark.parametrize(("strategy", "launcher", "kind"), CASES)
def test_two_processes_give_the_losses_of_one(
    recipe: MLLMRecipe, run_folder: Path, strategy: str, launcher: str, kind: str
) -> None:
    if kind == "lora":
        adapter = AdapterRecipe(rank=4, alpha=8.0, dropout=0.0)
        recipe = dataclasses.replace(recipe, adapter=adapter, trainable=["projector", "code_head"])
    expected, output = run_folder / f"alone-{kind}", run_folder / f"{strategy}-{launcher}-{kind}"
    if not expected.is_dir():  # the run of one process that the others are compared to
        train_mllm(dataclasses.replace(recipe, output=expected))
    deepspeed = {} if strategy == "ddp" else {"deepspeed": str(ROOT / "scripts" / f"{strategy}.json")}
    two = dataclasses.replace(recipe, output=output, trainer={**recipe.trainer, **deepspeed})
    launch(launcher, write_recipe(two, run_folder / f"{output.name}.yaml"))
    for name in ("loss", "text_loss", "image_loss", "grad_norm"):
        one, both = losses(expected, name), losses(output, name)
        assert both.keys() == one.keys() == {1, 2, 3}
        torch.testing.assert_close(list(both.values()), list(one.values()), rtol=1e-4, atol=1e-5)
    weights = "model.safetensors" if kind == "whole" else "adapter_model.safetensors"
    one, both = load_file(expected / "final" / weights), load_file(output / "final" / weights)
    assert one.keys() == both.keys()
    torch.testing.assert_close(both, one, rtol=1e-3, atol=1e-4)
