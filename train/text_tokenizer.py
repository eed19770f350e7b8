"""Train a Llama-style SentencePiece tokenizer: BPE, byte fallback, digits apart, Llama's ids for unk, bos and eos."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece


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
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"the text tokenizer cannot be trained with {vocab_size} pieces: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
