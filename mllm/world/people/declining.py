"""What lies outside the world, with the honest answer, and small talk."""

from __future__ import annotations

from mllm.world.grammar import Slot, listed
from mllm.world.language import phrases
from mllm.world.people.changing import order_change
from mllm.world.people.speaker import Speaker
from mllm.world.scene import MAX_OBJECTS, RELATIONS, SEEN_PAIRS, SIZES, Scene
from mllm.world.spec import ANY, Filter

REASONS = {"shape": "thing", "list": "count", "fifth": "count", "styling": "style"}
NEEDED = {
    "can": ["draw", "shapes"],
    "can draw": ["circles", "shapes"],
    "can color": ["red"],
    "can count": ["four", "4"],
}
"""Words of which any answer must hold one."""


def decline_turn(speaker: Speaker, scene: Scene | None) -> tuple[str, str]:
    """A request for what this world lacks, and the honest answer; about the picture where there is one."""
    is_edit = scene is not None and speaker.maybe(0.75)
    form = speaker.pick(phrases("people")["weights"]["outside editing" if is_edit else "outside drawing"])
    if form == "fifth" and scene is not None and len(scene.objects) < MAX_OBJECTS:
        return decline_turn(speaker, scene)
    return outside_words(speaker, form, scene, is_edit=is_edit), phrases("people")["declines"][REASONS.get(form, form)]


def outside_words(speaker: Speaker, form: str, scene: Scene | None, *, is_edit: bool) -> str:
    rng = speaker.rng
    color, shape = rng.choice(sorted(SEEN_PAIRS))
    named = Filter(shape, color, rng.choice((None, *SIZES)))
    other_color, other_shape = rng.choice(sorted(SEEN_PAIRS))
    one, other = speaker.some(named, short=True), speaker.some(Filter(other_shape, other_color), short=True)
    if scene is not None and is_edit:
        item = rng.choice(scene.objects)
        target = speaker.refer(scene, item) or "them"
        target = rng.choice(("it", target)) if len(scene.objects) == 1 else target
    else:
        target = speaker.noun(Filter(shape), short=True)
        target = f"the {target}"
    adjective = speaker.say(rng.choice(SIZES)) if speaker.maybe(0.25) else ""
    slots: dict[str, Slot] = {"t": target, "x": one, "y": other, "n": speaker.noun(Filter(shape, color), short=True)}
    match form:
        case "thing":
            text = speaker.say("thing")
            if speaker.maybe(0.15):
                text = listed([text, one] if speaker.maybe(0.5) else [one, text], rng)
        case "shape":
            text = f"a {adjective} {speaker.say(color) if speaker.maybe(0.7) else ''} {speaker.say('shape outside')}"
            if speaker.maybe(0.25):
                text = listed([text, one] if speaker.maybe(0.5) else [one, text], rng)
        case "color":
            noun, beyond = speaker.noun(Filter(shape)), speaker.say("color outside")
            if is_edit and speaker.maybe(0.8):
                return order_change(speaker, "recolor", t=target, v=beyond, bare=target)
            text = f"{rng.choice(('a', 'a', 'one', ''))} {adjective} {beyond} {noun}"
            if speaker.maybe(0.2):
                text = f"{rng.choice(('two', '3', 'three'))} {beyond} {speaker.noun(Filter(shape), plural=True)}"
            if speaker.maybe(0.25):
                text = listed([text, one] if speaker.maybe(0.5) else [one, text], rng)
        case "count":
            counted = rng.choice((Filter(shape, color), Filter(shape), ANY, Filter(color=color)))
            text = f"{speaker.say('count outside')} {speaker.noun(counted, plural=True)}"
            if speaker.maybe(0.15):
                text += rng.choice((f", all {speaker.say(color)}", ", each a different color", " in a row"))
        case "list":
            pairs = [rng.choice(sorted(SEEN_PAIRS)) for _ in range(rng.choice((5, 5, 6)))]
            text = listed([speaker.some(Filter(shape, color), short=True) for color, shape in pairs], rng)
            if speaker.maybe(0.4):
                counts = rng.choice(((3, 2), (2, 3), (3, 3), (4, 1), (4, 2), (2, 2, 1), (4, 4), (1, 4)))
                text = listed(
                    [
                        speaker.some(Filter(shape, color), count, short=True)
                        for count, (color, shape) in zip(counts, pairs, strict=False)
                    ],
                    rng,
                )
        case "fifth":
            many = speaker.say("one more")
            noun = speaker.noun(Filter(shape, color), short=True, plural=many in ("two more", "three more"))
            return order_change(speaker, "add", a=f"{many} {noun}", w="")
        case "background":
            value = speaker.say("background outside")
            if is_edit:
                return order_change(speaker, "background", v=value)
            text = one + " " + speaker.say("bgphrase", b=value)
        case "move" | "styling" | "rotate":
            said = speaker.say(form, **slots, a=target)
            return said if "tilted" in said else speaker.say("change frame", c=said)
        case "text" | "chat":
            said = speaker.say("chat outside" if form == "chat" else form)
            return said if form == "chat" or speaker.maybe(0.5) else speaker.say("change frame", c=said)
        case _:
            text = speaker.say(form, **slots)
    if is_edit and form in ("thing", "shape", "color"):
        if form == "shape" and speaker.maybe(0.4):
            return order_change(speaker, "reshape", t=target, v=f"a {speaker.say('shape outside')}", bare=target)
        return order_change(
            speaker, "add", a=text, w=speaker.say("perhaps where", r=speaker.say(rng.choice(RELATIONS)), t=target)
        )
    return speaker.say("draw", x=text)


def talk_turn(speaker: Speaker, after: str | None) -> tuple[str, str, list[str]]:
    """Small talk: words, the answer, and words of which any answer must hold one."""
    table = phrases("people")
    weights = {**table["weights"]["talk"]}
    if after is not None:
        weights |= table["weights"]["talk after an image" if after in ("draw", "edit") else "talk later"]
    kind = speaker.pick(weights)
    text = speaker.say(kind)
    if kind in ("can", "can draw", "who", "like") and speaker.maybe(0.15):
        text = f"{speaker.say('greet')} {text}"
    return text, table["answers"][kind], NEEDED.get(kind, [])
