"""Captions become the ids that CLIP's text tower expects, and one feature each."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.published_weights import write_merges
from tokenizer.config import UniTokConfig
from tokenizer.text_tower import TextTower, load_captions
from tokenizer.unitok import UniTok

BEGIN, END = 515, 516  # after 256 letters, 256 letters that end a word, and three merges
THE, CA, T, AMPERSAND = 513, 514, 256 + ord("t") - ord("!"), 256 + ord("&") - ord("!")


def test_what_follows_the_end_does_not_matter(small_model: UniTok) -> None:
    short = small_model.encode_text(torch.tensor([[1, 7, 30]]))
    torch.testing.assert_close(short, small_model.encode_text(torch.tensor([[1, 7, 30, 0, 0, 4]])))
    assert not torch.allclose(short, small_model.encode_text(torch.tensor([[1, 8, 30]])))
    with pytest.raises(ValueError):
        small_model.encode_text(torch.zeros(1, 9, dtype=torch.int64))  # longer than the context


def test_end_is_the_largest_id_or_the_named_one(small_config: UniTokConfig) -> None:
    text_ids_BT = torch.tensor([[1, 9, 2, 2, 0], [1, 2, 30, 0, 0]])
    assert TextTower(small_config).end_positions(text_ids_BT).tolist() == [1, 2]
    assert TextTower(replace(small_config, text_end_id=2)).end_positions(text_ids_BT).tolist() == [2, 1]


def test_merges_are_applied_as_clip_does(tmp_path: Path) -> None:
    path = write_merges(tmp_path / "merges.txt.gz")
    captions = load_captions(path, vocab_size=517, context=9)
    ids_BT = captions(["The  CAT\n", "the &amp;amp; t"])
    assert ids_BT.tolist() == [[BEGIN, THE, CA, T, END, 0, 0, 0, 0], [BEGIN, THE, AMPERSAND, T, END, 0, 0, 0, 0]]
    assert ids_BT.dtype == torch.int64
    cut = load_captions(path, vocab_size=517, context=5)
    assert cut(["the " * 20]).tolist() == [[BEGIN, THE, THE, THE, END]]
    captions.pieces.save_pretrained(tmp_path / "clip")  # type: ignore[attr-defined]
    folder = load_captions(tmp_path / "clip", vocab_size=517, context=9)
    assert torch.equal(folder(["the cat &"]), captions(["the cat &"]))


def test_wrong_vocabularies_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(b"# version\none\n"))
    (tmp_path / "vocabulary.json").write_text("{}")
    for name in ("absent.model", "words.txt.gz", "vocabulary.json"):
        with pytest.raises((FileNotFoundError, ValueError)):
            load_captions(tmp_path / name, vocab_size=1000, context=3)
    with pytest.raises(ValueError):
        load_captions(write_merges(tmp_path / "merges.txt.gz"), vocab_size=516, context=3)
