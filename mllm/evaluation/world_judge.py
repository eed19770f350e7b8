"""Judge one part of an answer about the synthetic world, given what the picture on the table shows.

In: a `Check` of a dialogue, the text or picture that a model gave, and the scene that is being talked about. That
scene is the dialogue's own where the user gave the picture, and what the checker read from the model's own picture
where the model drew it: then questions are answered anew for that picture, and an edit means the object that its words
name there. A drawing may be right and still give the next words no single meaning ("Where is the heart?", of two): no
answer to these is wrong, so they are left open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from mllm.world.checker import check, parse
from mllm.world.dense_check import score_dense
from mllm.world.describe_language import check_description
from mllm.world.edit_language import check_edit
from mllm.world.edits import Edit
from mllm.world.questions import answer, normalize_answer
from mllm.world.scene import Scene
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
    left_open: bool = False  # the picture that the model drew gives the words no single meaning


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
    """Exact match of the normalised answer, with the right answer for the scene on the table."""
    expected: str | None = item.expected
    if item.question is not None and scene != item.scene:
        if scene is None:
            return _unreadable(scene)
        expected = answer(item.question, scene)
    if expected is None:
        return Judgement(True, scene, left_open=True)
    passed = normalize_answer(given) == normalize_answer(expected)
    return Judgement(passed, scene, () if passed else (f"expected {expected!r}, got {given!r}",))


def judge_edit(item: Check, given: Image.Image, scene: Scene | None) -> Judgement:
    """The change was made to the picture on the table and the rest is untouched."""
    after = parse(given)
    if scene is None:
        return _unreadable(after.scene)
    if after.scene is None:
        return Judgement(False, None, (f"the picture is not readable ({after.reason})",))
    edit = item.edit if scene == item.scene else _same_edit_elsewhere(item, scene)
    if edit is None:
        return Judgement(True, after.scene, left_open=True)
    return _from_verdicts(check_edit(scene, edit, after.scene), after.scene)


def _same_edit_elsewhere(item: Check, scene: Scene) -> Edit | None:
    """The edit of the object that its words name in another scene; None where they name none or several."""
    assert item.edit is not None, "the check of an edit has the edit"
    if item.named is None:
        return item.edit
    found = [number for number, other in enumerate(scene.objects) if item.named.matches(other)]
    if len(found) != 1:
        return None
    return replace(item.edit, **{"anchor" if item.edit.kind == "add" else "index": found[0]})


def judge_dense(kind: str, given: Image.Image, scene: Scene | None) -> Judgement:
    """Class of every pixel against the picture that the scene should have."""
    if scene is None:
        return _unreadable(scene)
    score = score_dense(kind, given, scene)
    passed = score.mean_iou >= DENSE_PASS
    reasons = () if passed else (f"mean IoU {score.mean_iou:.2f}",)
    return Judgement(passed, scene, reasons, score.mean_iou, score.pixel_accuracy)
