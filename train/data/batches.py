"""Which packed batches a recipe trains on, and which it is measured on. Item b of a data set is batch b."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from mllm.sequence import trained_grids
from mllm.world.plan import check_grid
from tokenizer.codes import fingerprint
from train.data.classes import ClassSequences, WorldClasses, check_guidance
from train.data.mixture import Mixture, ShardSequences
from train.data.packing import BatchShape, PackedBatches, Tokenizers
from train.data.shards import CodeSource, ShardFolder
from train.data.world import ConversationSet, EpisodeSet, WorldSequences, encode_rendered
from train.recipe import ClassData, MLLMData, MLLMRecipe, ShardSource, WorldData

HELD_OUT_EPISODES = 64
HELD_OUT_SEED = 7_777_777
"""Added to the seed of the data: other scenes, other wordings."""


def training_batches(recipe: MLLMRecipe, tokenizers: Tokenizers, *, num_batches: int) -> Dataset:
    """The batches of a whole run, over all processes and accumulation steps."""
    shape = BatchShape(recipe.rows, recipe.length)
    if recipe.classes.is_given:
        check_guidance(recipe.classes, tokenizers.config)
        sequences = class_sequences(recipe.classes, recipe.output / "class_codes", tokenizers, shape)
        return PackedBatches(sequences, num_batches=num_batches)
    if recipe.data.shards:
        mixed = shard_sequences(recipe.data, recipe.data.shards, tokenizers, shape)
        checkpoints = recipe.output / "packing" / packing_fingerprint(mixed)
        return PackedBatches(mixed, num_batches=num_batches, checkpoints=checkpoints)
    episodes, folder = encode_world(recipe.data, recipe.output / "codes", tokenizers)
    talk = encode_conversations(recipe.data, recipe.output / "codes-conversations", tokenizers)
    sequences = WorldSequences(recipe.data, episodes, folder, tokenizers, shape, conversations=talk)
    return PackedBatches(sequences, num_batches=num_batches)


def validation_batches(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Held-out batches by task; none where the recipe does not measure."""
    validation, shape = recipe.validation, BatchShape(recipe.rows, recipe.length)
    if validation is None:
        return {}
    if recipe.classes.is_given:
        if recipe.classes.folders:
            raise ValueError(
                f"validation must be left out where classes.folders names the images, got {recipe.classes.folders}; "
                "no image of them is held out"
            )
        held_out = dataclasses.replace(
            recipe.classes, world_images=HELD_OUT_EPISODES, class_dropout=0.0, seed=recipe.classes.seed + HELD_OUT_SEED
        )
        sequences = class_sequences(held_out, recipe.output / "class_codes-validation", tokenizers, shape)
        return {"draw_class": PackedBatches(sequences, num_batches=validation.batches)}
    if recipe.data.shards:
        data = dataclasses.replace(recipe.data, prompt_dropout=0.0, packing_buffers=1)
        return {
            Path(source.path).name: PackedBatches(
                shard_sequences(data, [source], tokenizers, shape), num_batches=validation.batches
            )
            for source in validation.shards
        }
    data = dataclasses.replace(
        recipe.data,
        episodes=HELD_OUT_EPISODES,
        dense_every=1,
        seed=recipe.data.seed + HELD_OUT_SEED,
        prompt_dropout=0.0,
    )
    episodes, folder = encode_world(data, recipe.output / "codes-validation", tokenizers)
    return {
        job: PackedBatches(
            WorldSequences(
                dataclasses.replace(data, jobs={job: 1.0}, conversations={}), episodes, folder, tokenizers, shape
            ),
            num_batches=validation.batches,
        )
        for job in data.jobs
    }


def class_sequences(data: ClassData, world_folder: Path, tokenizers: Tokenizers, shape: BatchShape) -> ClassSequences:
    """Images by class of the folders that the recipe names, or of the world, encoded into `world_folder`."""
    folders = [ShardFolder(folder) for folder in data.folders]
    if not folders:
        records = WorldClasses(count=data.world_images, size=tokenizers.image.config.image_size, seed=data.seed)
        folders = [encode_rendered(records, world_folder, tokenizers.image)]
    for folder in folders:
        folder.require_tokenizer(CodeSource.of(tokenizers.image))
    return ClassSequences(data, folders, tokenizers, shape)


def encode_world(
    data: WorldData, folder: Path, tokenizers: Tokenizers, *, num_workers: int = 1
) -> tuple[EpisodeSet, ShardFolder]:
    """The world's episodes and the codes of their images."""
    grids = trained_grids(tokenizers.config)
    for grid in grids if data.plans else ():
        check_grid(grid)
    episodes = EpisodeSet(
        num_episodes=data.episodes,
        dense_every=data.dense_every,
        seed=data.seed,
        grids=grids,
        patch_size=tokenizers.image.config.patch_size,
        centred_digits=data.plan_digits if data.centred else None,
    )
    codes = encode_rendered(episodes, folder, tokenizers.image, num_workers=num_workers, in_memory=True)
    return episodes, codes


def encode_conversations(
    data: WorldData, folder: Path, tokenizers: Tokenizers, *, num_workers: int = 1
) -> tuple[ConversationSet, ShardFolder] | None:
    """Some conversations in people's words and the codes of their images, where the recipe has any."""
    if not data.conversations:
        return None
    records = ConversationSet(
        weights=data.conversations,
        count=data.conversation_images,
        seed=data.seed,
        digits=data.plan_digits,
        side=tokenizers.config.grid_side,
        patch_size=tokenizers.image.config.patch_size,
    )
    return records, encode_rendered(records, folder, tokenizers.image, num_workers=num_workers, in_memory=True)


def shard_sequences(
    data: MLLMData, sources: Sequence[ShardSource], tokenizers: Tokenizers, shape: BatchShape
) -> ShardSequences:
    """A mixture of prepared folders.

    Raises:
        ValueError: a folder of another image tokenizer, of another version, or incomplete.
    """
    folders = [ShardFolder(source.path) for source in sources]
    for folder in folders:
        folder.require_tokenizer(CodeSource.of(tokenizers.image))
    mixture = Mixture(folders, [source.weight for source in sources], seed=data.seed)
    return ShardSequences(mixture, data, tokenizers, shape)


def packing_fingerprint(sequences: ShardSequences) -> str:
    """Of all that decides how samples fall into rows: checkpoints of another packing must not be read."""
    folders, config = sequences.mixture.folders, sequences.tokenizers.config
    decides = {
        "data": repr(sequences.data),
        "shape": sequences.shape,
        "shards": [(folder.names, folder.num_rows.tolist()) for folder in folders],
        "vocabulary": sorted(sequences.tokenizers.text.get_vocab().items()),
        "config": (config.prompt_style, config.image_layout, config.begin_image_id, config.image_token_id),
    }
    return fingerprint([json.dumps(decides)])
