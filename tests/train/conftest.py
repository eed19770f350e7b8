"""The smallest world that the trainers can learn from: 4 positions an image, two codebooks, a few hundred words."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import load_text_tokenizer
from tests.train.launching import losses, same, weights
from tests.train.published_weights import dino_weights, lpips_weights, write_merges, write_tar
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok
from train import recipe as recipes
from train.build_model import build_model
from train.recipe import MLLMRecipe, TokenizerRecipe
from train.text_tokenizer import train_from_recipe
from train.trainer import train_mllm

SMALL = (
    {"image_size": 32, "stem_width": 4, "stage_widths": (8, 12), "stage_depths": (1, 1), "width": 24, "depth": 1}
    | {"decoder_depth": 1, "num_heads": 2, "decoder_widths": (12, 8), "decoder_depths": (1, 1), "num_codebooks": 2}
    | {"codebook_size": 16, "code_width": 6, "projection_heads": 2}
)
TEXT_TOWER = {"embed_dim": 8, "text_vocab_size": 517, "text_context": 12, "text_width": 16, "text_heads": 2}
TEXT_TOWER |= {"text_layers": 1}


@pytest.fixture(scope="session")
def image_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("image_tokenizer")
    UniTok(dataclasses.replace(UniTokConfig.tiny(), **SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_tokenizer(image_tokenizer_folder: Path) -> UniTok:
    return UniTok.from_pretrained(image_tokenizer_folder)


@pytest.fixture(scope="session")
def text_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text_tokenizer") / "tokenizer.model"
    train_from_recipe(recipes.TextTokenizerRecipe(output=path, vocab_size=400, dialogues=400))
    return path


@pytest.fixture
def mllm_recipe(tmp_path: Path, image_tokenizer_folder: Path, text_tokenizer_file: Path) -> MLLMRecipe:
    text_config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 512}
    text_config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}}
    trainer = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "warmup_steps": 1, **schedule}
    trainer |= {"bf16": False, "dataloader_num_workers": 0, "disable_tqdm": True}
    return MLLMRecipe(
        output=tmp_path / "run",
        image_tokenizer=image_tokenizer_folder,
        text_tokenizer=text_tokenizer_file,
        model={"text_config": text_config, "embedder_width": 16, "embedder_heads": 2, "head_layers": 1},
        data=recipes.MLLMData(episodes=20, jobs={"draw": 2.0, "ask": 1.0, "edit": 1.0, "depth": 0.5}),
        length=320,
        rows=2,
        optimizer=recipes.OptimizerRecipe(learning_rate=3e-3),
        ema_decay=0.9,
        trainer=trainer,
    )


def everything(folder: Path, output: Path, **changes: Any) -> TokenizerRecipe:
    """A small tokenizer training with every loss on, and its files; the discriminator enters at step 3 of 8."""
    torch.save(lpips_weights(), folder / "lpips_with_vgg.pth")
    torch.save(dino_weights(), folder / "dinov2_vits14_pretrain.pth")
    for shard in range(4):
        write_tar(folder / f"{shard:02d}.tar", range(10 * shard, 10 * shard + 5 + shard))
    adversarial: dict[str, Any] = {"dino": folder / "dinov2_vits14_pretrain.pth", "blocks": (0, 2)}
    adversarial |= {"start": 0.25, "warmup": 0.25, "fade": 0.5}
    settings: dict[str, Any] = {
        **{"steps": 8, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "no"},
        **{"num_workers": 0, "log_every": 1, "save_every": 2, "sheet_every": 8, "keep_checkpoints": 10},
        "lpips": folder / "lpips_with_vgg.pth",
        "text_tokenizer": write_merges(folder / "merges.txt.gz"),
        "shards": recipes.ShardsRecipe(urls=f"{folder}/{{00..03}}.tar", shuffle_shards=2),
        "architecture": {**SMALL, **TEXT_TOWER},
        "loss": recipes.TokenizerLossWeights(perceptual=1.0, entropy=0.1, contrastive=1.0),
        "adversarial": recipes.AdversarialRecipe(weight=0.4, **adversarial),
        "codebooks": recipes.CodebookSchedule(initialise_at=2, every=2, threshold=0.95),
    }
    return TokenizerRecipe(output=output, **{**settings, **changes})


def build(recipe: MLLMRecipe, image_tokenizer: UniTok | None = None) -> MLLMForConditionalGeneration:
    image_tokenizer = image_tokenizer or UniTok.from_pretrained(recipe.image_tokenizer)
    return build_model(recipe, load_text_tokenizer(recipe.text_tokenizer), image_tokenizer)


def check_resumed(recipe: MLLMRecipe, *lost: str) -> None:
    """Training again without these folders gives the losses and weights that are there."""
    whole, final = losses(recipe.output), weights(recipe.output / "final")
    for name in (*lost, "final"):
        shutil.rmtree(recipe.output / name)
    train_mllm(recipe)
    assert losses(recipe.output) == whole and same(weights(recipe.output / "final"), final)
