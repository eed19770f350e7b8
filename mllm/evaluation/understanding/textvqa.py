"""TextVQA: questions whose answer is written in the picture (Singh et al. 2019), scored as M4C does.

The question file of the LLaVA line gives OCR tokens in the prompt; the protocol's name says whether it did, because the
score differs by more than ten points. A question is found again by its picture (the question id) and its words, which
stand somewhere in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.intervals import mean_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, ScoreOptions, Scores, read_questions
from mllm.evaluation.understanding.answer_text import normalise
from mllm.evaluation.understanding.soft_accuracy import check_people, soft_accuracy
from mllm.files import read_json

OCR_LINE = "Reference OCR token:"
OCR_FIRST = "OCR tokens: "
QUESTION = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def score_answer(text: str, people: Sequence[str]) -> float:
    """Soft accuracy, 0 to 1, of one answer; all answers normalised."""
    return soft_accuracy(normalise(text), [normalise(said) for said in people])


def question_of(prompt: str, where: str = "a prompt") -> str:
    """The question inside a prompt, in lower case."""
    lines = prompt.split("\n")
    if prompt.startswith(OCR_FIRST) and (match := QUESTION.search(prompt)):
        question = match[1]
    elif f"{OCR_LINE} " in prompt and len(lines) == 3:
        question = lines[1] if prompt.startswith(OCR_LINE) else lines[0]
    elif len(lines) == 2:
        question = lines[0]
    else:
        raise ValueError(
            f"{where} has no form that TextVQA's prompts have: found {len(lines)} lines, {prompt[:60]!r}; write the "
            "question, the OCR tokens and the instruction on a line each"
        )
    return question.lower()


def has_ocr(prompt: str) -> bool:
    """Whether the prompt tells what is written in the picture."""
    return f"{OCR_LINE} " in prompt or prompt.startswith(OCR_FIRST)


def variant_of(prompts: Sequence[str]) -> str:
    """The protocol by its prompts."""
    shown = {has_ocr(prompt) for prompt in prompts}
    return "m4c-mixed-prompts" if len(shown) > 1 else "m4c-ocr-prompt" if shown == {True} else "m4c-no-ocr"


def read_annotations(path: Path) -> dict[tuple[str, str], list[str]]:
    """Ten answers by picture and question."""
    data = read_json(path)
    listed = data.get("data") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise ValueError(f"{path} holds no annotations: found no list 'data'; give TextVQA_0.5.1_val.json")
    return {
        (str(record["image_id"]), record["question"].lower()): check_people(
            record.get("answers", ()), f"{path}, question {record.get('question_id', record['question'])!r}"
        )
        for record in listed
    }


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Mean soft accuracy as a percentage."""
    assert options.annotations is not None, "the scorer of TextVQA needs annotations"
    annotations = read_annotations(options.annotations)
    values = [score_answer(one.text, people_of(one.item, annotations, source=options.annotations)) for one in answered]
    variant = variant_of([one.item.prompt for one in answered])
    return Scores(
        BENCHMARK.protocol(variant, count=len(answered)), "accuracy", {"accuracy": mean_with_interval(values)}
    )


def people_of(item: Item, annotations: dict[tuple[str, str], list[str]], *, source: Path) -> list[str]:
    """What people answered to an item."""
    key = (str(item.question_id), question_of(item.prompt, item.where))
    if key not in annotations:
        raise ValueError(
            f"{source} has no question {key[1]!r} about picture {key[0]!r}: it is asked in {item.where}; "
            "give the annotations of the same split"
        )
    return annotations[key]


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """Ids are those of pictures, so several questions may share one."""
    return read_questions(questions, images, key_of=BENCHMARK.key_of)


BENCHMARK = Benchmark(
    name="textvqa",
    summary="TextVQA: llava_textvqa_val_v051_ocr.jsonl; scored with TextVQA_0.5.1_val.json",
    read_items=read_items,
    score=score,
    official_counts=(5000,),
    keyed_by_prompt=True,
)
