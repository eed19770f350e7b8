"""Captions: causal attention, and the feature of the end token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tokenizer.config import UniTokConfig
from tokenizer.text_tower import TextTower
from tokenizer.unitok import UniTok


def test_what_follows_the_end_does_not_matter(small_model: UniTok) -> None:
    short = small_model.encode_text(torch.tensor([[1, 7, 30]]))
    padded = small_model.encode_text(torch.tensor([[1, 7, 30, 0, 0, 4]]))
    torch.testing.assert_close(short, padded)
    assert not torch.allclose(short, small_model.encode_text(torch.tensor([[1, 8, 30]])))


def test_end_is_the_largest_id_or_the_named_one(small_config: UniTokConfig) -> None:
    text_ids_BT = torch.tensor([[1, 9, 2, 2, 0], [1, 2, 30, 0, 0]])
    assert TextTower(small_config).end_positions(text_ids_BT).tolist() == [1, 2]
    assert TextTower(replace(small_config, text_end_id=2)).end_positions(text_ids_BT).tolist() == [2, 1]


def test_too_long_captions_are_refused(small_model: UniTok) -> None:
    with pytest.raises(ValueError, match="got 9 ids, the limit is 8"):
        small_model.encode_text(torch.zeros(1, 9, dtype=torch.int64))
