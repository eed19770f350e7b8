"""Numbers of a training run, one JSON object a line, in a file that survives stops and can be plotted."""

from __future__ import annotations

import json
from pathlib import Path

from mllm.whole_file import whole_file


class MetricsLog:
    """Appends to `metrics.jsonl`; entries after the step that a run resumes from are dropped: none is doubled."""

    def __init__(self, path: Path, *, resumed_step: int = 0) -> None:
        self.path = path
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= resumed_step]
            with whole_file(path) as unfinished:
                unfinished.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, values: dict[str, float | list[float]]) -> None:
        """Add one entry."""
        rounded = {name: _rounded(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")


def _step_of(line: str) -> float:
    """The step of an entry; one that a killed run left half written is after all steps."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # "7" and "{}" are JSON, too
        return float("inf")


def _rounded(value: float | list[float]) -> float | list[float]:
    if isinstance(value, list):
        return [float(f"{item:.6g}") for item in value]
    return float(f"{value:.6g}")


def as_words(values: dict[str, float | list[float]]) -> str:
    """The numbers of one entry on one console line."""
    shown = []
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        shown.append(f"{name} {' '.join(f'{number:.4g}' for number in numbers)}")
    return " | ".join(shown)
