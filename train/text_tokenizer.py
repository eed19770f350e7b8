"""Train a Llama-style SentencePiece tokenizer: BPE, byte fallback, split digits, Llama's ids for unk, bos and eos."""

import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece

from mllm.conversation import ASSISTANT, UNCONDITIONAL, USER, TextPart
from mllm.files import whole_file
from mllm.world.dialogue import JOBS, make_dialogue, make_episode
from train.data.formats import find_format, read_record
from train.data.prepare import find_files
from train.data.raw_files import read_items
from train.data.records import BadRecord, Record
from train.data.shards import MANIFEST, ShardFolder
from train.recipe import TextTokenizerRecipe

logger = logging.getLogger(__name__)

LIKE_LLAMA: dict[str, Any] = {
    "model_type": "bpe", "byte_fallback": True, "split_digits": True, "character_coverage": 1.0,
    "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1,
    "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,  # a piece of a dialogue must not depend on where it stands
    "num_threads": 1, "minloglevel": 2,
}  # fmt: skip


def train_text_tokenizer(sentences: Iterable[str], path: Path, *, vocab_size: int) -> None:
    """Write a SentencePiece model in which no input is unencodable. Raises ValueError where the sentences are too few
    for `vocab_size` (SentencePiece says how many it can fill)."""
    model, train = io.BytesIO(), sentencepiece.SentencePieceTrainer.train
    try:
        train(sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **LIKE_LLAMA)
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]  # without the place in SentencePiece's source
        reason = reason.partition(" Increase vocab_size or")[0]  # and without the options of its own command
        raise ValueError(f"vocab_size must fit the sentences, got {vocab_size} ({reason}); change it") from None
    with whole_file(path) as unfinished:
        unfinished.write_bytes(model.getvalue())


def train_from_recipe(recipe: TextTokenizerRecipe) -> None:
    """Train on the texts that the recipe names, framed as when they are encoded."""
    sentences = list(record_sentences(recipe.records) if recipe.records else world_sentences(recipe))
    if not sentences:
        raise ValueError(f"records must have texts, got none in {', '.join(map(str, recipe.records))}; name others")
    train_text_tokenizer(sentences, recipe.output, vocab_size=recipe.vocab_size)
    logger.info("%s has %d pieces, learned from %d texts", recipe.output, recipe.vocab_size, len(sentences))


def world_sentences(recipe: TextTokenizerRecipe) -> Iterator[str]:
    """Every text of dialogues of the synthetic world."""
    rng = Random(f"sentences/{recipe.seed}")
    for index in range(recipe.dialogues):
        dialogue = make_dialogue(JOBS[index % len(JOBS)], make_episode(index, seed=recipe.seed), rng)
        for turn in dialogue.turns:
            yield from (f" {part}" for part in turn.parts if isinstance(part, str))
            yield ASSISTANT if turn.role == "user" else USER
    yield from [f" {UNCONDITIONAL}"] * (recipe.dialogues // 10)  # about as often as in training


def record_sentences(sources: list[Path]) -> Iterator[str]:
    """Every text of records, raw or prepared; their images are not read."""
    num_records = 0
    for record in _records(sources):
        num_records += 1
        for message in record.messages:
            yield from (f" {part.text.strip()}" for part in message.parts if isinstance(part, TextPart))
            yield ASSISTANT if message.role == "user" else USER
    yield from [f" {UNCONDITIONAL}"] * (num_records // 10)


def _records(sources: list[Path]) -> Iterator[Record]:
    prepared = [source for source in sources if (source / MANIFEST).is_file()]
    for shards in map(ShardFolder, prepared):
        yield from (shards[index] for index in range(len(shards)))
    for path in find_files([source for source in sources if source not in prepared]):
        layout, folder = find_format(path), path if path.is_dir() else path.parent
        for item in read_items(path):
            if item.is_blank:
                continue
            try:
                yield read_record(layout, item.row(), folder)
            except BadRecord as error:
                raise ValueError(f"{path}, {item.place}: {error}") from error
