"""Bring answers and questions together: every answer belongs to a question, every question has one answer.

In: items, and an answers file (ours, or one that LLaVA's runner wrote). Out: answered items in the order of the items.
What does not match is named with file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.benchmark import Answered, Benchmark, Item
from mllm.json_files import Line, need_field


def match_answers(
    benchmark: Benchmark, items: Sequence[Item], lines: Sequence[Line], *, answers: Path, partial: bool = False
) -> list[Answered]:
    """The answered items.

    Args:
        lines: records of the answers file.
        answers: that file, or the run folder, for messages and for pictures beside it.
        partial: leave out questions without an answer instead of refusing.
    """
    folder = answers if answers.is_dir() else answers.parent
    by_key = {item.key: item for item in items}
    found: dict[str, Answered] = {}
    for line in lines:
        answered = read_answer(benchmark, by_key, line, folder)
        key = answered.item.key
        if key in found:
            raise ValueError(
                f"{line.where} answers a question twice: found id {answered.item.question_id!r} again, first on "
                f"{found[key].where}; keep one of them"
            )
        found[key] = answered
    missing = [item for item in items if item.key not in found]
    if missing and not partial:
        raise ValueError(
            f"{answers} has fewer answers than there are questions: found {len(found)} of {len(items)}, the first one "
            f"missing is {missing[0].question_id!r} ({missing[0].where}); finish it, or score a part with --partial"
        )
    if not found:
        raise ValueError(f"{answers} holds no answer: found an empty file; run the benchmark first")
    return [found[item.key] for item in items if item.key in found]


def read_answer(benchmark: Benchmark, by_key: dict[str, Item], line: Line, folder: Path) -> Answered:
    """One answer with the item it belongs to."""
    question_id, prompt = need_field(line, "question_id"), line.record.get("prompt", "")
    if benchmark.keyed_by_prompt:
        need_field(line, "prompt")
    item = by_key.get(benchmark.key_of(question_id, prompt))
    if item is None:
        of_prompt = f" and prompt {prompt!r}" if benchmark.keyed_by_prompt else ""
        raise ValueError(
            f"{line.where} answers a question that was not asked: found id {question_id!r}{of_prompt}; "
            "take the answers of this question file"
        )
    if benchmark.mode == "image":
        picture = folder / need_field(line, "image")
        if not picture.is_file():
            raise FileNotFoundError(f"{line.where} names a picture that is not there: found no {picture}; run it again")
        return Answered(item, text="", where=line.where, image=picture)
    text = need_field(line, "text")
    if not isinstance(text, str):
        raise ValueError(f"{line.where} is no answer: found text {text!r}; write words")
    return Answered(item, text=text, where=line.where)
