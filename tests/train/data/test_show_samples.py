"""`mllm prepare --show`: what is learned is marked, and the pictures are those of the codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import Marker, Segment, render
from tests.train.data.raw_data import document, load, pair, prepared
from tokenizer.images import to_images
from train.data.packing import SampleOptions, sample_of
from train.data.prepare import GREEN, PLAIN, as_text
from train.data.shards import codes_made_by


def test_learned_parts_are_marked() -> None:
    segments = [Segment(Marker.BOS), Segment("USER: hi ASSISTANT:"), Segment(" hello", True), Segment(Marker.EOS, True)]
    assert as_text(segments, in_color=False) == "<s>USER: hi ASSISTANT:[[ hello</s>]]"
    assert as_text(segments, in_color=True) == f"<s>USER: hi ASSISTANT:{GREEN} hello</s>{PLAIN}"
    later = [*segments, Segment("USER: bye ASSISTANT:")]
    assert as_text(later, in_color=False).endswith("[[ hello</s>]]USER: bye ASSISTANT:")


def test_samples_are_printed_with_their_pictures(
    image_tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load(image_tokenizer_folder)
    codes_of = codes_made_by(tokenizer)
    rows = [pair(["a circle"], codes_of, seed=4)]
    out = prepared(tmp_path / "out", [[], rows], codes_of)
    words = ["--out", str(out), "--image-tokenizer", str(image_tokenizer_folder), "--show", "2", "--seed", "1"]
    assert main(["prepare", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("from made.tar, 4") == 2 and "ASSISTANT:[[<picture 1: 2 x 2></s>]]" in printed
    codes_1KN = torch.from_numpy(rows[0].messages[1].parts[0].codes_KN.astype(np.int64))[None]
    expected = to_images(tokenizer.decode(codes_1KN))[0]
    for number in (1, 2):
        shown = Image.open(out / "samples" / f"sample-{number}-1.png")
        assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert main(["prepare", *words]) == 0
    assert capsys.readouterr().out == printed, "the same seed shows the same samples"


def test_codes_of_another_tokenizer_are_not_shown(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    codes_of = codes_made_by(load(image_tokenizer_folder))
    other = prepared(tmp_path / "other", [[document("x")]], type(codes_of)("another", 2, 16))
    words = ["prepare", "--debug", "--out", str(other), "--image-tokenizer", str(image_tokenizer_folder), "--show", "1"]
    with pytest.raises(ValueError, match="prepared with another image tokenizer"):
        main(words)


def test_each_kind_is_learned_in_its_way(image_tokenizer_folder: Path, tmp_path: Path) -> None:
    from random import Random

    codes_of = codes_made_by(load(image_tokenizer_folder))
    described = sample_of(pair(["a circle"], codes_of, 1), Random(0), SampleOptions(describe_share=1.0))
    assert as_text(render(described, "native"), in_color=False) == (
        "<s>USER:<picture 1: 2 x 2> ASSISTANT:[[ a circle</s>]]"
    )
    dropped = sample_of(pair(["a circle"], codes_of, 1), Random(0), SampleOptions(prompt_dropout=1.0))
    assert as_text(render(dropped, "native"), in_color=False) == (
        "<s>USER: <unconditional> ASSISTANT:[[<picture 1: 2 x 2></s>]]"
    )
    whole = sample_of(document("once"), Random(0), SampleOptions(prompt_dropout=1.0))
    assert as_text(render(whole, "unitok"), in_color=False) == "<s>[[ once</s>]]"


def test_the_short_caption_is_taken_one_time_in_five(image_tokenizer_folder: Path) -> None:
    from random import Random

    row = pair(["short", "a long one"], codes_made_by(load(image_tokenizer_folder)), 1)
    options = SampleOptions(prompt_dropout=0.0)
    taken = [sample_of(row, Random(number), options)[0].parts[0].text for number in range(1000)]
    assert set(taken) == {"short", "a long one"} and abs(taken.count("short") - 200) < 40
    with pytest.raises(ValueError, match="unknown kind of record: found 'poem'"):
        sample_of(type(row)("poem", row.messages, "s", "p"), Random(0), options)


def test_samples_made_from_the_world_are_the_same_again(tmp_path: Path) -> None:
    from train.data.make_samples import main as make_samples

    for name in ("one", "two"):
        assert make_samples([str(tmp_path / name), "--count", "3", "--size", "16"]) == 0
    one, two = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [path.relative_to(tmp_path / "two") for path in two]
    same = [first.read_bytes() == second.read_bytes() for first, second in zip(one, two, strict=True)]
    assert len(same) > 20 and all(same)
    with pytest.raises(ValueError, match="one is not empty; name a new folder"):
        make_samples([str(tmp_path / "one")])
