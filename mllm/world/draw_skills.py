"""Descriptions that exercise one skill: counting, comparison, differentiation, negation, universality.

Each function says something true of the scene with its skill, or returns None where the scene gives no occasion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from mllm.world.phrases import NUMBER_WORDS, count_phrase, full_filter, join, noun_phrase, say, with_article
from mllm.world.scene import COLORS, SHAPES, Pair, Scene, SceneObject
from mllm.world.spec import ANY, Alike, Compared, Constraint, Count, Every, Exists, Filter, Spec, enumerate_objects
from mllm.world.templates import draw as draw_templates
from mllm.world.wording import Said, UnsayableError, Wording

STATEMENT_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Core:
    """A description without the request around it."""

    text: str
    spec: Spec
    skills: tuple[str, ...]
    is_statement: bool  # a whole sentence, not a noun phrase


def _fill(
    scene: Scene,
    rng: Random,
    skill: str,
    choices: tuple[tuple[str, ...], tuple[str, ...]],
    extra: Mapping[str, Said],
    *,
    always: tuple[Constraint, ...] = (),
    filters: list[Filter] | None = None,
    objects: Sequence[SceneObject] | None = None,
) -> Core | None:
    """Fill a caption or statement template. Its constraints are those of its slots and those that `always` hold."""
    objects = objects or scene.objects
    captions, statements = choices
    is_statement = bool(statements) and (not captions or rng.random() < STATEMENT_SHARE)
    filters = filters or [Filter(item.shape, item.color) for item in objects]
    for _ in range(4):
        try:
            said = Wording(scene, objects, filters, rng, extra).fill(
                rng.choice(statements if is_statement else captions)
            )
        except UnsayableError:
            continue
        constraints = tuple(dict.fromkeys((*always, *said.constraints)))
        if any(isinstance(item, Exists) for item in said.constraints):
            constraints = tuple(dict.fromkeys((*constraints, Count(ANY, len(scene.objects)))))
        return Core(said.text, Spec(constraints), (skill,), is_statement)
    return None


def _groups(scene: Scene, attributes: tuple[str, ...], rng: Random) -> Said:
    """Objects counted by some of their attributes: "two red circles and a blue square"."""
    counts = Counter(Filter(**{name: getattr(item, name) for name in attributes}) for item in scene.objects)
    order = rng.sample(sorted(counts, key=str), len(counts))
    text = join([count_phrase(item, counts[item], rng) for item in order])
    total = Count(ANY, len(scene.objects))
    return Said(text, tuple(dict.fromkeys((*(Count(item, counts[item]) for item in order), total))))


def count(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say how many there are of each kind; needs more than one of some kind."""
    levels: list[tuple[str, ...]] = [("color", "shape"), ("color", "shape"), ("shape",), ("color",), ()]
    fitting = [
        names
        for names in levels
        if len({tuple(getattr(item, name) for name in names) for item in scene.objects}) < len(scene.objects)
    ]
    if not fitting:
        return None
    level = rng.choice([names for names in fitting if names] * 4 + [names for names in fitting if not names])
    extra = {"groups": _groups(scene, level, rng)}
    return _fill(scene, rng, "counting", (draw_templates.COUNTING, draw_templates.COUNTING_STATEMENTS), extra)


