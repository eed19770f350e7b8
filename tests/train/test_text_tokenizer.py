"""A text tokenizer of records: every text of theirs, framed as in training."""

import json
from pathlib import Path

import pytest
import sentencepiece

from train.recipe import TextTokenizerRecipe
from train.text_tokenizer import record_sentences, train_from_recipe


def write_records(folder: Path, count: int = 40) -> None:
    chat = [
        {"role": "user", "content": [{"type": "image", "path": "no.png"}, {"type": "text", "text": "Which animal?"}]},
        {"role": "assistant", "content": " an octopus "},
    ]
    folder.mkdir()
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(count)))
    (folder / "text.jsonl").write_text(json.dumps({"text": "An octopus has three hearts."}) + "\n")


def test_words_of_records_become_pieces(tmp_path: Path) -> None:
    write_records(tmp_path / "records")
    path = tmp_path / "tokenizer.model"
    train_from_recipe(TextTokenizerRecipe(output=path, vocab_size=310, records=[tmp_path / "records"]))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert pieces.encode(" octopus", out_type=str) == ["\u2581octopus"]
    assert pieces.decode(pieces.encode("a \u00e9clair")) == "a \u00e9clair", "bytes for what no record has"


def test_texts_are_framed_as_in_training(tmp_path: Path) -> None:
    write_records(tmp_path / "records", count=1)
    sentences = list(record_sentences([tmp_path / "records"]))
    assert sentences == [
        " Which animal?",
        "ASSISTANT:",
        " an octopus",
        "USER:",
        " An octopus has three hearts.",
        "USER:",
    ]


def test_a_broken_record_is_named_and_so_is_a_file_without_any(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"got none in .*empty\.jsonl"):
        train_from_recipe(TextTokenizerRecipe(output=tmp_path / "a.model", records=[tmp_path / "empty.jsonl"]))
    write_records(tmp_path / "records")
    with (tmp_path / "records" / "chat.jsonl").open("a") as file:
        file.write('{"messages": 3}\n')
    with pytest.raises(ValueError, match="line 41"):
        list(record_sentences([tmp_path / "records"]))
