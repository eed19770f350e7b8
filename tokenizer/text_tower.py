"""Captions to ids, and ids to one feature vector per caption: the text half of CLIP (arXiv:2103.00020).

Letters: B batch, T text positions, D hidden width.
"""

import gzip
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tokenizer.config import UniTokConfig
from tokenizer.layers import SelfAttention

EncodeCaptions = Callable[[Sequence[str]], Tensor]  # captions to ids (B, T)

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 49152 - 256 - 2  # of the 262 thousand in OpenAI's file; 49408 ids in all


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
            raise ValueError(f"captions must have at most {longest} ids, got {num_positions}; truncate them")
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


@dataclass(frozen=True)
class CaptionEncoder:
    """Ids of captions: pieces, the end, zeros. Captions that are too long are cut before the end. CLIP's byte pairs
    begin with a start token; text is lower-cased, HTML entities are resolved twice, white space is collapsed, and
    broken encodings (mojibake) are not repaired. SentencePiece sees the caption as it is."""

    pieces: CLIPTokenizer | SentencePieceProcessor
    end_id: int
    context: int  # T: ids per caption

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if isinstance(self.pieces, CLIPTokenizer):
            cleaned = [" ".join(html.unescape(html.unescape(caption)).split()) for caption in captions]
            rows = self.pieces(cleaned, add_special_tokens=False)["input_ids"]
            rows = [[self.pieces.bos_token_id, *row] for row in rows]
        else:
            rows = self.pieces.encode(list(captions))
        ids_BT = torch.zeros(len(rows), self.context, dtype=torch.int64)
        for ids_T, row in zip(ids_BT, rows, strict=True):
            kept = [*row[: self.context - 1], self.end_id]
            ids_T[: len(kept)] = torch.tensor(kept)
        return ids_BT


def load_captions(path: Path, *, vocab_size: int, context: int) -> EncodeCaptions:
    """The caption encoder of a vocabulary, by the kind of its file: a SentencePiece model (`.model`), OpenAI's list of
    merges (`bpe_simple_vocab_16e6.txt.gz`, as open_clip and UniTok ship it), or a folder with `vocab.json` and
    `merges.txt` of a CLIP model. `vocab_size`: ids of the text tower; with SentencePiece, the last ends a caption."""
    if not path.exists():
        raise FileNotFoundError(f"{path} must be a text vocabulary, got no such file; correct text_tokenizer")
    if path.suffix == ".model":
        sentences = SentencePieceProcessor(model_file=str(path))
        encoder, num_ids = CaptionEncoder(sentences, vocab_size - 1, context), sentences.vocab_size() + 1
    else:
        pairs = CLIPTokenizer.from_pretrained(path) if path.is_dir() else read_merges(path)
        encoder, num_ids = CaptionEncoder(pairs, pairs.eos_token_id, context), len(pairs)
    if num_ids > vocab_size:
        raise ValueError(f"architecture.text_vocab_size must be >= {num_ids} for {path}, got {vocab_size}")
    return encoder


def read_merges(path: Path) -> CLIPTokenizer:
    """OpenAI's file: a line of comment, then one merge a line, the most frequent first."""
    if not path.name.endswith((".txt", ".txt.gz")):
        raise ValueError(f"a text vocabulary must be a .model, .txt or .txt.gz file or a folder, got {path}")
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1] if line]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f"each line of {path} must have two pieces, got others; give bpe_simple_vocab_16e6.txt.gz")
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges), BEGIN, END]
    vocab: dict[str, Any] = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=cast(Any, merges))  # its type leaves pairs out
