"""What the round trip of the world's images says about codebooks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm.evaluation.world import highest_perplexity, plain_patches, score_round_trip
from tokenizer.metrics import entropy_of
from tokenizer.unitok import UniTok


def test_patches_of_one_color_are_plain() -> None:
    pixels_B3HW = torch.zeros(1, 3, 4, 6)
    pixels_B3HW[0, 1, :2, 2:4] = 0.5  # the second patch of the first row is plain as well
    pixels_B3HW[0, 2, 3, 5] = -1.0
    is_plain_M, color_M3 = plain_patches(pixels_B3HW, 2)
    assert is_plain_M.tolist() == [True, True, True, True, True, False]
    assert color_M3[1].tolist() == [0.0, 0.5, 0.0] and color_M3[0].tolist() == [0.0, 0.0, 0.0]


def test_the_highest_perplexity_fills_up_the_rarest_entries() -> None:
    for fixed, total, counts in (
        ([], 12, [4, 4, 4]),
        ([9], 12, [9, 1, 1, 1]),
        ([9, 1], 14, [9, 5 / 3, 5 / 3, 5 / 3]),
        ([9, 4], 14, [9, 4, 0.5, 0.5]),
        ([1, 1, 1], 3, [1, 1, 1]),
    ):
        expected = float(entropy_of(torch.tensor([counts]))[0].exp())
        assert highest_perplexity(fixed, total, len(counts)) == pytest.approx(expected, rel=1e-5)
    assert highest_perplexity([1, 1, 1], 3, 2) == 2.0, "more colors than entries bound nothing"


def test_the_bundled_codebooks_are_used_evenly_where_there_is_something_to_see() -> None:
    folder = Path(__file__).parents[3] / "mllm/assets/tiny/image_tokenizer"
    tokenizer = UniTok.from_pretrained(folder)
    result = score_round_trip(tokenizer, count=60, seed=1)
    assert result["scenes_read_right"] >= 59 / 60 and result["psnr"] > 31
    assert max(result["perplexity"]) <= result["highest_perplexity"] < 20
    assert min(result["perplexity_of_borders"]) > 48 and 0.6 < result["plain_share"] < 0.8
    wide = score_round_trip(tokenizer, count=8, seed=1, size=(320, 256))
    assert wide["scenes_read_right"] == 1.0
    whole = UniTok(replace(tokenizer.config, encoder_scope="image")).eval()
    assert score_round_trip(whole, count=2, seed=1)["highest_perplexity"] is None
