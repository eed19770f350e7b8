"""Reports: our rows beside the published ones, marks on what is not comparable, nothing mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mllm.cli.main import main
from mllm.evaluation.protocol import Score, Scores, make_result
from mllm.evaluation.report import GENERATION, TABLES, TOKENIZERS, UNDERSTANDING, make_report
from mllm.files import write_json


def result(benchmark: str, protocol: str, *, model: str = "m1", scored: int = 9, **values: float) -> dict[str, Any]:
    """A result of nine expected items; the first score is the headline."""
    scores = {name.replace("_", " "): Score(value, value - 1, value + 1, scored) for name, value in values.items()}
    run = {
        "model": {"fingerprint": model},
        "prompts": "raw",
        "prompt_style": "unitok",
        "decoding": {"greedy": True},
        "image_format": {"size": [256, 256]},
        "versions": {},
        "seed": 0,
        "questions": {},
    }
    headline = next(iter(scores))
    return make_result(benchmark, Scores(protocol, headline, scores), run=run, expected=9, scored=scored, files={})


def row_of(report: str, start: str) -> list[str]:
    [line] = [line for line in report.splitlines() if line.startswith(f"| {start}")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_published_rows_are_complete() -> None:
    for table in TABLES:
        assert all(len(row.numbers) == len(table.columns) for row in table.rows)
        assert all(set(row.labels) == set(table.labels) for row in table.rows)
    assert [row.method for row in UNDERSTANDING.rows] == ["Show-o", "Liquid", "VILA-U", "UniTok"]
    assert UNDERSTANDING.rows[3].numbers == (76.8, 61.1, 51.6, 83.2, 1448, 33.9)
    assert GENERATION.rows[3].numbers == (0.76, 0.79, 0.74, 0.46, 0.73, 0.67)
    assert [row.numbers[0] for row in TOKENIZERS.rows] == [4.98, 1.30, 0.90, None, None, None, 1.37, 1.80, 0.41, 0.38]


def test_our_row_stands_below_the_published_ones() -> None:
    report = make_report(
        [
            ("a", result("pope", "pope@llava-3000", mean_f1=83.25, random_f1=90.0)),
            ("b", result("mme", "mme@official", perception=1447.6, cognition=200.0)),
        ],
        names={"m1": "our model"},
    )
    assert row_of(report, "UniTok") == ["UniTok", "Llama-2-7B", "256", "76.8", "61.1", "51.6", "83.2", "1448", "33.9"]
    ours = row_of(report, "**our model**")
    assert ours[:3] == ["**our model**", "", "256"]
    assert ours[3:] == ["-", "-", "-", "83.2 (82.2 to 84.2)", "1448 (1447 to 1449)", "-"]
    assert "Generation" not in report and "Tokenizers" not in report  # tables without a result of ours
    assert "our model | pope@llava-3000 | all 9 items | raw | greedy True" in report
    assert "Not the official set" not in report


def test_what_is_not_comparable_is_marked() -> None:
    report = make_report(
        [
            ("a", result("pope", "pope@llava-3000-custom-9", mean_f1=50.0)),
            ("b", result("gqa", "gqa@exact-match", scored=5, accuracy=50.0)),
        ]
    )
    ours = row_of(report, "**ours, m1**")
    assert ours[4].endswith("[1]") and ours[6].endswith("[2]")
    assert "[1] Not the official set: gqa@exact-match, PARTIAL: 5 of 9 items." in report
    assert "[2] Not the official set: pope@llava-3000-custom-9, all 9 items." in report


def test_another_protocol_than_the_published_one_is_marked() -> None:
    report = make_report(
        [
            ("a", result("textvqa", "textvqa@m4c-no-ocr", accuracy=40.0)),
            ("b", result("mmvet", "mmvet@judge-gpt-9", total=40.0)),
        ]
    )
    ours = row_of(report, "**ours, m1**")
    assert ours[5].endswith("[1]") and ours[8].endswith("[2]")
    assert "[1] Another protocol than the published rows: textvqa@m4c-no-ocr, not textvqa@m4c-ocr-prompt." in report
    judged = make_report([("a", result("genai-bench-527", "genai-bench-527@vqascore-self", advanced=0.6))])
    assert (
        row_of(judged, "**ours, m1**")[-1].endswith("[1]") and "not genai-bench-527@vqascore-clip-flant5-xxl" in judged
    )
    comparable = make_report([("a", result("textvqa", "textvqa@m4c-ocr-prompt", accuracy=40.0))])
    assert "[1]" not in comparable


def test_a_tokenizer_measured_on_other_images_than_imagenet_is_marked() -> None:
    for number in (9, 50_000):
        measured = {**result("tokenizer", "tokenizer@zero_shot-256", scored=number, rFID=0.5), "is_complete": True}
        report = make_report([("a", measured)])
        assert row_of(report, "**ours, m1**")[3].endswith("[1]") == (number == 9)
        assert ("Another set of images than the published rows: 9, not 50000." in report) == (number == 9)


def test_a_table_without_a_number_of_ours_is_left_out() -> None:
    measured = {**result("tokenizer", "tokenizer@zero_shot-256", PSNR=30.0), "decoding": None, "seed": None}
    report = make_report([("a", measured)])
    assert "## Tokenizers" not in report
    assert "| ours, m1 | tokenizer@zero_shot-256 | all 9 items | raw | - | size [256, 256] | - | - |" in report


def test_each_model_has_its_row_and_each_result_its_place() -> None:
    one, two = (
        result("gqa", "gqa@exact-match", accuracy=1.0),
        result("gqa", "gqa@exact-match", model="m2", accuracy=2.0),
    )
    report = make_report([("a", one), ("b", two)])
    assert row_of(report, "**ours, m1**")[4].startswith("1.0") and row_of(report, "**ours, m2**")[4].startswith("2.0")
    with pytest.raises(ValueError, match="a and c for gqa of m1"):
        make_report([("a", one), ("c", one)])
    with pytest.raises(ValueError, match="none"):
        make_report([])


def test_the_command_reads_folders_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "run" / "result.json", result("gqa", "gqa@exact-match", accuracy=61.0))
    write_json(tmp_path / "x.json", result("genai-bench-527", "genai-bench-527@x", advanced=0.6))
    files = [str(tmp_path / "run"), str(tmp_path / "x.json")]
    assert main(["evaluate", "report", *files, "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "## Understanding" in printed and "## Generation, GenAI-Bench" in printed and "**mine**" in printed
    assert main(["evaluate", "report", *files, "--name", "mine", "-o", str(tmp_path / "out" / "report.md")]) == 0
    assert (tmp_path / "out" / "report.md").read_text() == printed
    write_json(tmp_path / "y.json", result("gqa", "gqa@exact-match", model="m2", accuracy=61.0))
    assert main(["evaluate", "report", *files, str(tmp_path / "y.json"), "--name", "mine"]) == 2
    assert "m1, m2" in capsys.readouterr().err
