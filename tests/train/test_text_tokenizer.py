"""A text tokenizer of records: every text of theirs, framed as in training."""

import json
from pathlib import Path

import pytest
import sentencepiece

from tests.train.data.raw_data import pair, prepared
from train.data.shards import CodeSource
from train.recipe import TextTokenizerRecipe
from train.text_tokenizer import record_sentences, train_from_recipe

CHAT = [
    {"role": "user", "content": [{"type": "image", "path": "no.png"}, {"type": "text", "text": "Which animal?"}]},
    {"role": "assistant", "content": " an octopus "},
]


def test_words_of_records_become_pieces_framed_as_in_training(tmp_path: Path) -> None:
    records, path = tmp_path / "records", tmp_path / "tokenizer.model"
    records.mkdir()
    (records / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    (records / "text.jsonl").write_text(json.dumps({"text": "An octopus has three hearts."}) + "\n")
    said = [" Which animal?", "ASSISTANT:", " an octopus", "USER:", " An octopus has three hearts.", "USER:"]
    assert list(record_sentences([records])) == said
    parts = [pair([text], source := CodeSource("0123", 3, 16), 0) for text in ("a red house", "an old tree")]
    (tmp_path / "a.csv").write_text("file_name,text\na.png,a red house\nb.png,an old tree\n")
    of_shards = list(record_sentences([prepared(tmp_path / "shards", [parts], source)]))
    assert of_shards == list(record_sentences([tmp_path / "a.csv"])), "prepared folders are read like raw records"
    (records / "chat.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 40)
    train_from_recipe(TextTokenizerRecipe(output=path, vocab_size=310, records=[records]))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert pieces.encode(" octopus", out_type=str) == ["\u2581octopus"]
    assert pieces.decode(pieces.encode("a \u00e9clair")) == "a \u00e9clair", "bytes for what no record has"


def test_a_broken_record_is_named_and_so_is_a_file_without_any(tmp_path: Path) -> None:
    for content, said in (("\n", r"got none in .*a\.jsonl"), ('{"text": "x"}\n{"text": 3}\n', "line 2")):
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(ValueError, match=said):
            train_from_recipe(TextTokenizerRecipe(output=tmp_path / "a.model", records=[tmp_path / "a.jsonl"]))
