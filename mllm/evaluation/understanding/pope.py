"""POPE: is an object in the picture, yes or no (Li et al. 2023); three ways to choose the absent ones.

LLaVA's parsing: only the first sentence counts, commas go, and any of the words "No", "not", "no" makes it a no;
everything else is a yes, silence too. Labels are matched by their order within the category, so the counts must agree,
and where the label file names pictures these must agree too. The headline is the mean F1 of the three categories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mllm.evaluation.intervals import score_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, Score, ScoreOptions, Scores, read_questions
from mllm.files import Line, need_field, read_lines

CATEGORIES = ("adversarial", "popular", "random")
NO_WORDS = frozenset({"No", "not", "no"})
OLD_RANDOM = 2910
"""Rows of the category random in the files that LLaVA used; the newer file has 3000."""


class Outcome(NamedTuple):
    """What was said and what is right."""

    says_yes: bool
    is_yes: bool


class Confusion(NamedTuple):
    """Counts of the four outcomes; yes is positive."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def accuracy(self) -> float:
        return (self.true_positive + self.true_negative) / self.total

    @property
    def precision(self) -> float:
        """0 where nothing was answered with yes; the reference divides by zero there."""
        return self.true_positive / max(1, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return self.true_positive / max(1, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    @property
    def yes_ratio(self) -> float:
        return (self.true_positive + self.false_positive) / self.total


METRICS = ("f1", "accuracy", "precision", "recall", "yes_ratio")


def says_yes(text: str) -> bool:
    """How the reference reads an answer."""
    first = text.split(".")[0]
    return not NO_WORDS & set(first.replace(",", "").split(" "))


def count_outcomes(outcomes: Mapping[Outcome, int]) -> Confusion:
    """The four counts."""
    return Confusion(
        outcomes.get(Outcome(True, True), 0),
        outcomes.get(Outcome(True, False), 0),
        outcomes.get(Outcome(False, False), 0),
        outcomes.get(Outcome(False, True), 0),
    )


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Mean F1 of the categories, and every number of each, all as percentages."""
    assert options.annotations is not None, "the scorer of POPE needs the folder of labels"
    groups: dict[str, list[Outcome]] = {name: [] for name in CATEGORIES}
    sizes: dict[str, int] = {}
    for name in CATEGORIES:
        of_category = [one for one in answered if one.item.fields["category"] == name]
        if of_category:
            labels = read_labels(options.annotations / f"coco_pope_{name}.json")
            sizes[name] = len(labels)
            groups[name] = [Outcome(says_yes(one.text), label_of(one.item, labels)) for one in of_category]
    present = {name: group for name, group in groups.items() if group}
    scores: dict[str, Score] = {
        "mean f1": score_with_interval(
            list(present.values()), lambda counts: 100 * sum(count_outcomes(c).f1 for c in counts) / len(counts)
        )
    }
    for name, group in present.items():
        for metric in METRICS:
            scores[f"{name} {metric}"] = score_metric(group, metric)
    counts = {name: count_outcomes(Counter(group))._asdict() for name, group in present.items()}
    return Scores(protocol_of(present, sizes), "mean f1", scores, extra={"counts": counts})


def score_metric(group: Sequence[Outcome], metric: str) -> Score:
    """One number of one category."""
    return score_with_interval([group], lambda counts: 100 * getattr(count_outcomes(counts[0]), metric))


def protocol_of(groups: Mapping[str, Sequence[Outcome]], sizes: Mapping[str, int]) -> str:
    """Named by the random set, which exists in two sizes."""
    count = sum(len(group) for group in groups.values())
    return BENCHMARK.protocol(f"llava-{OLD_RANDOM if sizes.get('random') == OLD_RANDOM else 3000}", count=count)


def read_labels(path: Path) -> list[Line]:
    """One record per question, in order; only `label` is needed."""
    lines = read_lines(path)
    for line in lines:
        if need_field(line, "label") not in ("yes", "no"):
            raise ValueError(f"{line.where} has no label: found {line.record['label']!r}; write yes or no")
    return lines


def label_of(item: Item, labels: Sequence[Line]) -> bool:
    """Whether yes is right; the label stands where the question stands within its category."""
    number, total = item.fields["number"], item.fields["of"]
    if total != len(labels):
        raise ValueError(
            f"labels and questions do not match: found {len(labels)} labels for {total} questions of category "
            f"{item.fields['category']!r} ({item.where}); give the label file of these questions"
        )
    label = labels[number]
    picture = label.record.get("image", item.fields["image"])
    if picture != item.fields["image"]:
        raise ValueError(
            f"{label.where} is about another picture: found {picture}, the question ({item.where}) has "
            f"{item.fields['image']}; give labels in the order of the questions"
        )
    return label.record["label"] == "yes"


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """Questions with their number within their category."""
    items = read_questions(questions, images)
    categories = [need_field(Line(item.where, dict(item.fields)), "category") for item in items]
    totals, seen, numbered = Counter(categories), Counter[str](), []
    for item, category in zip(items, categories, strict=True):
        if category not in CATEGORIES:
            raise ValueError(f"{item.where} has no category: found {category!r}; use one of {', '.join(CATEGORIES)}")
        place = {"number": seen[category], "of": totals[category]}
        numbered.append(replace(item, fields={**item.fields, **place}))
        seen[category] += 1
    return numbered


BENCHMARK = Benchmark(
    name="pope",
    summary="POPE: llava_pope_test.jsonl; scored with the folder of coco_pope_{adversarial,popular,random}.json",
    read_items=read_items,
    score=score,
    official_counts=(9000, 6000 + OLD_RANDOM),
)
