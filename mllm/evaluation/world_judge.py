"""Judge one part of an answer about the synthetic world, given what the picture on the table shows.

In: a `Check` of a dialogue, the text or picture that a model gave, and the scene that is being talked about. That
scene is the dialogue's own where the user gave the picture, and what the checker read from the model's own picture
where the model drew it: then questions are answered anew for that picture, and an edit means the object that its words
name there. A drawing may be right and still give the next words more than one meaning: "the large one", of two small or
of two large. Such a step is left open: whatever the words may mean there is right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from mllm.world.checker import check, parse
from mllm.world.dense_check import score_dense
from mllm.world.describe_language import check_description
from mllm.world.edit_language import check_edit
from mllm.world.edits import Edit, apply_edit
from mllm.world.questions import Question, answer, normalize_answer, possible_answers
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import ANY, Filter
from mllm.world.turns import Check

DENSE_PASS = 0.9
"""Mean IoU from which a depth or segmentation picture counts as right."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one part, and what is on the table afterwards."""

    passed: bool  # nothing is wrong
    scene: Scene | None  # what the next parts are about; None when the picture could not be read
    reasons: tuple[str, ...] = ()  # what did not hold
    mean_iou: float | None = None  # dense pictures only
    pixel_accuracy: float | None = None
    left_open: bool = False  # the picture that the model drew gives the words more than one meaning


def judge(item: Check, given: str | Image.Image, scene: Scene | None) -> Judgement:
    """Judge `given` as the part of an answer that `item` checks; `scene` is what is on the table."""
    match item.kind, given:
        case "draw", Image.Image():
            assert item.spec is not None, "the check of a drawing says what was demanded"
            parsed = parse(given)
            return _from_verdicts(check(item.spec, parsed).verdicts, parsed.scene)
        case "edit", Image.Image():
            return judge_edit(item, given, scene)
        case ("depth" | "segmentation") as kind, Image.Image():
            return judge_dense(kind, given, scene)
        case "describe", str():
            return _unreadable(scene) if scene is None else _from_verdicts(check_description(given, scene), scene)
        case "answer", str():
            return judge_answer(item, given, scene)
        case "say", str():
            return Judgement(bool(given.strip()), scene, () if given.strip() else ("nothing was said",))
        case (("draw" | "edit" | "depth" | "segmentation"), str()):
            return Judgement(False, scene, ("a picture should be here",))
        case (("describe" | "answer" | "say"), Image.Image()):
            return Judgement(False, scene, ("words should be here",))
        case _:
            raise ValueError(f"check kind {item.kind!r} is unknown; it cannot be judged")


def _from_verdicts(verdicts: tuple, scene: Scene | None) -> Judgement:
    failed = tuple(verdict.demand for verdict in verdicts if not verdict.holds)
    return Judgement(not failed, scene, failed)


def _unreadable(scene: Scene | None) -> Judgement:
    return Judgement(False, scene, ("the picture it is about could not be read",))


def judge_answer(item: Check, given: str, scene: Scene | None) -> Judgement:
    """Exact match of the normalised answer, with the right answers for the scene on the table."""
    right, left_open = frozenset((item.expected,)), False
    if item.question is not None and scene != item.scene:
        if scene is None:
            return _unreadable(scene)
        right, left_open = _answers_elsewhere(item, item.question, scene)
    passed = normalize_answer(given) in map(normalize_answer, right)
    reasons = () if passed else (f"expected {' or '.join(sorted(right))!r}, got {given!r}",)
    return Judgement(passed, scene, reasons, left_open=left_open)


def _answers_elsewhere(item: Check, question: Question, scene: Scene) -> tuple[frozenset[str], bool]:
    """The right answers in another scene, and whether it leaves open which of them."""
    if item.apart_from is not None:
        others = tuple(other for other in scene.objects if not item.apart_from.matches(other))
        question, scene = replace(question, first=ANY), Scene(scene.background, others or scene.objects)
    expected = answer(question, scene)
    return (possible_answers(question, scene), True) if expected is None else (frozenset((expected,)), False)


def judge_edit(item: Check, given: Image.Image, scene: Scene | None) -> Judgement:
    """The change was made to the picture on the table and the rest is untouched."""
    assert item.edit is not None, "the check of an edit has the edit"
    after = parse(given)
    if scene is None:
        return _unreadable(after.scene)
    if after.scene is None:
        return Judgement(False, None, (f"the picture is not readable ({after.reason})",))
    edits, left_open = ([item.edit], False) if scene == item.scene else _edits_elsewhere(item, item.edit, scene)
    verdicts = [check_edit(scene, edit, after.scene) for edit in edits]
    best = max(verdicts, key=lambda each: sum(verdict.holds for verdict in each))
    return replace(_from_verdicts(best, after.scene), left_open=left_open)


def _edits_elsewhere(item: Check, edit: Edit, scene: Scene) -> tuple[list[Edit], bool]:
    """What the words of an edit may mean in another scene, and whether that is anything but one object that they name.

    They may mean each object that they name, save one that already is as they want it where another is not. If they
    name none, they may mean those that are most like it.
    """
    if edit.index is None and edit.anchor is None:
        return [edit], False
    assert item.reference is not None, "an edit of one object says how it names it"
    named = [number for number, other in enumerate(scene.objects) if item.reference.matches(other)]
    name = "anchor" if edit.kind == "add" else "index"
    edits = [replace(edit, **{name: number}) for number in named or _most_alike(item.reference, scene)]
    if len(named) > 1:
        edits = [each for each in edits if apply_edit(scene, each) != scene] or edits
    return edits, len(named) != 1


def _most_alike(reference: Filter, scene: Scene) -> list[int]:
    """The objects that share most with what the words name; the shape counts more than color and size together."""

    def likeness(other: SceneObject) -> tuple[bool, int]:
        return other.shape == reference.shape, (other.color == reference.color) + (other.size == reference.size)

    highest = max(map(likeness, scene.objects))
    return [number for number, other in enumerate(scene.objects) if likeness(other) == highest]


def judge_dense(kind: str, given: Image.Image, scene: Scene | None) -> Judgement:
    """Class of every pixel against the picture that the scene should have."""
    if scene is None:
        return _unreadable(scene)
    score = score_dense(kind, given, scene)
    passed = score.mean_iou >= DENSE_PASS
    reasons = () if passed else (f"mean IoU {score.mean_iou:.2f}",)
    return Judgement(passed, scene, reasons, score.mean_iou, score.pixel_accuracy)
