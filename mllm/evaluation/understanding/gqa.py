"""GQA: short answers to compositional questions (Hudson and Manning 2019), exact match.

The answer loses the periods at its end and its capitals, as LLaVA prepares it for the official script, and must then
equal the gold answer. Reported: accuracy, that of binary and of open questions, and of each structural type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.intervals import mean_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, ScoreOptions, Scores, read_questions
from mllm.files import read_json, write_json


def prediction_of(text: str) -> str:
    """The answer as the official script gets it."""
    return text.rstrip(".").lower()


def is_right(text: str, gold: str) -> bool:
    """Exact match."""
    return prediction_of(text) == gold


def read_gold(path: Path) -> dict[str, dict]:
    """testdev_balanced_questions.json: question id -> {"answer", "types", ...}."""
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(value, dict) and "answer" in value for value in data.values()):
        raise ValueError(f"{path} holds no GQA questions: found no id -> answer; give testdev_balanced_questions.json")
    return data


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Accuracies as percentages."""
    assert options.annotations is not None, "the scorer of GQA needs the questions with their answers"
    gold = read_gold(options.annotations)
    rights: dict[str, list[float]] = defaultdict(list)
    for one in answered:
        question = gold.get(str(one.item.question_id))
        if question is None:
            raise ValueError(
                f"{options.annotations} has no question {one.item.question_id!r}: it is asked in {one.item.where}; "
                "give the questions file of the same split"
            )
        if not question.get("isBalanced", True):
            continue  # as the official script does
        right = float(is_right(one.text, question["answer"]))
        structure = question.get("types", {}).get("structural")
        rights["accuracy"].append(right)
        if structure:
            rights["open" if structure == "query" else "binary"].append(right)
            rights[f"type: {structure}"].append(right)
    if not rights:
        raise ValueError(
            f"{options.annotations} has no balanced question: found isBalanced false everywhere; give another"
        )
    scores = {name: mean_with_interval(rights[name]) for name in sorted(rights, key=in_order)}
    return Scores(BENCHMARK.protocol("exact-match", count=len(answered)), "accuracy", scores)


def in_order(name: str) -> tuple[int, str]:
    """Totals first, then types by name."""
    totals = ("accuracy", "binary", "open")
    return (totals.index(name) if name in totals else len(totals), name)


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """The file for the official script: a list of {"questionId", "prediction"}."""
    assert options.folder is not None, "a submission needs a folder"
    path = options.folder / "gqa_predictions.json"
    predictions = [{"questionId": str(one.item.question_id), "prediction": prediction_of(one.text)} for one in answered]
    write_json(path, predictions)
    return [path]


BENCHMARK = Benchmark(
    name="gqa",
    summary="GQA: llava_gqa_testdev_balanced.jsonl; scored with testdev_balanced_questions.json",
    read_items=read_questions,
    score=score,
    submit=submit,
    official_counts=(12578,),
)
