"""The fields of a recipe of kind `text_tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRecipe:
    output: Path
    """The SentencePiece model file to write."""
    kind: Literal["text_tokenizer"] = "text_tokenizer"
    vocab_size: int = 640
    """Pieces, the 256 bytes and 3 special tokens among them."""
    dialogues: int = 20_000
    """Dialogues of the synthetic world whose sentences are counted."""
    seed: int = 0
