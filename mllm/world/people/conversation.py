"""Conversations as people have them: pictures, changes, questions, corrections, thanks, and new pictures.

Every turn carries the right answer and its exact meaning in the form of files of requests (docs/evaluation.md), so that
the checker judges every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mllm.world.language import describe, phrases
from mllm.world.people.asking import ask_turn
from mllm.world.people.changing import UnchangeableError, change_other, change_turn, correct_turn
from mllm.world.people.declining import decline_turn, talk_turn
from mllm.world.people.drawing import draw_turn, drawn
from mllm.world.people.speaker import Speaker
from mllm.world.scene import MAX_OBJECTS, SHAPES, Scene, Split, random_scene_for, split_of
from mllm.world.spec import full_filter

KINDS = ("draw", "ask", "describe", "edit", "chat", "outside", "talk", "again")
OTHER = {"yes": ["no"], "no": ["yes"]}


@dataclass(frozen=True, slots=True)
class PeopleTurn:
    """What somebody says, the right answer, and what any answer must be."""

    user: str
    answer: str | Scene
    expect: dict[str, Any]
    shown: Scene | None = None  # an image that comes with the words
    kind: str = ""


def make_people(kind: str, rng: Random, split: Split = "train", *, max_turns: int = 6) -> list[PeopleTurn]:
    """The turns of one conversation of a kind."""
    while True:
        try:
            return _make(kind, Speaker(rng), split, max_turns)
        except UnchangeableError:
            continue


def _make(kind: str, speaker: Speaker, split: Split, max_turns: int) -> list[PeopleTurn]:
    rng = speaker.rng
    scene: Scene | None = None
    shown: Scene | None = None
    if (
        kind in ("ask", "describe", "edit")
        or (kind == "chat" and speaker.maybe(0.3))
        or (kind == "outside" and speaker.maybe(0.35))
    ):
        scene = shown = random_scene_for(split, rng)
        if kind == "outside" and speaker.maybe(0.3):
            scene = shown = random_scene_for(split, rng, num_objects=MAX_OBJECTS)
    if kind == "chat":
        return converse(speaker, split, rng.randint(2, max_turns), shown)
    turns: list[PeopleTurn] = []
    if kind == "again":
        first = random_scene_for(split, rng) if speaker.maybe(0.3) else None
        for number in range(rng.choice((2, 3))):
            turns.append(draw(speaker, split, is_again=number > 0))
        return [replace(turns[0], shown=first), *turns[1:]] if first else turns
    if kind in ("talk", "outside") or scene is None:
        made = {
            "draw": lambda: draw(speaker, split),
            "talk": lambda: talk(speaker, None),
            "outside": lambda: decline(speaker, scene),
        }[kind]()
        return [replace(made, shown=shown)]
    turns.append(replace(respond(speaker, kind, scene, split), shown=shown))
    for _ in range(rng.choice((0, 0, 1, 2, 3)) if kind == "ask" else 0):
        turns.append(respond(speaker, kind, scene, split))
    return turns


def draw(speaker: Speaker, split: Split, *, is_again: bool = False) -> PeopleTurn:
    text, scene, expect = draw_turn(speaker, split)
    if is_again:
        opening = speaker.rng.random()
        if opening < 0.42 or text.startswith(("put", "place", "stick", "there", "and")):
            text = speaker.say("a new picture") + text
        elif opening < 0.84:
            text = speaker.say("next") + " " + text
    return PeopleTurn(
        speaker.type(text),
        scene,
        expect,
        kind="again" if is_again else "draw",
    )


def respond(speaker: Speaker, kind: str, scene: Scene, split: Split) -> PeopleTurn:
    """A turn about the picture."""
    match kind:
        case "ask":
            words, right, any_of = ask_turn(speaker, scene)
            none_of = OTHER.get(right, [])
            expect = {"text": {"any_of": any_of, "none_of": none_of}, "no_picture": True}
            return PeopleTurn(speaker.type(words), right, expect, kind="ask")
        case "describe":
            short = speaker.maybe(0.2)
            words = describe(scene, short=short)
            expect = {
                "text": {
                    "any_of": [scene.objects[0].shape],
                    "none_of": [s for s in SHAPES if all(i.shape != s for i in scene.objects)],
                },
                "no_picture": True,
            }
            return PeopleTurn(
                speaker.type(speaker.say("caption" if short else "describe")),
                words,
                expect,
                kind="describe",
            )
        case "correct":
            made = correct_turn(speaker, scene, split) or change_turn(speaker, scene, split)
        case _:
            made = change_turn(speaker, scene, split)
    text, after, expect = made
    return PeopleTurn(speaker.type(text), after, expect, kind="edit")


def decline(speaker: Speaker, scene: Scene | None) -> PeopleTurn:
    text, right = decline_turn(speaker, scene)
    return PeopleTurn(speaker.type(text), right, {"decline": True}, kind="outside")


def talk(speaker: Speaker, after: str | None) -> PeopleTurn:
    text, right, any_of = talk_turn(speaker, after)
    expect: dict[str, Any] = {"no_picture": True}
    if any_of:
        expect["text"] = {"any_of": any_of}
    return PeopleTurn(speaker.type(text), right, expect, kind="talk")


def converse(speaker: Speaker, split: Split, num_turns: int, shown: Scene | None) -> list[PeopleTurn]:
    """A conversation: pictures, changes, questions, corrections, thanks, what cannot be done, and new pictures."""
    rng = speaker.rng
    table = phrases("people")["weights"]
    scene, before = shown, None  # what is in the last picture, and in the one before it
    turns: list[PeopleTurn] = []
    while len(turns) < num_turns:
        last = turns[-1].kind if turns else None
        state = "at first" if scene is None else "later" if turns else "with an image"
        weights = {**table[f"turn {state}"]}
        if state == "later":
            weights["correct"] *= last in ("draw", "again", "edit")
            weights["undo"] *= last == "edit" and before is not None
        if len(turns) == num_turns - 1 and turns:
            weights["talk"] = 26
        kind = speaker.pick(weights)
        new: Scene | None = None
        match kind:
            case "draw":
                turn = draw(speaker, split, is_again=scene is not None)
                if last == "outside" and speaker.maybe(0.5):
                    start = speaker.say("after all")
                    turn = replace(turn, user=start + turn.user[:1].lower() + turn.user[1:])
            case "talk":
                turn = talk(speaker, "draw" if last in ("draw", "again", "edit") else last)
            case "outside":
                turn = decline(speaker, scene)
            case "undo":
                assert scene is not None and before is not None
                named = [full_filter(item) for item in before.objects]
                expect = drawn(before, named, background=before.background)
                turn = PeopleTurn(speaker.type(speaker.say("undo")), before, expect, kind="edit")
            case "edit" if (
                before is not None and speaker.maybe(0.3) and (made := other_turn(speaker, before, scene, split))
            ):
                turn = made
            case "show":
                new = random_scene_for(split, rng)
                turn = replace(respond(speaker, rng.choice(("ask", "edit", "describe")), new, split), shown=new)
            case _:
                assert scene is not None
                turn = respond(speaker, kind, scene, split)
        if turn.kind in ("draw", "again", "edit") and turns and speaker.maybe(0.1):
            turn = replace(turn, user=f"{speaker.type(speaker.say('cheer')).rstrip('.')} {turn.user}")
        if new is not None:
            scene, before = new, None
        if isinstance(turn.answer, Scene):
            scene, before = turn.answer, scene if turn.kind == "edit" and kind != "undo" else None
        turns.append(turn)
    if shown is not None:
        turns[0] = replace(turns[0], shown=shown)
    return turns


def other_turn(speaker: Speaker, before: Scene, scene: Scene | None, split: Split) -> PeopleTurn | None:
    """ "Now remove the other one", after a change of one of two."""
    made = change_other(speaker, before, scene) if scene else None
    if made is None or split_of(made[1]) != split:
        return None
    return PeopleTurn(speaker.type(made[0]), made[1], made[2], kind="edit")


def as_item(turns: Sequence[PeopleTurn], *, id: str, kind: str) -> dict[str, Any]:
    """A conversation as a line of a file of requests."""
    first = turns[0].shown
    image = first and {
        "background": first.background,
        "objects": [
            {name: getattr(item, name) for name in ("shape", "color", "size", "x", "y")} for item in first.objects
        ],
    }
    return {
        "id": id,
        "kind": kind,
        "image": image,
        "turns": [{"user": turn.user, "expect": turn.expect} for turn in turns],
    }
