"""`mllm prepare --show`: what is learned is marked, and the images are those of the codes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import Marker, Message, Segment, TextPart, render
from tests.train.data.raw_data import document, load, pair, prepared
from tokenizer.images import to_images
from train.data.mixture import choose_sample
from train.data.prepare import GREEN, PLAIN, as_text
from train.data.records import Record
from train.data.shards import CodeSource


def test_learned_parts_are_marked() -> None:
    segments = [Segment(Marker.BOS), Segment("USER: hi ASSISTANT:"), Segment(" hello", True), Segment(Marker.EOS, True)]
    segments.append(Segment("USER: bye ASSISTANT:"))
    for in_color, begin, end in ((False, "[[", "]]"), (True, GREEN, PLAIN)):
        expected = f"<s>USER: hi ASSISTANT:{begin} hello</s>{end}USER: bye ASSISTANT:"
        assert as_text(segments, in_color=in_color) == expected


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
    assert main(["prepare", *words]) == 2 and "must be those of" in capsys.readouterr().err


def test_each_kind_is_learned_in_its_way() -> None:
    source = CodeSource("any", 2, 16)

    def shown(record: Record, style: str = "native", **options: float) -> str:
        messages = choose_sample(record, Random(0), **{"prompt_dropout": 0.0, "describe_share": 0.0, **options})
        return as_text(render(messages, style), in_color=False)

    record = pair(["a circle"], source, 1)
    assert shown(record, describe_share=1.0) == "<s>USER:<image 1: 2 x 2> ASSISTANT:[[ a circle</s>]]"
    assert shown(record, prompt_dropout=1.0) == "<s>USER: <unconditional> ASSISTANT:[[<image 1: 2 x 2></s>]]"
    assert shown(document("once"), "unitok", prompt_dropout=1.0) == "<s>[[ once</s>]]"
    labelled = dataclasses.replace(pair(["3"], source, 1), kind="class")
    assert shown(labelled, "class") == "<class 3>[[<image 1: 2 x 2>]]"
    with pytest.raises(ValueError):
        shown(dataclasses.replace(record, kind="poem"))


def test_plans_and_sizes_are_shown_and_nothing_is_dropped() -> None:
    part = dataclasses.replace(pair(["x"], CodeSource("any", 2, 16), 1).messages[1].parts[0], plan="red circle 1")
    drawn = [Message("user", (TextPart("draw"),)), Message("assistant", (part,))]
    text = as_text(render(drawn, "native"), in_color=False)
    assert "<plan>" in text and "<size 2 x 2>" in text and "red circle 1" in text
    with pytest.raises(TypeError):
        as_text([Segment(3.5)], in_color=False)


def test_the_short_caption_is_taken_one_time_in_five() -> None:
    row = pair(["short", "a long one"], CodeSource("any", 2, 16), 1)
    options = {"prompt_dropout": 0.0, "describe_share": 0.0}
    taken = [choose_sample(row, Random(number), **options)[0].parts[0].text for number in range(1000)]
    assert set(taken) == {"short", "a long one"} and abs(taken.count("short") - 200) < 40


def test_samples_made_from_the_world_are_the_same_again(tmp_path: Path) -> None:
    from train.data.make_samples import main as make_samples

    for name in ("one", "two"):
        assert make_samples([str(tmp_path / name), "--count", "3", "--size", "16"]) == 0
    one, two = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [path.relative_to(tmp_path / "two") for path in two]
    same = [first.read_bytes() == second.read_bytes() for first, second in zip(one, two, strict=True)]
    assert len(same) > 20 and all(same)
    with pytest.raises(ValueError):
        make_samples([str(tmp_path / "one")])
