"""Captions become the ids that CLIP's text tower expects."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from tests.train.published_weights import write_merges
from tokenizer.text_tower import load_captions, pad

BEGIN, END = 515, 516  # after 256 letters, 256 letters that end a word, and three merges


def test_merges_are_applied_as_clip_does(tmp_path: Path) -> None:
    captions = load_captions(write_merges(tmp_path / "merges.txt.gz"), vocab_size=517, context=9)
    the, ca, t = 513, 514, 256 + ord("t") - ord("!")
    ids = captions(["The  CAT\n", "the &amp;amp; t"])
    ampersand = 256 + ord("&") - ord("!")
    assert ids.tolist() == [[BEGIN, the, ca, t, END, 0, 0, 0, 0], [BEGIN, the, ampersand, t, END, 0, 0, 0, 0]]
    assert ids.dtype == torch.int64


def test_a_long_caption_is_cut_and_still_ends(tmp_path: Path) -> None:
    captions = load_captions(write_merges(tmp_path / "merges.txt.gz"), vocab_size=517, context=5)
    assert captions(["the " * 20]).tolist() == [[BEGIN, 513, 513, 513, END]]
    assert pad([[7, 8]], end_id=9, context=2).tolist() == [[7, 9]]


def test_a_folder_of_a_clip_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    merges = load_captions(write_merges(tmp_path / "merges.txt.gz"), vocab_size=517, context=9)
    merges.pieces.save_pretrained(tmp_path / "clip")  # type: ignore[attr-defined]
    folder = load_captions(tmp_path / "clip", vocab_size=517, context=9)
    assert torch.equal(folder(["the cat &"]), merges(["the cat &"]))


def test_wrong_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no text vocabulary"):
        load_captions(tmp_path / "absent.model", vocab_size=10, context=3)
    with pytest.raises(ValueError, match="has 517; set architecture.text_vocab_size"):
        load_captions(write_merges(tmp_path / "merges.txt.gz"), vocab_size=10, context=3)
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(b"# version\none\n"))
    with pytest.raises(ValueError, match="a line has not two pieces"):
        load_captions(tmp_path / "words.txt.gz", vocab_size=1000, context=3)
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(ValueError, match="a .model, .txt or .txt.gz file or a folder"):
        load_captions(tmp_path / "vocabulary.json", vocab_size=1000, context=3)
