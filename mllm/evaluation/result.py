"""The result of a benchmark: the numbers, and everything that is needed to read them, in one file.

In: scores and what is known of the run. Out: a dictionary for result.json, and its table for the eye. A score over less
than the whole question file says so wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm.evaluation.benchmark import Score, Scores
from mllm.json_files import read_json
from mllm.versions import tool_versions

FORMAT = "mllm-result-1"
RESULT_FILE = "result.json"
UNKNOWN = "unknown: the answers were made elsewhere"
OF_THE_RUN = ("model", "prompts", "prompt_style", "decoding", "image_format", "versions", "seed", "questions")


def make_result(
    benchmark: str,
    scores: Scores,
    *,
    run: Mapping[str, Any] | None,
    expected: int,
    scored: int,
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of result.json.

    Args:
        run: the description in run.json; None where the answers come from elsewhere.
        expected: items in the question file.
        scored: items that the scores are about.
        files: fingerprints of what was scored against, by name.
    """
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "protocol": scores.protocol,
        "headline": scores.headline,
        "items_expected": expected,
        "items_scored": scored,
        "is_complete": scored == expected,
        "scores": {name: as_values(score) for name, score in scores.scores.items()},
        "interval": "95 % bootstrap over items",
        **{name: (run or {}).get(name, UNKNOWN) for name in OF_THE_RUN},
        "files": dict(files),
        "scored_with": tool_versions(*scores.tools),
        "judge": None if scores.judge is None else dict(scores.judge),
        "extra": dict(scores.extra),
    }


def as_values(score: Score) -> dict[str, Any]:
    """A score for JSON; a deviation only where there is one."""
    return {name: value for name, value in asdict(score).items() if (name, value) != ("std", None)}


def read_result(path: Path) -> dict[str, Any]:
    """A result file, or that of a folder."""
    path = path / RESULT_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no result {path}: found nothing there; run mllm evaluate score first")
    result = read_json(path)
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is no result: found no format {FORMAT!r}; give a file of mllm evaluate score")
    return result


def completeness(result: Mapping[str, Any]) -> str:
    """How much of the benchmark a result is about."""
    scored, expected = result["items_scored"], result["items_expected"]
    return f"all {expected} items" if result["is_complete"] else f"PARTIAL: {scored} of {expected} items"


def as_table(result: Mapping[str, Any]) -> str:
    """The result for the eye."""
    model = result["model"]
    name = model["fingerprint"] if isinstance(model, dict) else model
    lines = [f"{result['protocol']}, {completeness(result)}, model {name}"]
    if result["judge"] is not None:
        lines.append("judge: " + ", ".join(f"{key} {value}" for key, value in result["judge"].items()))
    lines += ["", f"{'score':<36} value (95 % interval, items)"]
    mark = "" if result["is_complete"] else "  PARTIAL"
    for name, score in result["scores"].items():
        numbers = f"{score['value']:8.2f}  ({score['low']:.2f} to {score['high']:.2f}, n = {score['count']})"
        deviation = f"  std {score['std']:.2f}" if "std" in score else ""
        lines.append(f"{name:<36} {numbers}{deviation}{mark}")
    return "\n".join(lines)
