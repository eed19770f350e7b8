"""Makes answered items for the tests of scorers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.protocol import Answered, Benchmark, Item, ScoreOptions, Scores, match_answers
from mllm.files import read_lines


def as_item(question_id: int | str = 0, prompt: str = "what?", **fields: object) -> Item:
    return Item(key=str(question_id), where="questions, line 1", question_id=question_id, prompt=prompt, fields=fields)


def answered(*texts: str, first_id: int = 0, prompt: str = "what?") -> list[Answered]:
    """Answers to questions 0, 1, ..."""
    return [Answered(as_item(first_id + n, prompt), text) for n, text in enumerate(texts)]


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_jsonl(path: Path, records: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def score_files(benchmark: Benchmark, questions: Path, answers: Path, annotations: Path) -> Scores:
    """From files to scores, as the command does it."""
    items = benchmark.read_items(questions, None)
    lines = read_lines(answers)
    matched = match_answers(benchmark, items, lines, answers=answers)
    return benchmark.score(matched, ScoreOptions(annotations=annotations))
