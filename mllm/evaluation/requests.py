"""Evaluate a model on requests in people's own words: a JSONL file of dialogues, every answer checked exactly.

In: the file, in the form of docs/evaluation.md, and something that answers dialogues in batches. Out: how many items of
each kind are right, and each failure with its reason. An item is right when all its turns are; a wrong turn ends it.
Images are read by the world's checker, words are compared as words; no model grades anything.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, product
from math import hypot
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from mllm.conversation import ImagePart, TextPart
from mllm.evaluation.answerer import model_fingerprint
from mllm.evaluation.intervals import Rate
from mllm.evaluation.world import Answer, Part, RunningDialogue, answer_with, run_dialogues
from mllm.files import counted, read_lines, tool_versions, wrong_value
from mllm.pipeline import Pipeline, check_task
from mllm.world.checker import ParsedScene, parse
from mllm.world.people import KINDS, as_item, make_people
from mllm.world.plan import DECLINES
from mllm.world.render import render
from mllm.world.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    MAX_OBJECTS,
    MIN_GAP,
    MIN_INSET,
    RADIUS,
    RELATIONS,
    Scene,
    SceneObject,
    holds,
    is_valid,
)
from mllm.world.spec import Filter, compare, looks_like, plain_phrase

T = TypeVar("T")
IMAGE_SIDE = 256
"""Of the images that are shown, in pixels."""
POSITION_TOLERANCE = 0.1
"""How far an object that stays may have moved, as a share of the side."""
NUDGE_STEPS = 1000
COMPARISONS = {"larger than": "larger", "smaller than": "smaller"}


# ---- the form of the file: each class is an object of JSON ----

Names = str | list[str] | None
"""One value, any of several, or None where every value will do."""


class Form(BaseModel):
    """An object of JSON that has its keys and no others."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Description(Form):
    shape: Names = None
    color: Names = None
    size: Names = None

    def model_post_init(self, _: object) -> None:
        for name, choices in ATTRIBUTES.items():
            check_names(name, getattr(self, name), choices)

    def matches(self, item: SceneObject) -> bool:
        return all(allows(getattr(self, name), getattr(item, name)) for name in ATTRIBUTES)

    def __str__(self) -> str:
        words = [as_list(self.size), as_list(self.color), as_list(self.shape) or ["object"]]
        return " ".join(" or ".join(names) for names in words if names)


class CountedDescription(Description):
    """An object that is in an image exactly `count` times."""

    count: NonNegativeInt = 1


class SceneExpectation(Form):
    """What the only image of an answer must show."""

    objects: list[CountedDescription] = []
    total: NonNegativeInt | None = None  # number of all objects; None: any
    none: list[Description] = []  # nothing may match these
    background: Names = None
    relations: list[tuple[int, str, int]] = []  # between entries of `objects`

    def model_post_init(self, _: object) -> None:
        check_names("background", self.background, BACKGROUNDS)
        single = [index for index, wanted in enumerate(self.objects) if wanted.count == 1]
        for first, relation, second in self.relations:
            check_names("relation", relation, (*RELATIONS, *COMPARISONS))
            if not {first, second} <= set(single):
                raise ValueError(f"a relation must be between entries of count 1 ({single}), got {first}, {second}")


class TextExpectation(Form):
    """Words or phrases of which an answer must hold one, and of which it must hold none."""

    any_of: list[str] = []
    none_of: list[str] = []

    def model_post_init(self, _: object) -> None:
        if not (self.any_of or self.none_of):
            raise ValueError("text must have any_of or none_of, got neither; add words that the answer must hold")


class Expectation(Form):
    scene: SceneExpectation | None = None
    keeps: bool = False  # what is in the image before, save what `changes` match
    changes: list[Description] = []
    text: TextExpectation | None = None
    no_picture: bool = False
    decline: bool = False

    def model_post_init(self, _: object) -> None:
        if not (self.scene or self.text or self.no_picture or self.decline):
            raise ValueError("expect must have scene, text, no_picture or decline, got none; say what is right")
        if self.scene and (self.no_picture or self.decline):
            raise ValueError("expect must ask for an image or for none, got both; remove scene, or the other")
        if (self.keeps and self.scene is None) or (self.changes and not self.keeps):
            raise ValueError("keeps must come beside scene, and changes beside keeps, got one alone; add the other")


