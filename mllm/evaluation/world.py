"""Score a model on the synthetic world with the exact checker.

In: something that answers dialogues in batches, how many items, a seed. Out: pass rates per job, pair group and skill
with 95 % intervals, and everything that is needed to read them: settings, seed, model fingerprint, the checker's own
error. An item passes when every part of every answer is right; `ask` items are dialogues whose questions count one by
one. How many of the passed had parts that the model's own picture left open is said too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image
from tqdm import tqdm

from mllm.conversation import ImagePart, Message, TextPart
from mllm.evaluation.rate import Rate
from mllm.evaluation.world_items import GROUPS, Group, make_items
from mllm.evaluation.world_judge import Judgement, judge
from mllm.generation.request import NoRoomError
from mllm.modes import Mode
from mllm.world.episode import Picture
from mllm.world.render import RenderSize
from mllm.world.scene import Scene
from mllm.world.turns import Check, Dialogue

MODES: dict[str, Mode] = {
    "draw": "image",
    "edit": "image",
    "depth": "image",
    "segment": "image",
    "ask": "text",
    "describe": "text",
    "talk": "text",
}
"""How an answer to a job is decoded; other jobs let the model choose between text and images."""

Answer = Callable[[Sequence[Sequence[Message]], Mode, Sequence[int]], list[list[str | Image.Image]]]
"""(dialogues that end with the user, mode, seeds) -> the parts of each answer."""


@dataclass(slots=True)
class Course:
    """One dialogue while it is held: what was said so far and how it went."""

    dialogue: Dialogue
    seed: int
    messages: list[Message] = field(default_factory=list)
    scene: Scene | None = None
    judgements: list[Judgement] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return len(self.judgements) == len(self.dialogue.checks) and all(item.passed for item in self.judgements)

    @property
    def is_partly_open(self) -> bool:
        """Whether the model's own picture left something open (see world_judge)."""
        return any(item.left_open for item in self.judgements)


def run_group(answer: Answer, group: Group, *, count: int, seed: int, batch_size: int, size: RenderSize) -> list[Course]:
    """Hold every dialogue of a group, batch by batch, turn by turn."""
    courses = [Course(item, seed=seed + index) for index, item in enumerate(make_items(group, count, seed=seed))]
    for start in tqdm(range(0, count, batch_size), desc=group.name, leave=False):
        batch = courses[start : start + batch_size]
        for turn in range(0, max(len(course.dialogue.turns) for course in batch), 2):
            active = [course for course in batch if turn < len(course.dialogue.turns)]
            for course in active:
                listen(course, turn, size=size)
            dialogues, mode = [course.messages for course in active], MODES.get(group.job, "interleaved")
            given = answer_what_fits(answer, dialogues, mode, [course.seed for course in active])
            for course, parts in zip(active, given, strict=True):
                hear(course, turn, parts)
    return courses


def answer_what_fits(
    answer: Answer, dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
) -> list[list[str | Image.Image]]:
    """Answers; nothing to a dialogue that a rambling model has let outgrow its context."""
    try:
        return answer(dialogues, mode, seeds)
    except NoRoomError:
        if len(dialogues) == 1:
            return [[]]
    half = len(dialogues) // 2
    first = answer_what_fits(answer, dialogues[:half], mode, seeds[:half])
    return first + answer_what_fits(answer, dialogues[half:], mode, seeds[half:])


def listen(course: Course, turn: int, *, size: RenderSize) -> None:
    """Add what the user says; a picture of the user is on the table from then on."""
    parts: list[TextPart | ImagePart] = []
    for part in course.dialogue.turns[turn].parts:
        if isinstance(part, Picture):
            course.scene = part.scene
            parts.append(ImagePart(part.render(size)))
        else:
            parts.append(TextPart(part))
    course.messages.append(Message("user", tuple(parts)))


def hear(course: Course, turn: int, given: Sequence[str | Image.Image]) -> None:
    """Judge what the model answered and add it to the dialogue."""
    checks = checks_of(course.dialogue, turn)
    for index, item in enumerate(checks):
        if index < len(given):
            judgement = judge(item, given[index], course.scene)
        else:
            judgement = Judgement(False, course.scene, ("the answer ended too early",))
        course.judgements.append(judgement)
        course.scene = judgement.scene
    if len(given) > len(checks):
        course.judgements[-1] = Judgement(False, course.scene, ("the answer says more than was asked for",))
    parts = [TextPart(part) if isinstance(part, str) else ImagePart(part) for part in given]
    course.messages.append(Message("assistant", tuple(parts) or (TextPart(" "),)))


def checks_of(dialogue: Dialogue, turn: int) -> tuple[Check, ...]:
    """The checks of the answer that follows user turn `turn`."""
    before = sum(len(dialogue.turns[index].parts) for index in range(1, turn, 2))
    return dialogue.checks[before : before + len(dialogue.turns[turn + 1].parts)]


def score_group(group: Group, courses: Sequence[Course]) -> dict:
    """The rates of a group as plain values."""
    by_skill: dict[str, list[bool]] = defaultdict(list)
    if group.job == "ask":  # every question is an item
        passed = [judgement.passed for course in courses for judgement in course.judgements]
        for course in courses:
            for skill, judgement in zip(course.dialogue.skills, course.judgements, strict=True):
                by_skill[skill].append(judgement.passed)
    else:
        passed = [course.passed for course in courses]
        for course in courses:
            for skill in course.dialogue.skills:
                by_skill[skill].append(course.passed)
    scores = as_values(Rate(sum(passed), len(passed)))
    if group.job not in MODES:  # more is said after a drawing
        scores["left_open"] = sum(course.passed and course.is_partly_open for course in courses)
    scores["skills"] = {skill: as_values(Rate(sum(items), len(items))) for skill, items in sorted(by_skill.items())}
    for name in ("mean_iou", "pixel_accuracy"):
        values = [getattr(j, name) for course in courses for j in course.judgements if getattr(j, name) is not None]
        if values and group.job in ("depth", "segment"):
            scores[name] = sum(values) / len(courses)  # an answer without a picture counts 0
    return scores


def as_values(rate: Rate) -> dict:
    """A rate for JSON."""
    low, high = rate.interval
    share = None if math.isnan(rate.share) else rate.share
    return {"rate": share, "low": low, "high": high, "passed": rate.passed, "total": rate.total}


def choose_groups(jobs: Sequence[str] | None) -> list[Group]:
    """The groups of these jobs, or all."""
    groups = [group for group in GROUPS if jobs is None or group.job in jobs]
    unknown = set(jobs or ()) - {group.job for group in GROUPS}
    if unknown or not groups:
        known = ", ".join(dict.fromkeys(group.job for group in GROUPS))
        raise ValueError(f"there is no job {', '.join(sorted(unknown))!r} to evaluate; choose among {known}")
    return groups


def evaluate_world(
    answer: Answer,
    *,
    count: int,
    seed: int,
    batch_size: int = 32,
    size: RenderSize = 128,
    groups: Sequence[Group] = GROUPS,
) -> dict[str, dict]:
    """Scores of every group by its name."""
    if count < 1:
        raise ValueError(f"the count of items must be 1 or more, found {count}")
    scores = {}
    for group in groups:
        courses = run_group(answer, group, count=count, seed=seed, batch_size=batch_size, size=size)
        scores[group.name] = score_group(group, courses)
    return scores
