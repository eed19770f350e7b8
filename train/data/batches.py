"""Which packed batches a recipe trains on, and which it is measured on. Item b of a data set is batch b."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import Dataset

from mllm.sequence import trained_grids
from mllm.world.plan import check_grid
from tokenizer.codes import fingerprint
from train.data.classes import ClassSequences, WorldClasses, check_guidance
from train.data.mixture import Mixture, ShardSequences
from train.data.packing import BatchShape, PackedBatches, PackingBuffer, SequenceSource, Tokenizers
from train.data.shards import CodeSource, ShardFolder
from train.data.world import BlankCodes, ConversationSet, EpisodeSet, WorldSequences, encode_rendered
from train.recipe import ClassData, MLLMData, MLLMRecipe, ShardSource, WorldData

HELD_OUT_EPISODES = 64
HELD_OUT_SEED = 7_777_777  # added to the seed of the data: other scenes, other wordings


def training_batches(recipe: MLLMRecipe, tokenizers: Tokenizers, *, num_batches: int) -> Dataset:
    """The batches of a whole run, over all processes and accumulation steps."""
    shape, checkpoints = BatchShape(recipe.rows, recipe.length), None
    if recipe.classes.is_given:
        check_guidance(recipe.classes, tokenizers.config)
        sequences: SequenceSource = class_sequences(recipe.classes, recipe.output / "class_codes", tokenizers, shape)
    elif recipe.data.shards:
        sequences = shard_sequences(recipe.data, recipe.data.shards, tokenizers, shape)
        checkpoints = recipe.output / "packing" / packing_fingerprint(sequences)
    else:
        check_length(recipe.data, tokenizers, recipe.length)
        episodes, folder = encode_world(recipe.data, recipe.output / "codes", tokenizers)
        talk, talk_folder = world_conversations(recipe.data, tokenizers), recipe.output / "codes-conversations"
        coded_talk = None
        if talk is not None:
            coded_talk = talk, encode_rendered(talk, talk_folder, tokenizers.image, in_memory=True)
        sequences = WorldSequences(recipe.data, episodes, folder, tokenizers, shape, conversations=coded_talk)
    return PackedBatches(sequences, num_batches=num_batches, checkpoints=checkpoints)


def validation_batches(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Held-out batches by task; none where the recipe does not measure."""
    wanted, shape, sources = recipe.validation, BatchShape(recipe.rows, recipe.length), dict[str, SequenceSource]()
    if wanted is None:
        return {}
    if recipe.classes.is_given:
        if recipe.classes.folders:
            raise ValueError(
                "validation must be left out where classes.folders are given, as no image of them is held out; "
                "remove it from the recipe"
            )
        seed = recipe.classes.seed + HELD_OUT_SEED
        classes = replace(recipe.classes, world_images=HELD_OUT_EPISODES, class_dropout=0.0, seed=seed)
        sources["draw_class"] = class_sequences(classes, recipe.output / "class_codes-validation", tokenizers, shape)
    elif recipe.data.shards:
        mixed = replace(recipe.data, prompt_dropout=0.0, packing_buffers=1)
        for source in wanted.shards:
            sources[Path(source.path).name] = shard_sequences(mixed, [source], tokenizers, shape)
    else:
        seed = recipe.data.seed + HELD_OUT_SEED
        data = replace(recipe.data, episodes=HELD_OUT_EPISODES, dense_every=1, seed=seed, prompt_dropout=0.0)
        episodes, codes = encode_world(data, recipe.output / "codes-validation", tokenizers)
        for job in data.jobs:
            alone = replace(data, jobs={job: 1.0}, conversations={})
            sources[job] = WorldSequences(alone, episodes, codes, tokenizers, shape)
    return {task: PackedBatches(source, num_batches=wanted.batches) for task, source in sources.items()}


def class_sequences(data: ClassData, world_folder: Path, tokenizers: Tokenizers, shape: BatchShape) -> ClassSequences:
    """Images by class of the folders that the recipe names, or of the world, encoded into `world_folder`."""
    folders = _open(data.folders, tokenizers)
    if not folders:
        records = WorldClasses(count=data.world_images, size=tokenizers.image.config.image_size, seed=data.seed)
        ClassSequences(data, [BlankCodes(records, tokenizers.config)], tokenizers, shape)  # refuses a short length
        folders = [encode_rendered(records, world_folder, tokenizers.image)]
    return ClassSequences(data, folders, tokenizers, shape)


def check_length(data: WorldData, tokenizers: Tokenizers, length: int) -> None:
    """Draw a few samples, to refuse a length that none of them fits before their images are encoded."""
    episodes, talk = world_episodes(data, tokenizers), world_conversations(data, tokenizers)
    blank = BlankCodes(episodes, tokenizers.config, grid_of=episodes.grid_of)
    blank_talk = None if talk is None else (talk, BlankCodes(talk, tokenizers.config))
    drawn = WorldSequences(data, episodes, blank, tokenizers, BatchShape(1, length), conversations=blank_talk)
    drawn.refill(PackingBuffer(0))


def encode_world(data: WorldData, folder: Path, tokenizers: Tokenizers) -> tuple[EpisodeSet, ShardFolder]:
    episodes = world_episodes(data, tokenizers)
    return episodes, encode_rendered(episodes, folder, tokenizers.image, in_memory=True)


def world_episodes(data: WorldData, tokenizers: Tokenizers) -> EpisodeSet:
    grids = trained_grids(tokenizers.config)
    for grid in grids if data.plans else ():
        check_grid(grid)
    return EpisodeSet(
        num_episodes=data.episodes,
        dense_every=data.dense_every,
        seed=data.seed,
        grids=grids,
        patch_size=tokenizers.image.config.patch_size,
        centred_digits=data.plan_digits if data.centred else None,
    )


def world_conversations(data: WorldData, tokenizers: Tokenizers) -> ConversationSet | None:
    """Some conversations in people's words, where the recipe has any."""
    if not data.conversations:
        return None
    return ConversationSet(
        weights=data.conversations,
        count=data.conversation_images,
        seed=data.seed,
        digits=data.plan_digits,
        side=tokenizers.config.grid_side,
        patch_size=tokenizers.image.config.patch_size,
    )


def shard_sequences(
    data: MLLMData, sources: Sequence[ShardSource], tokenizers: Tokenizers, shape: BatchShape
) -> ShardSequences:
    """A mixture of prepared folders. Raises ValueError: a folder of another image tokenizer, of another version, or
    incomplete."""
    paths = [each.path if "://" in each.path else (data.root or Path()) / each.path for each in sources]
    folders = _open(paths, tokenizers)
    mixture = Mixture(folders, [source.weight for source in sources], seed=data.seed)
    return ShardSequences(mixture, data, tokenizers, shape)


def _open(paths: Sequence[str | Path], tokenizers: Tokenizers) -> list[ShardFolder]:
    folders = [ShardFolder(path) for path in paths]
    for folder in folders:
        folder.require_tokenizer(CodeSource.of(tokenizers.image))
    return folders


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
