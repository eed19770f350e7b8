"""Captions to one feature vector each: the text half of CLIP (arXiv:2103.00020).

Comes in: padded token ids. Goes out: features in the space shared with pictures. Knows no text, only ids.

Letters: B batch, T text positions, D hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
