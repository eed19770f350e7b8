"""Reports: our rows beside the published ones, marks on what is not comparable, nothing mixed up."""

from pathlib import Path
from typing import Any

import pytest

from mllm.cli.main import main
from mllm.evaluation.protocol import Score, Scores, make_result
from mllm.evaluation.report import make_report, published_tables
from mllm.files import write_json


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


@pytest.mark.parametrize(
    ("results", "columns", "notes"),
    [
        (
            [result("pope@llava-3000-custom-9", mean_f1=50.0), result("gqa@exact-match", scored=5, accuracy=50.0)],
            (4, 6),
            (
                "[1] Not the official set: gqa@exact-match, PARTIAL: 5 of 9 items.",
                "[2] Not the official set: pope@llava-3000-custom-9, all 9 items.",
            ),
        ),
        (
            [result("textvqa@m4c-no-ocr", accuracy=40.0), result("mmvet@judge-gpt-9", total=40.0)],
            (5, 8),
            ("[1] Another protocol than the published rows: textvqa@m4c-no-ocr, not textvqa@m4c-ocr-prompt.",),
        ),
        ([result("textvqa@m4c-ocr-prompt", accuracy=40.0)], (), ()),
    ],
)
def test_what_is_not_comparable_is_marked(results: list, columns: tuple[int, ...], notes: tuple[str, ...]) -> None:
    report = make_report([(str(n), each) for n, each in enumerate(results)])
    ours = row_of(report, "**ours, m1**")
    assert [ours[column][-3:] for column in columns] == [f"[{n}]" for n in range(1, len(columns) + 1)]
    assert ("[1]" in report) == bool(columns) and all(note in report for note in notes)


def test_a_tokenizer_is_compared_where_it_was_measured_on_imagenet() -> None:
    for number in (9, 50_000):
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
