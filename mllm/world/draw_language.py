"""Requests to draw a scene, with the skills they need and the spec that a drawn picture must meet.

Most requests describe the scene fully or nearly so; the others exercise one skill each (count, compare, tell apart,
deny, say "every"). A skill that a scene offers no occasion for falls back to a full description.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from mllm.world.draw_skills import SKILL_KINDS, Core
from mllm.world.phrases import capitalize, full_filter
from mllm.world.scene import ALL_PAIRS, Pair, Scene, SceneObject, required
from mllm.world.spec import ANY, Background, Count, Exists, Filter, Placed, Related, Spec
from mllm.world.splits import HELD_OUT_PAIRS
from mllm.world.templates.draw import BRIEF, CAPTIONS, REQUESTS, STATEMENT_REQUESTS, STATEMENTS
from mllm.world.wording import UnsayableError, Wording

DRAWING_WEIGHTS = {
    "full": 60,
    "brief": 8,
    "counting": 8,
    "comparison": 9,  # from here on, many scenes give no occasion and are described fully
    "differentiation": 11,
    "negation": 6,
    "universality": 9,
}
STATEMENT_SHARE = 0.22  # whole sentences rather than noun phrases
CANONICAL_SHARE = (
    0.3  # the first template: "a large red circle to the left of a small blue square on a white background"
)
BARE_SHARE = 0.4  # captions without "Draw ..."
TRIES = 10


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """What the user says, the caption alone where there is one, and what the picture must show."""

    text: str
    spec: Spec
    skills: tuple[str, ...]
    kind: str
    core: str  # the description inside the request
    is_statement: bool


def make_draw_request(
    scene: Scene,
    rng: Random,
    *,
    kind: str | None = None,
    kind_weights: Mapping[str, float] = DRAWING_WEIGHTS,
    allowed_pairs: frozenset[Pair] = ALL_PAIRS,
    statements: bool = True,
) -> DrawRequest:
    """A request that this scene fulfils. Scenes with a held-out pair get a request that names one.

    Without `statements`, a full description is always a noun phrase, fit for "Draw ...".
    """
    if kind is None:
        kind = rng.choices(tuple(kind_weights), tuple(kind_weights.values()))[0]
    if not scene.pairs.isdisjoint(HELD_OUT_PAIRS):
        kind = "full"
    core = None
    if kind == "brief":
        core = describe_briefly(scene, rng)
    elif kind != "full":
        core = SKILL_KINDS[kind](scene, rng, allowed_pairs)
    if core is None:
        kind, core = "full", describe_fully(scene, rng, statements=statements)
    skills = dict.fromkeys((*core.skills, *plain_skills(core.spec)))
    return DrawRequest(say_request(core, rng), core.spec, tuple(skills), kind, core.text, core.is_statement)


def plain_skills(spec: Spec) -> list[str]:
    """The skills that follow from the kinds of constraints."""
    skills = []
    filters = [item.filter for item in spec.constraints if isinstance(item, Exists | Count)]
    if any(item.color or item.size for item in filters):
        skills.append("attribute")
    if any(isinstance(item, Background) for item in spec.constraints):
        skills.append("scene")
    if any(isinstance(item, Related | Placed) for item in spec.constraints):
        skills.append("spatial relation")
    return skills


def describe_fully(scene: Scene, rng: Random, *, statements: bool = True) -> Core:
    """All objects with color and shape, mostly sizes, mostly relations and background."""
    keeps_pairs = not scene.pairs.isdisjoint(HELD_OUT_PAIRS)
    is_statement = statements and rng.random() < STATEMENT_SHARE
    templates = (STATEMENTS if is_statement else CAPTIONS)[len(scene.objects)]

    def thin(item: SceneObject) -> Filter:
        size = item.size if rng.random() > 0.1 else None
        return Filter(item.shape, item.color if keeps_pairs or rng.random() > 0.03 else None, size)

    core = compose(scene, rng, templates, thin)
    if core is None:
        return required(compose(scene, rng, ("{list} {on}",), full_filter), "a list, which is always possible,")
    return replace(core, is_statement=is_statement)


def describe_briefly(scene: Scene, rng: Random) -> Core | None:
    """Little more than colors and shapes."""
    drops = rng.choice(("size", "size", "size and color"))

    def thin(item: SceneObject) -> Filter:
        return Filter(item.shape, item.color if drops == "size" or rng.random() < 0.4 else None)

    return compose(scene, rng, BRIEF, thin)


def compose(scene: Scene, rng: Random, templates: Sequence[str], thin: Callable[[SceneObject], Filter]) -> Core | None:
    """Try templates and orders of the objects until one fits; nothing but the named objects is wanted."""
    for attempt in range(TRIES):
        objects = rng.sample(scene.objects, len(scene.objects))
        wording = Wording(scene, objects, [thin(item) for item in objects], rng)
        is_canonical = attempt == 0 and rng.random() < CANONICAL_SHARE
        template = templates[0] if is_canonical else rng.choice(templates)
        try:
            said = wording.fill(template)
        except UnsayableError:
            continue
        named = [item for item in said.constraints if isinstance(item, Exists)]
        if len(named) == len(objects):
            extra = () if Count(ANY, len(objects)) in said.constraints else (Count(ANY, len(objects)),)
            skills = ("counting",) if max(Counter(item.filter for item in named).values()) > 1 else ()
            return Core(said.text, Spec(said.constraints + extra), skills, False)
    return None


def say_request(core: Core, rng: Random) -> str:
    """Put the description into a request, with the small irregularities of typed text."""
    if core.is_statement:
        template = rng.choice(STATEMENT_REQUESTS)
        text = template.format(statement=core.text, Statement=capitalize(core.text))
    elif rng.random() < BARE_SHARE:
        text = capitalize(core.text) if rng.random() < 0.4 else core.text
        return text + "." if rng.random() < 0.3 else text
    else:
        text = rng.choice(REQUESTS).format(caption=core.text)
    if text.endswith(".") and rng.random() < 0.25:
        text = text[:-1]
    return text.lower() if rng.random() < 0.1 else text