class RequestTurn(Form):
    user: str
    expect: Expectation


class RequestItem(Form):
    """One line of the file: a dialogue, and the scene that is shown with its first turn."""

    id: str
    kind: str
    image: Scene | None = None
    turns: list[RequestTurn]

    def model_post_init(self, _: object) -> None:
        if not self.turns or not all(turn.user.strip() for turn in self.turns):
            raise ValueError("turns must say something each, got none or an empty one; add what the user says")
        has_image = self.image is not None
        for turn in self.turns:
            if turn.expect.keeps and not has_image:
                raise ValueError("keeps must follow an image, got none before it; give the item an image")
            has_image = has_image or turn.expect.scene is not None


def as_list(names: Names) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else names


def allows(names: Names, found: str) -> bool:
    return names is None or found in as_list(names)


def check_names(what: str, names: Names, choices: Sequence[str]) -> None:
    for name in as_list(names):
        if name not in choices:
            raise ValueError(f"{what} must be one of {', '.join(choices)}, got {name!r}")


def read_items(path: Path) -> list[RequestItem]:
    """The items of a file; a malformed line is refused with file and line."""
    items: dict[str, RequestItem] = {}
    for where, record in read_lines(path):
        try:
            item = read_value(record, RequestItem)
            if item.id in items:
                raise ValueError(f"id must be given once, got {item.id!r} again; rename it")
            items[item.id] = item.model_copy(update={"image": item.image and nudge_apart(item.image)})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not items:
        raise ValueError(f"{path} must have at least one item, got none; write one on each line")
    return list(items.values())


