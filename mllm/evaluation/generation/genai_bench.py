"""GenAI-Bench: does a picture show what a prompt says, by VQAScore (Lin et al. 2024, Li et al. 2024).

Two sets that must not be mixed: 527 prompts (the VQAScore paper, Liquid, UniTok) and 1600 (the GenAI-Bench paper). The
question file is `prompts.txt`, one prompt a line; pictures are images/00001.png ... in its order. `genai_skills.json`
names the prompts of every skill by number: from 1 in the file of 527, from 0 in that of 1600. The headline is the mean
of the advanced prompts, the column "Overall" of published tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mllm.evaluation.intervals import mean_of_many
from mllm.evaluation.protocol import Answered, Benchmark, Item, Score, ScoreOptions, Scores
from mllm.evaluation.scorers import score_pictures
from mllm.files import need_file, read_json

GROUPS = {
    "basic": ("attribute", "scene", "spatial relation", "action relation", "part relation", "basic"),
    "advanced": ("counting", "comparison", "differentiation", "negation", "universal", "advanced"),
}
"""Skills in the order of the tables; the last one of each group holds all its prompts."""
SKILLS = tuple(skill for group in GROUPS.values() for skill in group)
OFFICIAL = {527: 1, 1600: 0}
"""Size of the set -> the number of its first prompt in the skills file."""


def read_items(questions: Path, images: Path | None, *, size: int) -> list[Item]:
    """One item per line; the other official set is refused, so that the name stays true."""
    lines = need_file(questions).read_text(encoding="utf-8").splitlines()
    if len(lines) in OFFICIAL and len(lines) != size:
        raise ValueError(
            f"{questions} is the other GenAI-Bench: found {len(lines)} prompts, this one has {size}; use "
            f"genai-bench-{len(lines)}"
        )
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            raise ValueError(f"{questions}, line {number} has no prompt: found an empty line; every line is a picture")
    if not lines:
        raise ValueError(f"{questions} holds no prompt: found an empty file; give one prompt a line")
    return [
        Item(
            key=str(number),
            where=f"{questions}, line {number}",
            question_id=number,
            prompt=text.strip(),
            output=f"images/{number:05d}.png",
            fields={"of": len(lines)},
        )
        for number, text in enumerate(lines, start=1)
    ]


def score(answered: Sequence[Answered], options: ScoreOptions, *, benchmark: Benchmark) -> Scores:
    """Mean, deviation and interval of every skill."""
    if options.judge is None:
        raise ValueError("nobody says what the pictures show: found no scorer; give --scorer, such as --scorer self")
    assert options.annotations is not None, "the command asked for the skills"
    total = answered[0].item.fields["of"]
    skills = read_skills(options.annotations, total=total, first=first_number(benchmark, options.annotations, total))
    found = score_pictures(answered, options.judge, options.folder)
    by_number = {int(item.item.question_id): value for item, value in zip(answered, found, strict=True)}
    description = dict(options.judge.description)
    return Scores(
        benchmark.protocol(f"vqascore-{description['name']}", count=total),
        "advanced",
        score_skills(by_number, skills),
        judge=description,
    )


def score_skills(by_number: Mapping[int, float], skills: Mapping[str, Sequence[int]]) -> dict[str, Score]:
    """The groups of the tables, as far as their prompts were scored, then all prompts of any group."""
    chosen: dict[str, list[float]] = {}
    for name in [*(s for s in SKILLS if s in skills), *(s for s in skills if s not in SKILLS)]:
        chosen[name] = [by_number[number] for number in skills[name] if number in by_number]
    everything = sorted({number for numbers in skills.values() for number in numbers} & by_number.keys())
    chosen["all"] = [by_number[number] for number in everything]
    return {name: mean_with_deviation(values) for name, values in chosen.items() if values}


def mean_with_deviation(values: Sequence[float]) -> Score:
    """0 to 1; the deviation is the unbiased one, of single prompts, and there is none of one prompt."""
    return replace(mean_of_many(values), std=float(np.std(values, ddof=1)) if len(values) > 1 else None)


def first_number(benchmark: Benchmark, skills: Path, total: int) -> int:
    """What the first prompt is called in a skills file: what the numbers say, else the official way of this set."""
    numbers = {as_number(value, skills) for values in need_skills(skills).values() for value in values}
    if 0 in numbers:
        return 0
    return 1 if total in numbers else OFFICIAL[benchmark.official_counts[0]]


def read_skills(path: Path, *, total: int, first: int) -> dict[str, list[int]]:
    """Prompt numbers from 1 on, by skill."""
    skills: dict[str, list[int]] = {}
    for name, values in need_skills(path).items():
        numbers = [as_number(value, path) - first + 1 for value in values]
        wrong = [number for number in numbers if not 1 <= number <= total]
        if wrong or len(set(numbers)) != len(numbers):
            problem = f"number {wrong[0] + first - 1}" if wrong else "a number twice"
            raise ValueError(
                f"{path} does not fit the prompts: found {problem} in {name!r}, there are {total} prompts counted from "
                f"{first}; give the skills of this set"
            )
        skills[name] = numbers
    if missing := [name for name in ("basic", "advanced") if name not in skills]:
        raise ValueError(f"{path} has no {missing[0]!r}: found {', '.join(skills)}; give genai_skills.json")
    return skills


def need_skills(path: Path) -> dict[str, list[Any]]:
    """The skills file, if it is one."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(values, list) for values in found.values()):
        raise ValueError(f"{path} names no skills: found {type(found).__name__}; give genai_skills.json as published")
    return found


def as_number(value: object, path: Path) -> int:
    """A prompt's number, which may be written as a word of digits."""
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise ValueError(f"{path} names a prompt by {value!r}: found no number; give genai_skills.json as published")


def make_benchmark(size: int) -> Benchmark:
    """One of the two sets."""

    def score_this(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
        return score(answered, options, benchmark=benchmark)

    benchmark = Benchmark(
        name=f"genai-bench-{size}",
        summary=f"GenAI-Bench with {size} prompts: prompts.txt; scored with genai_skills.json and a --scorer",
        read_items=partial(read_items, size=size),
        score=score_this,
        official_counts=(size,),
        mode="image",
    )
    return benchmark


BENCHMARK_527, BENCHMARK_1600 = make_benchmark(527), make_benchmark(1600)
