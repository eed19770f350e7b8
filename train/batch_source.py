"""Which packed batches a recipe trains on, and which it is measured on. Item b of a data set is batch b."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.sizes import trained_grids
from mllm.world.outline import check_grid
from tokenizer.model import UniTok
from train.class_recipe import ClassData
from train.data.class_batches import ClassBatches
from train.data.class_source import check_guidance, open_class_codes
from train.data.packed_batches import PackedBatches
from train.data.shard_batches import shard_batches
from train.data.world_codes import EpisodeSet, WorldCodes
from train.data.world_sequences import WorldBatches
from train.mllm_recipe import MLLMData, MLLMRecipe, ShardSource, WorldData

HELD_OUT_EPISODES = 64
HELD_OUT_SEED = 7_777_777
"""Added to the seed of the data: other scenes, other wordings."""


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """What turns samples into sequences."""

    text: PreTrainedTokenizerBase
    image: UniTok
    config: MLLMConfig


def training_batches(recipe: MLLMRecipe, tokenizers: Tokenizers, *, num_batches: int) -> Dataset:
    """The batches of a whole run, over all processes and accumulation steps."""
    if recipe.classes.is_given:
        check_guidance(recipe.classes, tokenizers.config)
        return class_batches(recipe, recipe.classes, tokenizers, folder="class_codes", num_batches=num_batches)
    if recipe.data.shards:
        return prepared_batches(recipe, recipe.data, recipe.data.shards, tokenizers, num_batches=num_batches)
    codes = encode_world(recipe, recipe.data, tokenizers, folder="codes")
    return world_batches(recipe, recipe.data, codes, tokenizers, num_batches=num_batches)


def validation_batches(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Held-out batches by task; none where the recipe does not measure."""
    if recipe.validation is None:
        return {}
    if recipe.classes.is_given:
        return class_validation(recipe, tokenizers)
    if recipe.data.shards:
        return prepared_validation(recipe, tokenizers)
    data = dataclasses.replace(
        recipe.data,
        episodes=HELD_OUT_EPISODES,
        dense_every=1,
        seed=recipe.data.seed + HELD_OUT_SEED,
        prompt_dropout=0.0,
    )
    codes = encode_world(recipe, data, tokenizers, folder="codes-validation")
    return {
        job: world_batches(
            recipe,
            dataclasses.replace(data, jobs={job: 1.0}),
            codes,
            tokenizers,
            num_batches=recipe.validation.batches,
        )
        for job in data.jobs
    }


def world_batches(
    recipe: MLLMRecipe, data: WorldData, codes: WorldCodes, tokenizers: Tokenizers, *, num_batches: int
) -> WorldBatches:
    """Batches of the synthetic world."""
    return WorldBatches(
        data,
        codes,
        tokenizer=tokenizers.text,
        config=tokenizers.config,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=num_batches,
    )


def class_batches(
    recipe: MLLMRecipe, data: ClassData, tokenizers: Tokenizers, *, folder: str, num_batches: int
) -> ClassBatches:
    """Batches of pictures by class; the world's are encoded into `folder` of the run."""
    codes = open_class_codes(
        data,
        recipe.output / folder,
        image_tokenizer=tokenizers.image,
        config=tokenizers.config,
    )
    return ClassBatches(
        codes,
        data,
        tokenizer=tokenizers.text,
        config=tokenizers.config,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=num_batches,
    )


def class_validation(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Held-out pictures of the world's classes. Folders name no held-out pictures."""
    assert recipe.validation is not None, "asked for by the recipe"
    if recipe.classes.folders:
        raise ValueError(
            f"validation has no pictures of these classes: found classes.folders {recipe.classes.folders}; "
            "leave validation out"
        )
    held_out = dataclasses.replace(
        recipe.classes,
        world_pictures=HELD_OUT_EPISODES,
        class_dropout=0.0,
        seed=recipe.classes.seed + HELD_OUT_SEED,
    )
    folder, num_batches = "class_codes-validation", recipe.validation.batches
    return {"draw_class": class_batches(recipe, held_out, tokenizers, folder=folder, num_batches=num_batches)}


def prepared_batches(
    recipe: MLLMRecipe,
    data: MLLMData,
    sources: Sequence[ShardSource],
    tokenizers: Tokenizers,
    *,
    num_batches: int,
    keeps_notes: bool = True,
) -> PackedBatches:
    """Batches of prepared folders."""
    return shard_batches(
        sources,
        data,
        image_tokenizer=tokenizers.image,
        text_tokenizer=tokenizers.text,
        config=tokenizers.config,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=num_batches,
        notes=recipe.output / "packing" if keeps_notes else None,
    )


def prepared_validation(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Batches of the prepared folders that are held out, each by its name."""
    assert recipe.validation is not None, "asked for by the recipe"
    data = dataclasses.replace(recipe.data, prompt_dropout=0.0, lanes=1)
    num_batches = recipe.validation.batches
    return {
        Path(source.path).name: prepared_batches(
            recipe, data, [source], tokenizers, num_batches=num_batches, keeps_notes=False
        )
        for source in recipe.validation.shards
    }


def encode_world(recipe: MLLMRecipe, data: WorldData, tokenizers: Tokenizers, *, folder: str) -> WorldCodes:
    """The codes of the world's pictures; the first process encodes what is missing, the others wait."""
    grids = trained_grids(tokenizers.config)
    for grid in grids if data.outlines else ():
        check_grid(grid)
    episodes = EpisodeSet(
        num_episodes=data.episodes,
        dense_every=data.dense_every,
        seed=data.seed,
        grids=grids,
        centred_digits=data.outline_digits if data.centred else None,
    )
    codes = WorldCodes(recipe.output / folder, episodes)
    with PartialState().main_process_first():
        codes.encode_missing(tokenizers.image)
    return codes
