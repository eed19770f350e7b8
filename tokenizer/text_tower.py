"""Captions to one feature vector each: the text half of CLIP (arXiv:2103.00020).

Comes in: padded token ids. Goes out: features in the space shared with pictures. Knows no text, only ids.

Letters: B batch, T text positions, D hidden width.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tokenizer.config import UniTokConfig
from tokenizer.layers import SelfAttention


class TextBlock(nn.Module):
    """Pre-norm causal attention and a 4 times wider GELU MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, num_heads, causal=True)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.attn(self.norm1(hidden_BTD))
        return hidden_BTD + self.narrow(F.gelu(self.widen(self.norm2(hidden_BTD))))


class TextTower(nn.Module):
    """Causal transformer; the caption's feature is its hidden state at the end token."""

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__()
        self.end_id = config.text_end_id
        self.token_embedding = nn.Embedding(config.text_vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.text_context, config.text_width))
        self.blocks = nn.ModuleList(TextBlock(config.text_width, config.text_heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(config.text_width)
        self.projection = nn.Parameter(torch.empty(config.text_width, config.embed_dim))

    def forward(self, text_ids_BT: Tensor) -> Tensor:
        num_positions = text_ids_BT.shape[1]
        longest = self.positional_embedding.shape[0]
        if num_positions > longest:
            raise ValueError(f"captions are too long; got {num_positions} ids, the limit is {longest}; truncate them")
        hidden_BTD = self.token_embedding(text_ids_BT) + self.positional_embedding[:num_positions]
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        end_B = self.end_positions(text_ids_BT)
        hidden_BD = hidden_BTD[torch.arange(len(end_B), device=end_B.device), end_B]
        return self.norm(hidden_BD) @ self.projection

    def end_positions(self, text_ids_BT: Tensor) -> Tensor:
        """Where each caption ends: its first end token, or its largest id where the config names none (CLIP)."""
        if self.end_id is None:
            return text_ids_BT.argmax(dim=-1)
        return (text_ids_BT == self.end_id).int().argmax(dim=-1)


# Captions to ids for the text tower: the largest id of a row ends the caption, zeros follow.
#
# Comes in: text, and the file of a text vocabulary. Goes out: ids (B, T). Knows no pictures and no weights.
#
# Letters: B batch, T text positions.


EncodeCaptions = Callable[[Sequence[str]], Tensor]
"""Captions to ids (B, T)."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 49152 - 256 - 2  # of the 262 thousand in OpenAI's file; 49408 ids in all


class ClipCaptions:
    """OpenAI's byte pairs, as CLIP and UniTok use them: begin, pieces, end; too long ones lose their tail.

    Lower case, HTML entities resolved twice, white space collapsed. Broken encodings (mojibake) are not repaired.
    """

    def __init__(self, pieces: CLIPTokenizer, *, context: int) -> None:
        self.pieces = pieces
        self.context = context

    @property
    def end_id(self) -> int:
        return self.pieces.eos_token_id

    def __call__(self, captions: Sequence[str]) -> Tensor:
        cleaned = [" ".join(html.unescape(html.unescape(caption)).split()) for caption in captions]
        rows = self.pieces(cleaned, add_special_tokens=False)["input_ids"]
        return pad([[self.pieces.bos_token_id, *row] for row in rows], end_id=self.end_id, context=self.context)


class SentencePieceCaptions:
    """Pieces of a SentencePiece model; the end is the largest id of the text tower, above all pieces."""

    def __init__(self, model_file: Path, *, vocab_size: int, context: int) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.context = context
        self.end_id = vocab_size - 1
        if self.pieces.vocab_size() > self.end_id:
            raise ValueError(
                f"the text tower has {vocab_size} ids but {model_file} has {self.pieces.vocab_size()} pieces and one "
                "more is needed for the end of text; raise text_vocab_size"
            )

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return pad(self.pieces.encode(list(captions)), end_id=self.end_id, context=self.context)


def pad(rows: Sequence[Sequence[int]], *, end_id: int, context: int) -> Tensor:
    """Rows of ids to one tensor: cut where needed, ended, filled with zeros."""
    ids_BT = torch.zeros(len(rows), context, dtype=torch.int64)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        kept = [*row[: context - 1], end_id]
        ids_T[: len(kept)] = torch.tensor(kept)
    return ids_BT


def load_captions(path: Path, *, vocab_size: int, context: int) -> EncodeCaptions:
    """The vocabulary in a file, by its kind.

    Args:
        path: a SentencePiece model (`.model`), OpenAI's list of merges (`bpe_simple_vocab_16e6.txt.gz`, as open_clip
            and UniTok ship it), or a folder with `vocab.json` and `merges.txt` of a CLIP model.
        vocab_size: ids that the text tower has.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no text vocabulary {path}; train it or mend text_tokenizer")
    if path.suffix == ".model":
        return SentencePieceCaptions(path, vocab_size=vocab_size, context=context)
    pieces = CLIPTokenizer.from_pretrained(path) if path.is_dir() else read_merges(path)
    if len(pieces) > vocab_size:
        raise ValueError(
            f"the text tower has {vocab_size} ids but {path} has {len(pieces)}; set architecture.text_vocab_size"
        )
    return ClipCaptions(pieces, context=context)


def read_merges(path: Path) -> CLIPTokenizer:
    """OpenAI's file: a line of comment, then one merge a line, the most frequent first."""
    if not path.name.endswith((".txt", ".txt.gz")):
        raise ValueError(
            f"a text vocabulary is a .model, .txt or .txt.gz file or a folder; found {path}; give one of them"
        )
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1] if line]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(
            f"{path} is not a list of merges; a line has not two pieces; give bpe_simple_vocab_16e6.txt.gz"
        )
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges), BEGIN, END]
    return CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges)
