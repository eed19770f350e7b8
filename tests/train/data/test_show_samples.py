"""`mllm prepare --show`: what is learned of each kind is marked, and the images are those of the codes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import Message, Segment, TextPart, render
from tests.train.data.raw_data import document, load, pair, prepared
from tokenizer.images import to_images
from train.data.mixture import choose_sample
from train.data.prepare import GREEN, PLAIN, as_text
from train.data.records import Record
from train.data.shards import CodeSource

SOURCE = CodeSource("any", 2, 16)
KEPT = {"prompt_dropout": 0.0, "describe_share": 0.0}


def test_samples_are_printed_with_their_images(
    image_tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load(image_tokenizer_folder)
    code_source = CodeSource.of(tokenizer)
    rows = [pair(["a circle"], code_source, seed=4)]
    out = prepared(tmp_path / "out", [[], rows], code_source)
    words = ["--out", str(out), "--image-tokenizer", str(image_tokenizer_folder), "--show", "2", "--seed", "1"]
    assert main(["prepare", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("from made.tar, 4") == 2 and "ASSISTANT:[[<image 1: 2 x 2></s>]]" in printed
    codes_1KN = torch.from_numpy(rows[0].messages[1].parts[0].codes_KN.astype(np.int64))[None]
    expected = to_images(tokenizer.decode(codes_1KN))[0]
    for number in (1, 2):
        shown = Image.open(out / "samples" / f"sample-{number}-1.png")
        assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert main(["prepare", *words]) == 0
    assert capsys.readouterr().out == printed, "the same seed shows the same samples"
    words[1] = str(prepared(tmp_path / "other", [rows], CodeSource("another", 2, 16)))
    assert main(["prepare", *words]) == 2 and "must have codes of" in capsys.readouterr().err


def test_each_kind_is_learned_in_its_way() -> None:
    def shown(record: Record, style: str = "native", *, in_color: bool = False, **options: float) -> str:
        return as_text(render(choose_sample(record, Random(0), **{**KEPT, **options}), style), in_color=in_color)

    record = pair(["a circle"], SOURCE, 1)
    assert shown(record, describe_share=1.0) == "<s>USER:<image 1: 2 x 2> ASSISTANT:[[ a circle</s>]]"
    assert shown(record, prompt_dropout=1.0) == "<s>USER: <unconditional> ASSISTANT:[[<image 1: 2 x 2></s>]]"
    assert shown(document("once"), "unitok", prompt_dropout=1.0) == "<s>[[ once</s>]]"
    assert shown(document("once"), "unitok", in_color=True) == f"<s>{GREEN} once</s>{PLAIN}"
    assert shown(dataclasses.replace(pair(["3"], SOURCE, 1), kind="class"), "class") == "<class 3>[[<image 1: 2 x 2>]]"
    planned = dataclasses.replace(record.messages[1].parts[0], plan="red circle 1")
    drawn = [Message("user", (TextPart("draw"),)), Message("assistant", (planned,))]
    text = as_text(render(drawn, "native"), in_color=False)
    assert "<plan>" in text and "<size 2 x 2>" in text and "red circle 1" in text
    with pytest.raises(ValueError):
        shown(dataclasses.replace(record, kind="poem"))
    with pytest.raises(TypeError):
        as_text([Segment(3.5)], in_color=False)


def test_the_short_caption_is_taken_one_time_in_five() -> None:
    row = pair(["short", "a long one"], SOURCE, 1)
    taken = [choose_sample(row, Random(number), **KEPT)[0].parts[0].text for number in range(1000)]
    assert set(taken) == {"short", "a long one"} and abs(taken.count("short") - 200) < 40
