"""Best of N on the world: rates and AUROC against plain loops; a perfect judge gains, a contrary one loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.evaluation import world as world_report
from mllm.evaluation.intervals import auroc, auroc_interval
from mllm.evaluation.world import GROUPS, Candidates, as_lines, make_items, measure_best_of, pass_rate
from mllm.pipeline import STRIDE
from mllm.world.dialogue import ImageRef

GROUP, COUNT, SEED = GROUPS[0], 9, 4


def plain_auroc(scores: Sequence[float], is_right: Sequence[bool]) -> float:
    """Every pair of a right and a wrong one."""
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, a_right in zip(scores, is_right, strict=True)
        for b, b_right in zip(scores, is_right, strict=True)
        if a_right and not b_right
    ]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_equals_counting_all_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for size in (2, 7, 40):
        right = [True, False, *(rng.random(size - 2) < 0.3).tolist()]
        scores = (rng.integers(0, levels, size) / levels).tolist()
        assert auroc(scores, right) == pytest.approx(plain_auroc(scores, right), abs=1e-12)


def test_auroc_of_known_cases() -> None:
    assert auroc([0.9, 0.8, 0.1], [True, True, False]) == 1.0
    assert auroc([0.9, 0.8, 0.1], [False, False, True]) == 0.0
    assert auroc([0.5, 0.5], [True, False]) == 0.5
    assert auroc([0.5, 0.6], [True, True]) is None
    assert auroc_interval([([0.5], [True])]) is None
    low, high = auroc_interval([([0.2, 0.9], [False, True]), ([0.8, 0.3], [False, True])] * 5)
    assert low < auroc([0.2, 0.9, 0.8, 0.3], [False, True, False, True]) < high


def test_the_rate_is_that_of_the_best_scored_of_the_first_candidates() -> None:
    items = [Candidates([0.1, 0.9, 0.95], [False, True, False]), Candidates([0.5, 0.4, 0.6], [True, False, True])]
    assert [pass_rate(items, number).passed for number in (1, 2, 3)] == [1, 2, 1]


class Painter:
    """Draws the right picture for every third seed of a request, else a picture of another one."""

    def __init__(self) -> None:
        items = make_items(GROUP, COUNT, seed=SEED)
        self.pictures = {str(item.turns[0].parts[0]): item.turns[1].parts[0] for item in items}
        self.seeds: list[int] = []

    def draw(self, requests: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        self.seeds += seeds
        return [self.picture(request, seed) for request, seed in zip(requests, seeds, strict=True)]

    def picture(self, request: str, seed: int) -> Image.Image:
        found = self.pictures[request]
        assert isinstance(found, ImageRef)
        right = found.render(128)
        return right if ((seed - SEED) // STRIDE) % 3 == 2 else Image.new("RGB", right.size, "white")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_judge_finds_the_right_candidate_and_a_contrary_one_avoids_it(sign: int) -> None:
    painter = Painter()
    measured = measure_best_of(
        painter.draw,
        lambda pictures, requests: [sign * float(np.asarray(picture).std()) for picture in pictures],
        GROUP,
        best_of=(1, 4),
        count=COUNT,
        seed=SEED,
        batch_size=5,
    )
    assert painter.seeds == [SEED + n + j * STRIDE for n in range(COUNT) for j in range(4)]
    rates = {number: values["rate"] for number, values in measured["best_of"].items()}
    assert rates == {"1": 0.0, "4": 1.0 if sign > 0 else 0.0}
    assert measured["any_right"]["4"]["rate"] == 1.0 and measured["candidates"] == 4 * COUNT
    assert measured["auroc"] == measured["auroc_low"] == (1.0 if sign > 0 else 0.0)
    assert "best of 4" in "\n".join(as_lines({"draw": measured}))


def test_the_command_measures_best_of_n(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_report, "CHECKER_COUNT", 20)
    words = ["evaluate", "world", "--device", "cpu", "--count", "2", "--batch-size", "4"]
    assert main([*words, "--jobs", "draw", "--best-of", "1", "2", "--json", str(tmp_path / "a.json")]) == 0
    measured = json.loads((tmp_path / "a.json").read_text())["self_judged"]
    assert set(measured) == {"draw, seen pairs", "draw, held-out pairs"}
    assert measured["draw, seen pairs"]["candidates"] == 4
    printed = capsys.readouterr().out
    assert "best of 2" in printed and "AUROC of its score" in printed
    assert main([*words, "--jobs", "ask", "--best-of", "2"]) == 2
    assert "best of N is for drawing" in capsys.readouterr().err