def compare(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say which of two objects is larger."""
    if len(scene.objects) > 2:
        return _compare_among(scene, rng)
    if len(scene.objects) < 2:
        return None
    large, small = sorted(scene.objects, key=lambda item: item.size)
    if large.size == small.size:
        return _fill(scene, rng, "comparison", (draw_templates.SAME_SIZE, ()), {}, always=(Compared(0, "same size", 1),))
    if large.pair == small.pair:
        names = rng.choice((("shape",), ("shape", "color"), ("shape", "color")))
        shared = {name: getattr(large, name) for name in names}
        sizes = (Filter(**shared, size="large"), Filter(**shared, size="small"))
        said = Said(noun_phrase(Filter(**shared), rng), enumerate_objects(sizes))
        return _fill(scene, rng, "comparison", (draw_templates.TWINS, ()), {"noun": said})
    if large.shape == small.shape or rng.random() < 0.7:
        kinds = [Filter(large.shape, large.color), Filter(small.shape, small.color)]
    else:
        kinds = [Filter(large.shape), Filter(small.shape)]
    nouns = [noun_phrase(item, rng) for item in kinds]
    extra: dict[str, Said] = {}
    for ref, (name, noun) in enumerate(zip(("larger", "smaller"), nouns, strict=True)):
        named = (Exists(ref, kinds[ref]),)
        extra |= {
            name: Said(with_article(noun), named),
            f"the_{name}": Said("the " + noun),
            f"{name}_noun": Said(noun, named),
        }
    choices = (draw_templates.COMPARISON, draw_templates.COMPARISON_STATEMENTS)
    return _fill(scene, rng, "comparison", choices, extra, always=(Compared(0, "larger", 1),), filters=kinds)


def _compare_among(scene: Scene, rng: Random) -> Core | None:
    """Name all objects without sizes and say which of two is larger."""
    order = sorted(rng.sample(scene.objects, len(scene.objects)), key=lambda item: item.size)
    objects = [order[0], order[-1], *order[1:-1]]
    if objects[0].size == objects[1].size:
        return None
    choices = (draw_templates.COMPARISON_AMONG, draw_templates.COMPARISON_AMONG_STATEMENTS)
    return _fill(scene, rng, "comparison", choices, {}, always=(Compared(0, "larger", 1),), objects=objects)


def differentiate(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say what objects share and then how they differ: "two hearts, one red and one blue"."""
    values = {name: {getattr(item, name) for item in scene.objects} for name in ("shape", "color", "size")}
    number = len(scene.objects)
    options = [
        (shared, varied)
        for shared, varied in (("shape", "color"), ("shape", "size"), ("color", "shape"), ("color", "size"))
        if len(values[shared]) == 1 and len(values[varied]) > 1
    ]
    if number < 2 or not options:
        return None
    shared, varied = rng.choice(options)
    base = {shared: values[shared].pop()}
    always: tuple[Constraint, ...] = (Count(Filter(**base), number), Count(ANY, number))
    kind = Said(count_phrase(Filter(**base), number, rng))
    if len(values[varied]) == number and rng.random() < 0.2:
        extra = {"kind": kind, "attribute": Said(varied)}
        always += (Alike(varied, distinct=True),)
        return _fill(scene, rng, "differentiation", (draw_templates.DIFFERENT, ()), extra, always=always)
    counts = Counter(getattr(item, varied) for item in scene.objects)
    order = rng.sample(sorted(counts), len(counts))
    ones = join([_one_of(counts[value], value, varied, rng) for value in order])
    constraints = tuple(Count(Filter(**base, **{varied: value}), counts[value]) for value in order)
    extra = {"kind": kind, "ones": Said(ones, constraints)}
    return _fill(scene, rng, "differentiation", (draw_templates.DIFFERENTIATION, ()), extra, always=always)


def _one_of(number: int, value: str, attribute: str, rng: Random) -> str:
    if attribute == "shape":
        return count_phrase(Filter(shape=value), number, rng)
    return f"{NUMBER_WORDS[number]} {say(value, rng)}"


def deny(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say what is there and what is not."""
    first = scene.objects[0]
    if len(scene.objects) == 1 and rng.random() < 0.4:
        if rng.random() < 0.5:
            colors = [name for name in COLORS if name != first.color and (name, first.shape) in allowed]
            negated = Filter(shape=first.shape, not_color=rng.choice(colors))
        else:
            shapes = [name for name in SHAPES if name != first.shape and (first.color, name) in allowed]
            negated = Filter(color=first.color, not_shape=rng.choice(shapes))
        extra = {"negated": Said(with_article(noun_phrase(negated, rng)), (Exists(0, negated),))}
        return _fill(scene, rng, "negation", (draw_templates.NEGATED_OBJECT, ()), extra)
    no_colors = [name for name in COLORS if all(item.color != name for item in scene.objects)]
    no_shapes = [name for name in SHAPES if all(item.shape != name for item in scene.objects)]
    none = Filter(shape=rng.choice(no_shapes)) if rng.random() < 0.6 else Filter(color=rng.choice(no_colors))
    no_color = rng.choice(no_colors)
    absent = (Count(none, 0),)
    extra = {
        "none": Said(noun_phrase(none, rng, plural=True), absent),
        "one": Said(noun_phrase(none, rng), absent),
        "groups": _groups(scene, ("color", "shape") if rng.random() < 0.6 else ("shape",), rng),
        "not_attribute": Said(say(no_color, rng), (Count(Filter(color=no_color), 0),)),
    }
    filters = [full_filter(item) if rng.random() < 0.6 else Filter(item.shape, item.color) for item in scene.objects]
    choices = (draw_templates.NEGATION, draw_templates.NEGATION_STATEMENTS)
    return _fill(scene, rng, "negation", choices, extra, filters=filters)


def say_every(scene: Scene, rng: Random, allowed: frozenset[Pair]) -> Core | None:
    """Say what is true of every object."""
    first = scene.objects[0]
    shared = [
        name
        for name in ("color", "color", "shape", "size")
        if all(getattr(item, name) == getattr(first, name) for item in scene.objects)
    ]
    if len(scene.objects) < 2 or not shared:
        return None
    name = rng.choice(shared)
    value = getattr(first, name)
    every = Filter(**{name: value})
    demand = (Every(every),)
    extra = {"plural": Said(noun_phrase(every, rng, plural=True), demand)}
    if name == "shape":
        captions = tuple(text for text in draw_templates.UNIVERSALITY if "{plural}" in text)
        extra["every"] = Said(with_article(say(value, rng)), demand)
        choices: tuple[tuple[str, ...], tuple[str, ...]] = (captions, draw_templates.UNIVERSALITY_SHAPE_STATEMENTS)
    else:
        extra["every"] = Said(say(value, rng), demand)
        choices = (draw_templates.UNIVERSALITY, draw_templates.UNIVERSALITY_STATEMENTS)
    return _fill(scene, rng, "universality", choices, extra)


SKILL_KINDS: dict[str, Callable[[Scene, Random, frozenset[Pair]], Core | None]] = {
    "counting": count,
    "comparison": compare,
    "differentiation": differentiate,
    "negation": deny,
    "universality": say_every,
}
