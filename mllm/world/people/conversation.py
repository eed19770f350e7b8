"""Conversations as people have them: pictures, changes, questions, corrections, small talk, requests for what this
world lacks, and new pictures.

Every turn carries the right answer and its exact meaning in the form of files of requests (docs/evaluation.md), so that
the checker judges every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

from mllm.world.grammar import Speaker
from mllm.world.language import UnsayableError, describe, need, phrases
from mllm.world.people.asking import SYNONYMS, ask_turn
from mllm.world.people.changing import (
    Changed,
    add_one,
    change_alike,
    change_background,
    change_new,
    change_one,
    change_other,
    change_set,
    change_turn,
    correct_turn,
    kept,
    order_change,
    say_more,
)
from mllm.world.people.drawing import draw_turn, drawn, random_kinds
from mllm.world.scene import (
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Split,
    random_scene_for,
    split_of,
)
from mllm.world.spec import ANY, Filter

KINDS = ("draw", "ask", "describe", "edit", "chat", "outside", "talk", "again")
IMAGE_SHARES = {"chat": 0.3, "outside": 0.35}
"""How often a conversation begins with an image that somebody shows, where it need not."""
OTHER = {"yes": ["no"], "no": ["yes"]}
NEARLY_TRIES = 60
CHANGES = {change_one: 48, change_set: 14, add_one: 30, change_background: 20}
"""Changes that may ask for what this world lacks in words that are otherwise in order."""
REASONS = {"shape": "thing", "list": "count", "fifth": "count", "styling": "style"}
"""Of what cannot be done, where it is not called like the request."""
NEEDED = {
    "can": ["draw", "shapes"],
    "can draw": ["circles", "shapes"],
    "can color": ["red"],
    "can count": ["four", "4"],
}
"""Words of which any answer must hold one."""


@dataclass(frozen=True, slots=True)
class PeopleTurn:
    """What somebody says, the right answer, and what any answer must be."""

    user: str
    answer: str | Scene
    expect: dict[str, Any]
    shown: Scene | None = None  # an image that comes with the words
    kind: str = ""
    value: Filter | None = None  # what an object became, where one was changed


def make_people(kind: str, rng: Random, split: Split = "train", *, max_turns: int = 6) -> list[PeopleTurn]:
    """The turns of one conversation of a kind."""
    while True:
        with suppress(UnsayableError):
            return _make(kind, Speaker(rng), split, max_turns)


def _make(kind: str, speaker: Speaker, split: Split, max_turns: int) -> list[PeopleTurn]:
    rng = speaker.rng
    shown: Scene | None = None
    if kind in ("ask", "describe", "edit") or speaker.maybe(IMAGE_SHARES.get(kind, 0)):
        is_full = kind == "outside" and speaker.maybe(0.3)
        shown = random_scene_for(split, rng, num_objects=MAX_OBJECTS if is_full else None)
    match kind:
        case "chat":
            turns = converse(speaker, split, rng.randint(2, max_turns), shown)
        case "again":
            shown = random_scene_for(split, rng) if speaker.maybe(0.3) else None
            turns = [draw(speaker, split)]
            if speaker.maybe(0.35):
                turns.append(respond(speaker, "edit", turns[-1].answer, split))
            turns += [draw(speaker, split, is_again=True) for _ in range(rng.choice((1, 2)))]
        case "draw":
            turns = [draw(speaker, split)]
        case "talk":
            turns = [talk(speaker, None)]
        case "outside":
            turns = [decline(speaker, shown)]
        case _:
            number = rng.choice((1, 1, 2, 3, 4)) if kind == "ask" else 1
            turns = [respond(speaker, kind, shown, split) for _ in range(number)]
    return [replace(turns[0], shown=shown), *turns[1:]]


def converse(speaker: Speaker, split: Split, num_turns: int, scene: Scene | None) -> list[PeopleTurn]:
    """Several turns about one picture after another, first about the one that is shown."""
    rng = speaker.rng
    table = phrases("people")["weights"]
    images = [scene] if scene else []  # all of the conversation
    before = None  # the picture before the last one, where that was changed
    turns: list[PeopleTurn] = []
    while len(turns) < num_turns:
        last = turns[-1] if turns else None
        last_kind = last.kind if last else None
        after_image = last_kind in ("draw", "again", "edit")
        state = "at first" if not images else "later" if turns else "with an image"
        weights = {**table[f"turn {state}"]}
        if state == "later":
            weights["correct"] *= after_image or last_kind == "talk"
            weights["undo"] *= last_kind == "edit" and before is not None
            weights["earlier"] *= len(images) > 1
            weights["back"] *= len(images) > 1
        if len(turns) == num_turns - 1 and turns:
            weights["talk"] = 26
        kind = speaker.pick(weights)
        scene = images[-1] if images else None
        match kind:
            case "draw":
                turn = draw(speaker, split, is_again=scene is not None)
                if last_kind == "outside" and speaker.maybe(0.5):
                    turn = replace(turn, user=speaker.say("after all") + turn.user[:1].lower() + turn.user[1:])
            case "talk":
                turn = talk(speaker, "draw" if after_image else last_kind)
            case "ask" if last_kind == "ask" and last.answer in (*COLORS, *SIZES) and speaker.maybe(0.4):
                turn = ask_next(speaker, scene, "color" if last.answer in COLORS else "size")
            case "outside":
                turn = decline(speaker, scene)
            case "settle":
                declined, turn = settle(speaker, split)
                turns.append(declined)
            case "undo":
                turn = show_again(speaker, speaker.say("undo"), before)
            case "earlier" | "back":
                turn = look_back(speaker, images, kind, is_changed=before is not None)
            case "show":
                new = random_scene_for(split, rng)
                turn = replace(respond(speaker, rng.choice(("ask", "edit", "describe")), new, split), shown=new)
                images.append(new)
                before = None
            case _:
                turn = respond(speaker, kind, scene, split, before=before, value=last.value if last else None)
        if turn.kind in ("draw", "again", "edit") and turns and kind != "settle" and speaker.maybe(0.1):
            turn = replace(turn, user=f"{speaker.type(speaker.say('cheer')).rstrip('.')} {turn.user}")
        if isinstance(turn.answer, Scene):
            before = images[-1] if turn.kind == "edit" else None
            images.append(turn.answer)
        turns.append(turn)
    return turns


# ---- turns ----


def show_again(speaker: Speaker, words: str, scene: Scene) -> PeopleTurn:
    """The wish to have an earlier picture again."""
    expect = drawn(scene, [Filter.of(item) for item in scene.objects], background=scene.background)
    return PeopleTurn(speaker.type(words), scene, expect, kind="again")


def look_back(speaker: Speaker, images: Sequence[Scene], kind: str, *, is_changed: bool) -> PeopleTurn:
    """A question about an earlier picture, or the wish to have it again."""
    index, last = speaker.rng.randrange(len(images) - 1), len(images) - 1
    scene = images[index]
    called = {"first": index == 0, "previous": index == last - 1, "two ago": index == last - 2}
    called["before the change"] = is_changed and index == last - 1
    names = [name for name, is_right in called.items() if is_right]
    shapes = [shape for shape in SHAPES if sum(Filter(shape).count(other) > 0 for other in images) == 1]
    marks = [shape for shape in shapes if Filter(shape).count(scene) == 1]
    if marks and (not names or speaker.maybe(0.3)):
        name = speaker.say("picture with", n=speaker.noun(Filter(speaker.rng.choice(marks))))
    else:
        name = speaker.say(f"picture {speaker.rng.choice(need(names))}")
    if kind == "back":
        return show_again(speaker, speaker.say("once more", w=name), scene)
    return ask(speaker, scene, where=name)


def settle(speaker: Speaker, split: Split) -> tuple[PeopleTurn, PeopleTurn]:
    """A request that cannot be met, and what somebody asks for instead, in few words: "then in red"."""
    rng = speaker.rng
    form = rng.choice(("color", "color", "shape", "count", "background"))
    scene = random_scene_for(split, rng, num_objects=rng.choice((2, 3, 4)) if form == "count" else 1)
    item, number = scene.objects[0], len(scene.objects)
    named = Filter.of(item, ("color", "shape"))
    need(named.count(scene) == number)
    beyond, more = speaker.say(f"{form} outside"), {}
    match form:
        case "count":
            value, text = speaker.number(number), f"{beyond} {speaker.noun(named, plural=True)}"
        case "background":
            value, more = speaker.say(scene.background), {"background": scene.background}
            text = f"{speaker.some(named)} {speaker.say('bgphrase', b=beyond)}"
        case _:
            value = speaker.say(getattr(item, form))
            with speaker.asking_beyond({getattr(item, form): beyond}):
                text = speaker.some(named)
    noun = speaker.noun(Filter(item.shape), plural=number > 1)
    first = speaker.type(speaker.say("draw", x=text))
    second = speaker.type(speaker.say(f"settled {form}", v=value, n=noun))
    expect = drawn(scene, [Filter(item.shape) if form == "shape" else named] * number, **more)
    return outside_turn(first, form), PeopleTurn(second, scene, expect, kind="draw")


def draw(speaker: Speaker, split: Split, *, is_again: bool = False) -> PeopleTurn:
    opening = speaker.rng.random() if is_again else 1.0
    text, scene, expect = draw_turn(speaker, split, frame="draw anew" if opening < 0.2 else "draw")
    if is_again and opening >= 0.2:
        if opening < 0.33 or text.startswith(("put", "place", "stick", "there", "and")):
            text = speaker.say("a new picture") + text
        elif opening < 0.64:
            text = speaker.say("next") + " " + text
    return PeopleTurn(speaker.type(text), scene, expect, kind="again" if is_again else "draw")


def respond(
    speaker: Speaker, kind: str, scene: Scene, split: Split, *, before: Scene | None = None, value: Filter | None = None
) -> PeopleTurn:
    """A turn about the picture, and about what was changed in the one before it."""
    if kind == "ask":
        return ask(speaker, scene)
    if kind == "describe":
        short = speaker.maybe(0.2)
        absent = [shape for shape in SHAPES if not Filter(shape).count(scene)]
        words, any_of = speaker.say("caption" if short else "describe"), [scene.objects[0].shape]
        return text_turn(speaker, words, describe(scene, short=short), any_of, absent, kind=kind)
    made = change(speaker, kind, scene, split, before=before, value=value)
    return PeopleTurn(speaker.type(made.text), made.scene, kept(scene, made), kind="edit", value=made.value)


def text_turn(
    speaker: Speaker, words: str, right: str, any_of: list[str], none_of: Sequence[str] = (), *, kind: str = "ask"
) -> PeopleTurn:
    """Something that is answered in words."""
    expect = {"text": {"any_of": any_of, "none_of": list(none_of)}, "no_picture": True}
    return PeopleTurn(speaker.type(words), right, expect, kind=kind)


def ask(speaker: Speaker, scene: Scene, *, where: str = "") -> PeopleTurn:
    words, right, any_of = ask_turn(speaker, scene, where=where)
    return text_turn(speaker, words, right, any_of, OTHER.get(right, ()))


def ask_next(speaker: Speaker, scene: Scene, attribute: str) -> PeopleTurn:
    """The question before about another object: "and the star?"."""
    item = speaker.rng.choice(scene.objects)
    right = getattr(item, attribute)
    words = speaker.say("and that one", t=speaker.refer(scene, item, without=attribute))
    return text_turn(speaker, words, right, [right, *SYNONYMS.get(right, [])])


def change(
    speaker: Speaker, kind: str, scene: Scene, split: Split, *, before: Scene | None, value: Filter | None
) -> Changed:
    """A change, mostly of anything, at times of what the one before it says."""
    if kind == "edit" and before is not None and speaker.maybe(0.45):
        with suppress(UnsayableError):
            if value is not None and speaker.maybe(0.5):
                made = change_alike(speaker, scene, value)
            else:
                is_added = len(scene.objects) > len(before.objects)
                made = (change_new if is_added else change_other)(speaker, before, scene)
            if split_of(made.scene) == split:
                return made
    return (correct_turn if kind == "correct" else change_turn)(speaker, scene, split)


# ---- small talk, and what lies outside the world, with the honest answer ----


def talk(speaker: Speaker, after: str | None) -> PeopleTurn:
    table = phrases("people")
    weights = {**table["weights"]["talk"]}
    if after is not None:
        name = {"draw": "talk after an image", "outside": "talk after a refusal"}.get(after, "talk later")
        weights |= table["weights"][name]
    kind = speaker.pick(weights)
    text = speaker.say(kind)
    if kind in ("can", "can draw", "who", "like") and speaker.maybe(0.15):
        text = f"{speaker.say('greet')} {text}"
    expect: dict[str, Any] = {"no_picture": True}
    if kind in NEEDED:
        expect["text"] = {"any_of": NEEDED[kind]}
    return PeopleTurn(speaker.type(text), table["answers"][kind], expect, kind="talk")


def decline(speaker: Speaker, scene: Scene | None) -> PeopleTurn:
    """A request for what this world lacks; about the picture where there is one."""
    about = scene if speaker.maybe(0.6) else None
    form = speaker.pick(phrases("people")["weights"]["outside editing" if about else "outside drawing"])
    if form == "nearly":
        text, form = nearly_inside(speaker, about)
    else:
        text = outside_words(speaker, form, about)
    return outside_turn(speaker.type(text), form)


def outside_turn(words: str, form: str) -> PeopleTurn:
    answer = phrases("people")["declines"][REASONS.get(form, form)]
    return PeopleTurn(words, answer, {"decline": True}, kind="outside")


def nearly_inside(speaker: Speaker, scene: Scene | None) -> tuple[str, str]:
    """A request in the words of those that can be done, but for one of them: a color, a shape, a background, or how
    many; and which of these it is."""
    kind = speaker.pick({"color": 40, "shape": 22, "background": 8, "count": 30})
    if kind == "count":
        return say_excess(speaker, scene), kind
    here = values_of(scene, kind) if scene else set()
    known = {"color": COLORS, "shape": SHAPES, "background": BACKGROUNDS}[kind]
    absent = [value for value in known if value not in here]
    rule = "thing noun" if kind == "shape" and speaker.maybe(0.3) else f"{kind} outside"
    values = speaker.rng.sample(absent, min(len(absent), speaker.rng.choice((2, 3, 6))))
    beyond = {value: speaker.say(rule) for value in values}
    for _ in range(NEARLY_TRIES):
        with suppress(UnsayableError), speaker.asking_beyond(beyond):
            if scene is None:
                text, made, expect = draw_turn(speaker, "train")
                asked = expect["scene"]
                need(not asked["none"] and not any(isinstance(each.get("color"), list) for each in asked["objects"]))
            else:
                text, made = speaker.pick(CHANGES)(speaker, scene)[:2]
            if any(beyond[value] in text for value in values_of(made, kind) if value in beyond):
                return text, kind
    raise UnsayableError


def values_of(scene: Scene, kind: str) -> set[str]:
    return {scene.background} if kind == "background" else {getattr(item, kind) for item in scene.objects}


def say_excess(speaker: Speaker, scene: Scene | None) -> str:
    """A request for more objects than there can be; for so many more that the picture has too many."""
    if scene is None:
        with speaker.asking_beyond(exceeds=True):
            return draw_turn(speaker, "train")[0]
    if len(scene.objects) == MAX_OBJECTS and speaker.maybe(0.3):
        (kind,) = random_kinds(speaker.rng, 1)
        return order_change(speaker, "add anywhere", a=f"{speaker.say('one more')} {speaker.noun(kind)}")
    number = MAX_OBJECTS - len(scene.objects) + speaker.rng.choice((1, 1, 1, 2, 2, 3))
    return say_more(speaker, scene, number)[0]


def outside_words(speaker: Speaker, form: str, scene: Scene | None) -> str:
    """What cannot be drawn, or cannot be done with the picture of a scene."""
    rng = speaker.rng
    one, other = (Filter(kind.shape, kind.color) for kind in random_kinds(rng, 2))
    bare, size = Filter(one.shape), rng.choice(SIZES)
    items = scene.objects if scene else ()
    target = speaker.refer(scene, rng.choice(items)) if items else f"the {speaker.noun(bare)}"
    counted = rng.choice((one, one, replace(one, size=size), replace(bare, size=size), bare, ANY))
    slots = {
        "t": "it" if len(items) == 1 and speaker.maybe(0.5) else target,
        "x": speaker.some(replace(one, size=rng.choice((None, size)))),
        "y": speaker.some(other),
        "n": speaker.noun(one),
        "noun": speaker.noun(bare),
        "nouns": speaker.noun(bare, plural=True),
        "counted": speaker.noun(counted, plural=True, long=True),
        "c": speaker.say(one.color),
        "s": speaker.say(size),
    }
    match form:
        case "chat" | "empty" | "foreign":
            return speaker.say(f"{form} outside")
        case "fifth":
            return say_excess(speaker, scene)
        case "list":
            kinds = [Filter(kind.shape, kind.color) for kind in random_kinds(rng, rng.choice((5, 5, 6)))]
            counts = [1] * len(kinds)
            if speaker.maybe(0.4):
                counts = rng.choice(((3, 2), (2, 3), (3, 3), (4, 1), (4, 2), (2, 2, 1), (4, 4), (1, 4)))
            text = speaker.listed([speaker.some(kind, count) for kind, count in zip(kinds, counts, strict=False)])
        case "background" if items:
            return order_change(speaker, "background", v=speaker.say("background outside"))
        case "color" if items and speaker.maybe(0.8):
            return order_change(speaker, "recolor", t=slots["t"], v=speaker.say("color outside"))
        case "shape" if items and speaker.maybe(0.4):
            return order_change(speaker, "reshape", t=slots["t"], v=f"a {speaker.say('shape outside')}")
        case "move" if len(items) > 1 and speaker.maybe(0.3):
            moved, anchor = rng.sample(items, 2)
            names = {"t": speaker.refer(scene, moved), "b": speaker.refer(scene, anchor)}
            return speaker.say("move there", r=speaker.say(rng.choice(RELATIONS)), **names)
        case "move" | "styling" | "rotate" | "text":
            said = speaker.say(form, **slots, a=slots["t"])
            is_whole = speaker.maybe(0.5) if form == "text" else "tilted" in said
            return said if is_whole else speaker.say("change frame", c=said)
        case _:
            text = speaker.say(f"request for {form}", **slots)
    if not items or form not in ("thing", "shape", "color"):
        return speaker.say("draw", x=text)
    where = speaker.say("perhaps where", r=speaker.say(rng.choice(RELATIONS)), t=slots["t"])
    return order_change(speaker, "add", a=text, w=where)


def as_item(turns: Sequence[PeopleTurn], *, id: str, kind: str) -> dict[str, Any]:
    """A conversation as a line of a file of requests."""
    said = [{"user": turn.user, "expect": turn.expect} for turn in turns]
    image = turns[0].shown and asdict(turns[0].shown)
    image = image and {**image, "objects": list(image["objects"])}
    return {"id": id, "kind": kind, "image": image, "turns": said}
