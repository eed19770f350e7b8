"""Recipes of small tokenizer trainings with every loss on, as objects and as files for other processes."""

from pathlib import Path
from typing import Any

import torch

from tests.train.conftest import SMALL
from tests.train.published_weights import dino_weights, lpips_weights, write_merges, write_tar
from train.recipe import (
    AdversarialRecipe,
    CodebookSchedule,
    ShardsRecipe,
    TokenizerLossWeights,
    TokenizerRecipe,
)

TEXT_TOWER = {"embed_dim": 8, "text_vocab_size": 517, "text_context": 12, "text_width": 16, "text_heads": 2}
TEXT_TOWER |= {"text_layers": 1}


def write_world_of_files(folder: Path) -> dict[str, Any]:
    """Weights, merges and four shards in a folder; returns the fields of a recipe that name them."""
    torch.save(lpips_weights(), folder / "lpips_with_vgg.pth")
    torch.save(dino_weights(), folder / "dinov2_vits14_pretrain.pth")
    for shard in range(4):
        write_tar(folder / f"{shard:02d}.tar", range(10 * shard, 10 * shard + 5 + shard))
    return {
        "lpips": folder / "lpips_with_vgg.pth",
        "text_tokenizer": write_merges(folder / "merges.txt.gz"),
        "shards": ShardsRecipe(urls=f"{folder}/{{00..03}}.tar", shuffle_shards=2),
    }


def everything(folder: Path, output: Path, **changes: Any) -> TokenizerRecipe:
    """Every loss on; the discriminator comes in at the third of eight steps."""
    settings: dict[str, Any] = {
        **write_world_of_files(folder),
        "architecture": {**SMALL, **TEXT_TOWER},
        "steps": 8,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "loss": TokenizerLossWeights(perceptual=1.0, entropy=0.1, contrastive=1.0),
        "adversarial": AdversarialRecipe(
            weight=0.4, dino=folder / "dinov2_vits14_pretrain.pth", blocks=(0, 2), start=0.25, warmup=0.25, fade=0.5
        ),
        "codebooks": CodebookSchedule(initialise_at=2, every=2, threshold=0.95),
        "precision": "no",
        "num_workers": 0,
        "log_every": 1,
        "save_every": 2,
        "sheet_every": 8,
        "keep_checkpoints": 10,
    }
    return TokenizerRecipe(output=output, **{**settings, **changes})