def generate_items(kinds: Sequence[str], count: int, *, seed: int) -> list[RequestItem]:
    """Requests in people's words that no training has seen; images come with the first turn only."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {', '.join(unknown)}")
    items: list[RequestItem] = []
    for kind, index in product(kinds, range(count)):
        rng = Random(f"requests/{seed}/{kind}/{index}")
        turns = make_people(kind, rng, "test")
        while any(turn.shown for turn in turns[1:]):
            turns = make_people(kind, rng, "test")
        items.append(read_value(as_item(turns, id=f"{kind}-{index}", kind=kind), RequestItem))
    return items


def read_value(value: Any, form: type[T]) -> T:
    try:
        return TypeAdapter(form).validate_json(json.dumps(value))
    except ValidationError as error:
        raise ValueError(wrong_value(error, advice="see docs/evaluation.md")) from error


def nudge_apart(scene: Scene) -> Scene:
    """The scene with its objects moved as little as the radii of the world need."""
    rng, objects = Random(0), list(scene.objects)  # noise frees objects that push along one line
    if not 1 <= len(objects) <= MAX_OBJECTS:
        raise ValueError(f"image must have 1 to {MAX_OBJECTS} objects, got {len(objects)}")
    for item in objects:
        if not (0 <= item.x <= 1 and 0 <= item.y <= 1):
            raise ValueError(f"x and y of an object must be from 0 to 1, got {item.x} and {item.y}")
    for _ in range(NUDGE_STEPS):
        if is_valid(moved := Scene(scene.background, tuple(objects))):
            return moved
        for a, b in combinations(range(len(objects)), 2):
            first, second = objects[a], objects[b]
            x, y = (end - start + rng.uniform(-0.01, 0.01) for start, end in ((first.x, second.x), (first.y, second.y)))
            push = max(0.0, RADIUS[first.size] + RADIUS[second.size] + MIN_GAP + 0.01 - hypot(x, y)) / 2 / hypot(x, y)
            objects[a] = replace(first, x=first.x - push * x, y=first.y - push * y)
            objects[b] = replace(second, x=second.x + push * x, y=second.y + push * y)
        for index, item in enumerate(objects):
            low = RADIUS[item.size] + MIN_INSET
            objects[index] = replace(item, x=min(max(item.x, low), 1 - low), y=min(max(item.y, low), 1 - low))
    raise ValueError(f"image must have room for its objects, got {scene.objects}; move them apart")


def check_answer(expect: Expectation, given: Sequence[str | ParsedScene], before: Scene | None) -> list[str]:
    """What is wrong with an answer; `before` is the scene of the last image before it, as far as it could be read."""
    images = [part for part in given if not isinstance(part, str)]
    text = " ".join(" ".join(part for part in given if isinstance(part, str)).replace("\u2019", "'").split())
    wrong = []
    if expect.scene is not None:
        wrong += check_image(expect, images[0], before) if len(images) == 1 else [f"{len(images)} images, not 1"]
    if (expect.no_picture or expect.decline) and images:
        wrong.append("there is an image")
    if expect.decline and not DECLINES.search(text):
        wrong.append("the words do not say that this cannot be done")
    if expect.text is not None:
        if expect.text.any_of and not any(says(text, words) for words in expect.text.any_of):
            wrong.append(f"the words hold none of {', '.join(expect.text.any_of)}")
        wrong += [f"the words hold {words!r}" for words in expect.text.none_of if says(text, words)]
        if not text:
            wrong.append("there are no words")
    return wrong


def says(text: str, words: str) -> bool:
    """Whether a text holds a word or phrase, not as a part of longer words; upper and lower case are alike."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def check_image(expect: Expectation, image: ParsedScene, before: Scene | None) -> list[str]:
    scene, wanted = image.scene, expect.scene
    if scene is None or wanted is None:
        return [f"the image is not readable ({image.reason})"]
    found = [[item for item in scene.objects if each.matches(item)] for each in wanted.objects]
    counts = zip(wanted.objects, map(len, found), strict=True)
    wrong = [f"{count} of {each}, not {each.count}" for each, count in counts if count != each.count]
    if wanted.total not in (None, len(scene.objects)):
        wrong.append(f"{counted(len(scene.objects), 'object')}, not {wanted.total}")
    wrong += [f"there is a {each}" for each in wanted.none if any(map(each.matches, scene.objects))]
    if not allows(wanted.background, scene.background):
        wrong.append(f"the background is {scene.background}")
    for first, relation, second in wanted.relations:
        if len(found[first]) == len(found[second]) == 1 and not stands(relation, *found[first], *found[second]):
            wrong.append(f"the {wanted.objects[first]} is not {relation} the {wanted.objects[second]}")
    return wrong + (check_kept(expect, scene, before) if expect.keeps else [])


def stands(relation: str, a: SceneObject, b: SceneObject) -> bool:
    return compare(a, b) == COMPARISONS[relation] if relation in COMPARISONS else holds(relation, a, b)


def check_kept(expect: Expectation, scene: Scene, before: Scene | None) -> list[str]:
    """What is no longer as it was in the image before."""
    if before is None:
        return ["the image before could not be read"]
    kept = [item for item in before.objects if not any(each.matches(item) for each in expect.changes)]
    is_same = partial(looks_like, tolerance=POSITION_TOLERANCE)
    gone = [item for item in kept if not any(is_same(item, other) for other in scene.objects)]
    wrong = [f"the {name_of(item)} did not stay" for item in gone]
    if expect.scene is not None and expect.scene.background is None and scene.background != before.background:
        wrong.append(f"the background became {scene.background}")
    return wrong


def name_of(item: SceneObject) -> str:
    return plain_phrase(Filter.of(item))


