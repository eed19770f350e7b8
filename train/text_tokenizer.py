"""Train a Llama-style SentencePiece tokenizer: BPE, byte fallback, split digits, Llama's ids for unk, bos and eos."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from random import Random

import sentencepiece

from mllm.conversation import ASSISTANT, UNCONDITIONAL, USER
from mllm.files import whole_file
from mllm.world.dialogue import JOBS, make_dialogue, make_episode
from train.recipe import TextTokenizerRecipe


def train_text_tokenizer(sentences: Iterable[str], path: Path, *, vocab_size: int) -> None:
    """Write a SentencePiece model in which no input is unencodable.

    Raises:
        ValueError: the sentences are too few for `vocab_size` (SentencePiece says how many it can fill).
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # a piece of a dialogue must not depend on where it stands
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"vocab_size must fit the sentences, got {vocab_size} ({error}); change it") from None
    with whole_file(path) as unfinished:
        unfinished.write_bytes(model.getvalue())


def train_world_tokenizer(recipe: TextTokenizerRecipe) -> None:
    """Train on every text of dialogues of the synthetic world, framed as when it is encoded."""
    rng, sentences = Random(f"sentences/{recipe.seed}"), list[str]()
    for index in range(recipe.dialogues):
        dialogue = make_dialogue(JOBS[index % len(JOBS)], make_episode(index, seed=recipe.seed), rng)
        for turn in dialogue.turns:
            sentences += [f" {part}" for part in turn.parts if isinstance(part, str)]
            sentences.append(ASSISTANT if turn.role == "user" else USER)
    sentences += [f" {UNCONDITIONAL}"] * (recipe.dialogues // 10)  # about as often as in training
    train_text_tokenizer(sentences, recipe.output, vocab_size=recipe.vocab_size)
