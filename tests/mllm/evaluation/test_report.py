"""Intervals: what resampling by hand gives, and theory says. Reports: our rows beside the published ones, marks on what
is not comparable, nothing mixed up.
"""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from mllm.cli.main import main
from mllm.evaluation.intervals import Rate, auroc, auroc_interval, mean_with_interval, percent
from mllm.evaluation.protocol import Score, Scores, make_result
from mllm.evaluation.report import make_report, published_tables
from mllm.files import write_json


def test_the_bootstrap_equals_resampling_items_one_by_one() -> None:
    rng = random.Random(0)
    values = [rng.choice([0.0, 0.3, 0.6, 1.0]) for _ in range(211)]
    score = mean_with_interval(values, scale=100)
    means = sorted(100 * sum(rng.choices(values, k=211)) / 211 for _ in range(4000))
    assert score.value == pytest.approx(100 * sum(values) / 211)
    assert score.low == pytest.approx(means[100], abs=0.6) and score.high == pytest.approx(means[3900], abs=0.6)
    assert score.count == 211
    assert mean_with_interval(values, scale=100) == score
    for values in ([1.0] * 9, [1.0]):
        score = mean_with_interval(values, scale=100)
        assert (score.low, score.value, score.high, score.count) == (100.0, 100.0, 100.0, len(values))


def test_rates_have_the_interval_of_wilson() -> None:
    for passed, total in ((0, 3), (3, 3), (480, 500), (17, 40)):
        share, z = passed / total, 1.959964
        middle = (share + z * z / (2 * total)) / (1 + z * z / total)
        half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
        low, high = Rate(passed, total).interval
        assert (low, high) == (pytest.approx(max(0, middle - half), abs=1e-6), pytest.approx(middle + half, abs=1e-6))
    assert str(Rate(480, 500)) == " 96.0 %  (93.9 to 97.4, n = 500)" and str(Rate(0, 0)) == "no items"
    assert percent(1999 / 2000) == "99.95" and percent(1.0) == "100.0"


def test_auroc_equals_counting_pairs() -> None:
    rng = random.Random(1)
    scores, right = [rng.randrange(9) / 9 for _ in range(60)], [rng.random() < 0.4 for _ in range(60)]
    rights, wrongs = ([s for s, r in zip(scores, right, strict=True) if r == kind] for kind in (True, False))
    pairs = [(a > b) + 0.5 * (a == b) for a in rights for b in wrongs]
    assert auroc(scores, right) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([1.0, 2.0], [True, True]) is None
    low, high = auroc_interval([(scores[n : n + 4], right[n : n + 4]) for n in range(0, 60, 4)])
    assert low < auroc(scores, right) < high and auroc_interval([([1.0], [True])]) is None


# ---- reports ----


def result(protocol: str, *, model: str = "m1", scored: int = 9, **values: float) -> dict[str, Any]:
    """A result of nine expected items; the first score is the headline."""
    scores = {name.replace("_", " "): Score(value, value - 1, value + 1, scored) for name, value in values.items()}
    fixed = {"prompts": "raw", "prompt_style": "unitok", "decoding": {"greedy": True}, "versions": {}, "seed": 0}
    run = {"model": {"fingerprint": model}, "image_format": {"size": [256, 256]}, "questions": {}, **fixed}
    found = Scores(protocol, next(iter(scores)), scores)
    return make_result(protocol.split("@")[0], found, run=run, expected=9, scored=scored, files={})


def row_of(report: str, start: str) -> list[str]:
    [line] = [line for line in report.splitlines() if line.startswith(f"| {start}")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_our_row_stands_below_the_published_ones() -> None:
    for table in published_tables():
        assert all(len(row) == 1 + len(table.labels) + len(table.columns) for row in table.rows)
    pope, mme = result("pope@llava-3000", mean_f1=83.25), result("mme@official", perception=1447.6, cognition=200.0)
    report = make_report([("a", pope), ("b", mme)], names={"m1": "our model"})
    assert row_of(report, "UniTok") == ["UniTok", "Llama-2-7B", "256", "76.8", "61.1", "51.6", "83.2", "1448", "33.9"]
    ours = ["**our model**", "", "256", "-", "-", "-", "83.2 (82.2 to 84.2)", "1448 (1447 to 1449)", "-"]
    assert row_of(report, "**our model**") == ours
    assert "Generation" not in report and "Tokenizers" not in report  # tables without a result of ours
    assert "our model | pope@llava-3000 | all 9 items | raw | greedy True" in report
    assert "Not the official set" not in report


def test_what_is_not_comparable_is_marked() -> None:
    custom, part = result("pope@llava-3000-custom-9", mean_f1=50.0), result("gqa@exact-match", scored=5, accuracy=50.0)
    other = [result("textvqa@m4c-no-ocr", accuracy=40.0), result("mmvet@judge-gpt-9", total=40.0)]
    for results, columns, notes in (
        ([custom, part], (4, 6), ("Not the official set: gqa@exact-match, PARTIAL: 5 of 9 items.",)),
        ([custom, part], (4, 6), ("Not the official set: pope@llava-3000-custom-9, all 9 items.",)),
        (other, (5, 8), ("Another protocol than the published rows: textvqa@m4c-no-ocr, not textvqa@m4c-ocr-prompt.",)),
        ([result("textvqa@m4c-ocr-prompt", accuracy=40.0)], (), ()),
    ):
        report = make_report([(str(n), each) for n, each in enumerate(results)])
        ours = row_of(report, "**ours, m1**")
        assert [ours[column][-3:] for column in columns] == [f"[{n}]" for n in range(1, len(columns) + 1)]
        assert ("[1]" in report) == bool(columns) and all(note in report for note in notes)
    for number in (9, 50_000):  # tokenizers are compared where they were measured on ImageNet
        measured = {**result("tokenizer@zero_shot-256", scored=number, rFID=0.5), "is_complete": True}
        report = make_report([("a", measured)])
        assert row_of(report, "**ours, m1**")[3].endswith("[1]") == (number == 9)
        assert ("Another set of images than the published rows: 9, not 50000." in report) == (number == 9)


def test_each_model_has_its_row_and_each_result_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (result("gqa@exact-match", model=name, accuracy=value) for name, value in (("m1", 1.0), ("m2", 2.0)))
    report = make_report([("a", one), ("b", two)])
    assert row_of(report, "**ours, m1**")[4].startswith("1.0") and row_of(report, "**ours, m2**")[4].startswith("2.0")
    for results, message in (([("a", one), ("c", one)], "a and c for gqa of m1"), ([], "none")):
        with pytest.raises(ValueError, match=message):
            make_report(results)
    write_json(tmp_path / "run" / "result.json", one)
    write_json(tmp_path / "x.json", result("genai-bench-527@x", advanced=0.6))
    files = ["evaluate", "report", str(tmp_path / "run"), str(tmp_path / "x.json")]
    assert main([*files, "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "## Understanding" in printed and "## Generation, GenAI-Bench" in printed and "**mine**" in printed
    assert main([*files, "--name", "mine", "-o", str(tmp_path / "report.md")]) == 0
    assert (tmp_path / "report.md").read_text() == printed
    write_json(tmp_path / "y.json", two)
    assert main([*files, str(tmp_path / "y.json"), "--name", "mine"]) == 2
