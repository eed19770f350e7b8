"""What a model's own judgement is worth on the synthetic world: pass rates of best of N, and the area under the ROC
curve of its score against the exact checker.

In: something that draws, something that scores, how many items. Out: plain values. All candidates are drawn and scored
once; a smaller N looks at the first of them (mllm/best_of.py), so the rates differ by the choice alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from mllm.best_of import candidate_seeds, check_best_of, index_of_best
from mllm.evaluation.auroc import auroc, auroc_interval
from mllm.evaluation.rate import Rate
from mllm.evaluation.world import as_values
from mllm.evaluation.world_items import Group, make_items
from mllm.evaluation.world_judge import judge

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""(requests, seeds) -> pictures."""
ScorePictures = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]
"""(pictures, requests) -> how right the model finds them."""


class Candidates(NamedTuple):
    """The pictures of one request, judged twice."""

    scores: list[float]  # by the model
    is_right: list[bool]  # by the checker


def measure_best_of(
    draw: Draw,
    score: ScorePictures,
    group: Group,
    *,
    best_of: Sequence[int],
    count: int,
    seed: int,
    batch_size: int = 32,
) -> dict:
    """Pass rates for every N, what a perfect judge would reach, and the AUROC of the score over all candidates."""
    for number in best_of:
        check_best_of(number)
    items = draw_candidates(draw, score, group, num=max(best_of), count=count, seed=seed, batch_size=batch_size)
    flat_scores = [value for item in items for value in item.scores]
    flat_right = [value for item in items for value in item.is_right]
    interval = auroc_interval(items)
    return {
        "best_of": {str(number): as_values(pass_rate(items, number)) for number in sorted(set(best_of))},
        "any_right": {
            str(number): as_values(Rate(sum(any(item.is_right[:number]) for item in items), len(items)))
            for number in sorted(set(best_of))
        },
        "auroc": auroc(flat_scores, flat_right),
        "auroc_low": None if interval is None else interval[0],
        "auroc_high": None if interval is None else interval[1],
        "candidates": len(flat_scores),
    }


def pass_rate(items: Sequence[Candidates], number: int) -> Rate:
    """How many requests are fulfilled when the best-scored of the first N candidates is kept."""
    return Rate(sum(item.is_right[index_of_best(item.scores[:number])] for item in items), len(items))


def draw_candidates(
    draw: Draw, score: ScorePictures, group: Group, *, num: int, count: int, seed: int, batch_size: int
) -> list[Candidates]:
    """Draw, score and check all candidates of a group of drawing items."""
    dialogues = make_items(group, count, seed=seed)
    requests = [str(dialogue.turns[0].parts[0]) for dialogue in dialogues]
    jobs = [(n, s) for n in range(count) for s in candidate_seeds(seed + n, num)]
    items = [Candidates([], []) for _ in dialogues]
    for start in tqdm(range(0, len(jobs), batch_size), desc=f"best of {num}, {group.name}", leave=False):
        batch = jobs[start : start + batch_size]
        words = [requests[n] for n, _ in batch]
        pictures = draw(words, [s for _, s in batch])
        for (n, _), picture, value in zip(batch, pictures, score(pictures, words), strict=True):
            items[n].scores.append(value)
            items[n].is_right.append(judge(dialogues[n].checks[0], picture, None).passed)
    return items


def as_lines(measured: dict[str, dict]) -> list[str]:
    """The measurements of some groups for the eye."""
    lines = []
    for name, values in measured.items():
        lines.append(f"{name}, chosen by the model itself")
        for number, rate in values["best_of"].items():
            any_right = values["any_right"][number]
            shown = Rate(rate["passed"], rate["total"])
            perfect = Rate(any_right["passed"], any_right["total"]).share
            lines.append(f"  {'best of ' + number:<26} {shown}; a perfect judge {100 * perfect:.1f} %")
        lines.append(f"  {'AUROC of its score':<26} {describe_auroc(values)}")
    return lines


def describe_auroc(values: dict) -> str:
    """The area with its interval, or why there is none."""
    if values["auroc"] is None:
        return "undefined: the candidates are all right or all wrong"
    low, high = values["auroc_low"], values["auroc_high"]
    return f"{values['auroc']:.3f} ({low:.3f} to {high:.3f}, n = {values['candidates']})"