@dataclass
class RequestDialogue(RunningDialogue):
    """A dialogue of the file; its scene is that of the last image."""

    item: RequestItem
    failure: dict[str, Any] | None = None
    answered: list[tuple[str, bool]] = field(default_factory=list)  # what turns asked for, and if the answer was right

    def asks_for(self, turn: int) -> str:
        expect = self.item.turns[turn].expect
        if expect.scene is None:
            return "words"
        has_image = self.item.image or any(each.expect.scene for each in self.item.turns[:turn])
        return "change" if expect.keeps else "later drawing" if has_image else "first drawing"

    def ask(self, turn: int) -> Sequence[TextPart | ImagePart]:
        if self.failure is not None or turn >= len(self.item.turns):
            return []
        words = TextPart(self.item.turns[turn].user)
        if turn > 0 or self.item.image is None:
            return [words]
        self.scene = self.item.image
        return [ImagePart(render(self.scene, IMAGE_SIDE)), words]

    def check(self, turn: int, given: Sequence[Part]) -> None:
        asked, read = self.item.turns[turn], [parse(part) if isinstance(part, Image.Image) else part for part in given]
        if wrong := check_answer(asked.expect, read, self.scene):
            self.failure = {
                "id": self.item.id,
                "kind": self.item.kind,
                "turn": turn + 1,
                "user": asked.user,
                "reason": "; ".join(wrong),
                "answer": [part if isinstance(part, str) else f"[image: {name_scene(part)}]" for part in read],
            }
        self.answered.append((self.asks_for(turn), not wrong))
        for part in read:
            self.scene = self.scene if isinstance(part, str) else part.scene


def name_scene(image: ParsedScene) -> str:
    if image.scene is None:
        return f"not readable, {image.reason}"
    return f"{', '.join(map(name_of, image.scene.objects))} on {image.scene.background}"


def evaluate_requests(answer: Answer, items: Sequence[RequestItem], *, seed: int = 0) -> dict[str, Any]:
    """Right and total of each kind, in all, and of the turns of conversations, 95 % intervals, and the failures; item i
    has seed + i."""
    dialogues = [RequestDialogue(item, seed=seed + index) for index, item in enumerate(items)]
    run_dialogues(answer, dialogues, "interleaved", name="requests")
    results = [(each.item.kind, each.failure is None) for each in dialogues]
    totals = Counter(item.kind for item in items)
    rates = {kind: Rate(results.count((kind, True)), total) for kind, total in totals.items()}
    overall = Rate(sum(rate.passed for rate in rates.values()), len(items))
    answered = [answer for each in dialogues if len(each.item.turns) > 1 for answer in each.answered]
    return {
        "kinds": {kind: {"right": rate.passed, "total": rate.total} for kind, rate in rates.items()},
        "right": overall.passed,
        "total": overall.total,
        "turns": {
            name: {"right": answered.count((name, True)), "total": total}
            for name, total in sorted(Counter(asked for asked, _ in answered).items())
        },
        "failures": [each.failure for each in dialogues if each.failure is not None],
        "intervals": {name: list(rate.interval) for name, rate in {**rates, "all": overall}.items()},
    }


def measure_requests(pipeline: Pipeline, items: Sequence[RequestItem], *, seed: int, batch_size: int) -> dict[str, Any]:
    check_task(pipeline.tasks, "chat")
    result = evaluate_requests(answer_with(pipeline, at_once=batch_size), items, seed=seed)
    return {**result, "model": model_fingerprint(pipeline.model), "seed": seed, "versions": tool_versions()}


def as_table(result: dict[str, Any]) -> str:
    """Rates with 95 % intervals, then every failure."""
    turns = {f"of conversations: {name}": row for name, row in result["turns"].items()}
    rows = {**result["kinds"], "all": result, **turns}
    width = max(map(len, rows))
    rates = {kind: Rate(row["right"], row["total"]) for kind, row in rows.items()}
    lines = [f"{kind:<{width}}  {rate.passed:>4} of {rate.total:<4} {rate}" for kind, rate in rates.items()]
    for failure in result["failures"]:
        lines += [
            "",
            f"{failure['id']}, turn {failure['turn']}: {failure['user']}",
            f"  wrong: {failure['reason']}",
            f"  answer: {' '.join(failure['answer']) or 'none'}",
        ]
    return "\n".join(lines)
