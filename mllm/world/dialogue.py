"""What is asked for and answered about a scene: edits, questions, and dialogues of every job.

An edit and a question are values; each is proposed at random, said in words, and applied or answered in any scene, also
in one that a model drew. An episode is one scene, one edit, and the scene after it: `make_episode(index)` makes the
content and all images, `make_dialogue(job, episode, rng)` the wording with its own random numbers, so that an image
encoded once serves many sentences. Images are references, rendered on demand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, NamedTuple

from PIL import Image

from mllm.world.language import (
    DRAWING_WEIGHTS,
    NUMBER_WORDS,
    Weights,
    add_typo,
    capitalize,
    choose_reference,
    describe,
    fill,
    make_draw_request,
    noun_phrase,
    phrases,
    pick,
    references,
    say,
    say_place,
    with_article,
)
from mllm.world.render import RenderSize, render
from mllm.world.scene import (
    ALL_PAIRS,
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Pair,
    PairGroup,
    Scene,
    SceneObject,
    Split,
    allowed_pairs,
    holds,
    is_clear,
    is_placed,
    is_valid,
    main_relation,
    offset,
    random_free_position,
    random_scene_for,
    split_of,
    stated_places,
)
from mllm.world.spec import ANY, Count, Filter, Spec, compare, looks_like, plain_phrase

# ---- edits ----

EDIT_KINDS = ("recolor", "remove", "add", "resize", "reshape", "background")
CHANGED_ATTRIBUTE = {"recolor": "color", "resize": "size", "reshape": "shape"}
NUM_IMPERATIVES = 5  # the first templates of each kind
PROPOSAL_TRIES = 30
POSITION_TOLERANCE = 0.06  # how far an untouched object may seem to have moved, as a share of the side


@dataclass(frozen=True, slots=True)
class Edit:
    """One change; its kind decides which fields are set. Indices count the objects before, from left to right."""

    kind: str
    index: int | None = None  # the object that changes (recolor, remove, resize, reshape)
    value: str | None = None  # the new color, size, shape or background
    added: SceneObject | None = None  # the new object (add)
    place: str | None = None  # where the new object goes, as said in words: a place ...
    relation: str | None = None  # ... or a relation to an anchor
    anchor: int | None = None


def apply_edit(scene: Scene, edit: Edit) -> Scene:
    """The scene after the change; everything else stays where it is."""
    objects = list(scene.objects)
    match edit.kind:
        case "background":
            return replace(scene, background=edit.value)
        case "add":
            objects.append(edit.added)
        case "remove":
            del objects[edit.index]
        case "recolor" | "resize" | "reshape":
            objects[edit.index] = replace(objects[edit.index], **{CHANGED_ATTRIBUTE[edit.kind]: edit.value})
        case _:
            raise ValueError(f"edit kind must be one of {', '.join(EDIT_KINDS)}, got {edit.kind!r}")
    return replace(scene, objects=tuple(objects))


def propose_edit(scene: Scene, rng: Random, *, allowed_pairs: frozenset[Pair] = ALL_PAIRS) -> Edit:
    """A random change that leaves a valid scene with allowed pairs and can be said in words without ambiguity."""
    for _ in range(PROPOSAL_TRIES):
        edit = _propose_edit(scene, rng.choice(EDIT_KINDS), rng)
        if edit is not None:
            after = apply_edit(scene, edit)
            if is_valid(after) and after.pairs <= allowed_pairs:
                return edit
    return _propose_edit(scene, "background", rng)  # always possible


def _propose_edit(scene: Scene, kind: str, rng: Random) -> Edit | None:
    match kind:
        case "background":
            return Edit(kind, value=rng.choice([name for name in BACKGROUNDS if name != scene.background]))
        case "add":
            return _propose_addition(scene, rng)
    index = rng.randrange(len(scene.objects))
    item = scene.objects[index]
    if not Filter.of(item).find_one(scene):  # a sentence cannot refer to it
        return None
    if kind == "remove":
        return Edit(kind, index)
    name = CHANGED_ATTRIBUTE[kind]
    others = [value for value in ATTRIBUTES[name] if value != getattr(item, name)]
    return Edit(kind, index, others[0] if kind == "resize" else rng.choice(others))


def _propose_addition(scene: Scene, rng: Random) -> Edit | None:
    """A new object with its place in words: relative to one that can be named, or in the image."""
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size = rng.choice(SIZES)
    position = random_free_position(size, scene.objects, rng, tries=10)
    if position is None:
        return None
    added = SceneObject(rng.choice(SHAPES), rng.choice(COLORS), size, *position)
    named = [(at, item) for at, item in enumerate(scene.objects) if Filter.of(item).find_one(scene)]
    relations = [(relation, at) for at, item in named for relation in RELATIONS if is_clear(relation, added, item)]
    places = [place for place in stated_places(added) if None not in PLACES[place]]
    if relations and (not places or rng.random() < 0.5):
        relation, anchor = rng.choice(relations)
        return Edit("add", added=added, relation=relation, anchor=anchor)
    return Edit("add", added=added, place=rng.choice(places)) if places else None


def edit_sentence(
    edit: Edit, scene: Scene, rng: Random, *, plain: bool = False, pronoun: bool = False
) -> tuple[str, Filter | None]:
    """The instruction for an edit of this scene, and how it names the object that it speaks of, if it names one.

    A plain one is an imperative; a pronoun calls the only object "it".
    """
    table = phrases("edit")
    slots = {"old": say(scene.background, rng)}
    reference: Filter | None = None
    if edit.index is not None:
        reference = choose_reference(references(scene, scene.objects[edit.index], loose=True), rng)
        slots["bare"] = noun_phrase(reference, rng)
        slots["object"] = "it" if pronoun else "the " + slots["bare"]
    if edit.value is not None:
        slots["value"] = say(edit.value, rng)
        slots["a_value"] = with_article(slots["value"])
    if edit.kind == "resize":
        slots["comparative"] = rng.choice(table["comparatives"][edit.value])
        slots["verb"] = rng.choice(table["verbs"][edit.value])
    if edit.kind == "add":
        slots["added"] = with_article(noun_phrase(Filter.of(edit.added), rng))
        if edit.place:
            slots["where"] = say_place(edit.place, rng)
        else:
            relation = say(edit.relation, rng)
            reference = choose_reference(references(scene, scene.objects[edit.anchor], loose=True), rng)
            slots["where"] = f"{relation} the {noun_phrase(reference, rng)}"
    templates = table[edit.kind]
    template = rng.choice(templates[:NUM_IMPERATIVES] if plain else templates)
    text = fill(template, slots)
    if not plain:
        text = text[:-1] if text.endswith(".") and rng.random() < 0.15 else text
        text = text.lower() if rng.random() < 0.1 else text
    says_it = pronoun and edit.index is not None and "{bare}" not in template
    return text, ANY if says_it else reference


def check_edit(before: Scene, edit: Edit, after: Scene) -> bool:
    """Whether the change was made and the rest is untouched. An added object may lie anywhere its words allow."""
    expected, shown = apply_edit(before, edit), list(after.objects)
    if after.background != expected.background or len(shown) != len(expected.objects):
        return False
    if edit.added:
        added = next((item for item in shown if _is_addition(before, edit, item, after)), None)
        shown = [item for item in shown if item is not added]
    kept = [item for item in expected.objects if item is not edit.added]
    return len(shown) == len(kept) and all(_find(item, shown) for item in kept)


def _find(expected: SceneObject, objects: Sequence[SceneObject]) -> SceneObject | None:
    """What looks like an object, if anything does."""
    return next((item for item in objects if looks_like(expected, item, tolerance=POSITION_TOLERANCE)), None)


def _is_addition(before: Scene, edit: Edit, item: SceneObject, after: Scene) -> bool:
    """Whether an object is the new one: right attributes, where the words say, and none of the old objects."""
    if _find(item, before.objects) or not Filter.of(edit.added).matches(item):
        return False
    if edit.place:
        return is_placed(edit.place, item)
    anchor = _find(before.objects[edit.anchor], after.objects)
    return anchor is not None and holds(edit.relation, item, anchor)


# ---- questions ----

QUESTION_KINDS = {
    "count": ("count",),
    "color": ("color of", "color of related"),
    "shape": ("shape of", "shape of related"),
    "size": ("size of",),
    "existence": ("exists",),
    "relation": ("is related", "where is", "which is related"),
    "comparison": ("is larger", "which is larger", "same color", "same size", "more"),
    "background": ("background", "is background"),
}
"""Variants of each kind of question."""
QUESTION_WEIGHTS = dict(zip(QUESTION_KINDS, (16, 16, 14, 10, 14, 18, 12, 8), strict=True))
PAIR_VARIANTS = {*QUESTION_KINDS["relation"], *QUESTION_KINDS["comparison"], "color of related", "shape of related"}
"""Variants that need two objects."""
NOT_GIVEN_AWAY = {"same color": "color", "same size": "size", "is larger": "size", "which is larger": "size"}
"""The attribute that references in questions of a variant leave out."""
COUNTED = (("shape",), ("color",), ("color", "shape"), ("size", "shape"), ("size",), ("size", "color", "shape"))
ABSENT_SHARE = 0.06  # questions for an attribute of something that is not there
QUESTION_TRIES = 8


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Which fields are used depends on the variant."""

    kind: str
    variant: str
    first: Filter | None = None  # what is asked about
    second: Filter | None = None  # what it is compared with or related to
    value: str | None = None  # a relation, a background

    @property
    def asked_attribute(self) -> str:
        """The attribute of an object that is the answer."""
        return self.kind if self.kind in ATTRIBUTES else "shape"


def answer(question: Question, scene: Scene) -> str | None:
    """The right answer, or None when the scene leaves it open (no such object, several, or no clear margin).

    Only "there is no ..." answers the question for an attribute of something absent.
    """
    first = question.first.find_one(scene) if question.first else None
    second, value = question.second.find_one(scene) if question.second else None, question.value
    match question.variant:
        case "count":
            return str(question.first.count(scene))
        case "exists":
            return _yes(question.first.count(scene) > 0)
        case "background":
            return scene.background
        case "is background":
            return _yes(scene.background == value)
        case "more":
            return _yes(question.first.count(scene) > question.second.count(scene))
        case "color of" | "shape of" | "size of":
            if first is None and question.first.count(scene) == 0:
                return f"there is no {plain_phrase(question.first)}"
            return first and getattr(first, question.asked_attribute)
        case "color of related" | "shape of related" | "which is related":
            near = [item for item in scene.objects if second and item is not second and offset(value, item, second) > 0]
            if len(near) == 1 and is_clear(value, near[0], second):  # no other one is near enough to doubt
                return getattr(near[0], question.asked_attribute)
            return None
    if first is None or second is None or first is second:
        return None
    match question.variant:
        case "is related":
            is_so, is_opposite = (is_clear(r, first, second) for r in (value, OPPOSITE[value]))
            return _yes(is_so) if is_so or is_opposite else None
        case "where is":
            relation = main_relation(first, second)
            return relation and relation.removesuffix(" of")
        case "is larger":
            return _yes(compare(first, second) == "larger")
        case "which is larger":
            larger = {"larger": first, "smaller": second}.get(compare(first, second))
            return larger.shape if larger and first.shape != second.shape else None
        case "same color" | "same size":
            attribute = question.variant.removeprefix("same ")
            return _yes(getattr(first, attribute) == getattr(second, attribute))
        case _:
            raise ValueError(f"question variant must be one of QUESTION_KINDS, got {question.variant!r}")


def possible_answers(question: Question, scene: Scene) -> frozenset[str]:
    """What may be said where the scene leaves the answer open: what such a question could be answered with in it."""
    match question.variant:
        case "where is":
            return frozenset(relation.removesuffix(" of") for relation in RELATIONS)
        case "color of" | "shape of" | "size of":
            items = [item for item in scene.objects if question.first.matches(item)]
        case "color of related" | "shape of related" | "which is related":
            anchor = question.second.find_one(scene)
            items = [item for item in scene.objects if item is not anchor]
        case "which is larger":
            items = [item for item in scene.objects if question.first.matches(item) or question.second.matches(item)]
        case _:
            return frozenset(("yes", "no"))
    return frozenset(getattr(item, question.asked_attribute) for item in items)


def normalize_answer(text: str) -> str:
    """Lower case without marks and articles, number words as digits: what exact match compares."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    numbers = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"grey": "gray"}
    return " ".join(numbers.get(word, word) for word in words if word not in ("a", "an", "the", "it", "is"))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def propose_question(
    scene: Scene, rng: Random, *, kind_weights: Weights = QUESTION_WEIGHTS, allowed_pairs: frozenset[Pair] = ALL_PAIRS
) -> Question:
    """A question with one clear answer, which names allowed color-shape pairs alone.

    Yes and no come equally often where the scene permits both.
    """
    for _ in range(QUESTION_TRIES):
        kind = pick(kind_weights, rng)
        variant = rng.choice(QUESTION_KINDS[kind])
        if variant in PAIR_VARIANTS and len(scene.objects) < 2:
            continue
        wanted = rng.choice(("yes", "no"))
        for attempt in range(QUESTION_TRIES):
            question = _propose_question(scene, kind, variant, rng)
            if question is None:
                continue
            named = {item.pair for item in (question.first, question.second) if item and item.pair}
            right = answer(question, scene) if named <= allowed_pairs else None
            if right is not None and (right not in ("yes", "no") or right == wanted or attempt == QUESTION_TRIES - 1):
                return question
    return Question("background", "background")


def _propose_question(scene: Scene, kind: str, variant: str, rng: Random) -> Question | None:
    match variant:
        case "count" | "exists":
            return Question(kind, variant, _random_filter(scene, rng, allow_any=variant == "count"))
        case "background":
            return Question(kind, variant)
        case "is background":
            return Question(kind, variant, value=rng.choice((scene.background, rng.choice(BACKGROUNDS))))
        case "more":
            attribute, choices = rng.choice(tuple(ATTRIBUTES.items()))
            here = [getattr(item, attribute) for item in scene.objects]
            values = rng.choice(here), rng.choice((rng.choice(here), rng.choice(choices)))
            more, less = (Filter(**{attribute: value}) for value in rng.sample(values, 2))
            return None if more == less else Question(kind, variant, more, less)
        case "color of" | "size of" if rng.random() < ABSENT_SHARE:
            absent = [name for name in SHAPES if not Filter(name).count(scene)]
            return Question(kind, variant, Filter(rng.choice(absent)))
        case "color of" | "shape of" | "size of":
            item = rng.choice(scene.objects)
            first = choose_reference(references(scene, item, without=kind, loose=kind == "shape"), rng)
            return Question(kind, variant, first) if first else None
        case "color of related" | "shape of related" | "which is related":
            second = choose_reference(references(scene, rng.choice(scene.objects)), rng)
            return Question(kind, variant, None, second, rng.choice(RELATIONS)) if second else None
        case _:
            items, without = rng.sample(scene.objects, 2), NOT_GIVEN_AWAY.get(variant)
            first, second = (choose_reference(references(scene, item, without=without), rng) for item in items)
            if first is None or second is None:
                return None
            return Question(kind, variant, first, second, rng.choice(RELATIONS) if variant == "is related" else None)


def _random_filter(scene: Scene, rng: Random, *, allow_any: bool) -> Filter:
    """Attributes to count or look for: those of an object, or those with one attribute changed, or any at all."""
    if allow_any and rng.random() < 0.2:
        return ANY
    item, names = rng.choice(scene.objects), rng.choice(COUNTED)
    wanted = Filter.of(item, names)
    if rng.random() < 0.5:
        name = rng.choice(names)
        return replace(wanted, **{name: rng.choice(ATTRIBUTES[name])})
    return wanted


def say_question(question: Question, rng: Random, *, pronoun: bool = False) -> str:
    """The question in words. With a pronoun the only object of the image is called "it"."""
    slots: dict[str, str] = {}
    for name, item in (("first", question.first), ("second", question.second)):
        if item is not None:
            slots[name] = noun_phrase(item, rng)
            slots[f"{name}s"] = noun_phrase(item, rng, plural=True)
            slots[f"a_{name}"] = with_article(slots[name])
    if question.variant == "shape of":
        slots["attribute"] = " ".join(say(word, rng) for word in (question.first.size, question.first.color) if word)
    if question.value is not None:
        slots["relation" if question.value in RELATIONS else "value"] = say(question.value, rng)
    template = rng.choice(phrases("ask")[question.variant])
    if pronoun and question.variant in ("color of", "size of"):
        template = template.replace("The {first}", "It").replace("the {first}", "it")
    text = template.format(**slots)
    return text.lower() if rng.random() < 0.1 else text


# ---- dialogues ----

JOBS = ("draw", "describe", "ask", "edit", "depth", "segment", "interleaved", "multi_turn", "talk")
QUESTION_ROUND_WEIGHTS = (30, 25, 20, 15, 10)  # one to five questions about one image
TALK_WEIGHTS = {"fact": 60, "outside": 16, "sizes": 8, "reversed": 8, "sum": 8}
SHORT_DESCRIPTION_SHARE = 0.25
CANONICAL_DENSE_SHARE = 0.5
TYPO_SHARE = 0.06  # of the texts of users
EDIT_TRIES = 40

Role = Literal["user", "assistant"]
DenseKind = Literal["depth", "segmentation"]
CheckKind = Literal["draw", "edit", "describe", "answer", "depth", "segmentation", "say"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image by reference: rendered only when someone asks for it."""

    scene: Scene
    kind: str = "image"  # of render.IMAGE_KINDS

    def render(self, size: RenderSize = 128) -> Image.Image:
        return render(self.scene, size, self.kind)


@dataclass(frozen=True, slots=True)
class Episode:
    """The content of one or many dialogues."""

    scene: Scene
    edit: Edit
    edited: Scene  # apply_edit(scene, edit)
    pairs: PairGroup = "seen"  # which color-shape pairs its sentences may name

    @property
    def images(self) -> tuple[ImageRef, ImageRef, ImageRef, ImageRef]:
        """Every image that a dialogue about this episode can use, in a fixed order."""
        dense = ImageRef(self.scene, "depth"), ImageRef(self.scene, "segmentation")
        return (ImageRef(self.scene), ImageRef(self.edited), *dense)

    @property
    def allowed_pairs(self) -> frozenset[Pair]:
        return allowed_pairs(self.pairs)


def make_episode(index: int, *, seed: int = 0, split: Split = "train", pairs: PairGroup = "seen") -> Episode:
    """The episode with this index: always the same for the same arguments. Both scenes belong to the split."""
    rng = Random(f"{seed}/{split}/{pairs}/None/{index}")  # a string seeds the same on every machine
    while True:
        scene = random_scene_for(split, rng, pairs=pairs)
        for _ in range(EDIT_TRIES):
            edit = propose_edit(scene, rng, allowed_pairs=allowed_pairs(pairs))
            edited = apply_edit(scene, edit)
            if split_of(edited) == split:
                return Episode(scene, edit, edited, pairs)


Part = str | ImageRef


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: text and images in order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """What one part of an answer must be. Which fields are set depends on the kind."""

    kind: CheckKind
    scene: Scene | None = None  # the scene the part is about: before the edit, described, asked about, to be segmented
    spec: Spec | None = None  # draw: what the sentence says
    edit: Edit | None = None  # edit: the change to the scene
    reference: Filter | None = None  # edit: how its words name the object they speak of, to find it in another scene
    question: Question | None = None  # answer: the question, so that it can be put to another scene
    apart_from: Filter | None = None  # answer: asked about "the other one", the object that this does not match
    expected: str = ""  # answer, describe: the right words; say: the words used in training (any will do)

    @property
    def right(self) -> Part:
        """The part that is right."""
        match self.kind:
            case "draw":
                return ImageRef(self.scene)
            case "edit":
                return ImageRef(apply_edit(self.scene, self.edit))
            case "depth" | "segmentation":
                return ImageRef(self.scene, self.kind)
            case _:
                return self.expected


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A complete dialogue of one job, with the right answers."""

    job: str
    turns: tuple[Turn, ...]  # user and assistant alternate
    checks: tuple[Check, ...]  # one for each part of the assistant's turns, in order
    skills: tuple[str, ...] = ()  # skills of a drawing, kind of an edit; of the job "ask" the kind of each question


def make_dialogue(
    job: str,
    episode: Episode,
    rng: Random,
    *,
    num_questions: int | None = None,
    question_weights: Weights = QUESTION_WEIGHTS,
    drawing_weights: Weights = DRAWING_WEIGHTS,
) -> Dialogue:
    """One dialogue of a job about an episode; the same arguments give the same dialogue.

    Args:
        num_questions: of the job "ask"; default: one to five.
        question_weights: how often it asks what, by the kinds of QUESTION_KINDS.
        drawing_weights: how often the job "draw" describes a scene in which way.
    """
    match job:
        case "draw":
            rounds = [draw_round(episode, rng, kind_weights=drawing_weights)]
        case "describe":
            rounds = [describe_round(episode.scene, rng, short_share=SHORT_DESCRIPTION_SHARE)]
        case "ask":
            num_questions = num_questions or rng.choices((1, 2, 3, 4, 5), QUESTION_ROUND_WEIGHTS)[0]
            asked = [ask(episode, episode.scene, rng, kind_weights=question_weights) for _ in range(num_questions)]
            rounds = list({each.request: each for each in asked}.values())  # no question twice
        case "edit":
            rounds = [edit_round(episode, rng)]
        case "depth" | "segment":
            rounds = [dense_round(episode, "depth" if job == "depth" else "segmentation", rng)]
        case "interleaved":
            rounds = [interleaved_round(episode, rng)]
        case "multi_turn":
            rounds = multi_turn_rounds(episode, rng)
        case "talk":
            rounds = [talk_round(rng)]
        case _:
            raise ValueError(f"job must be one of {', '.join(JOBS)}, got {job!r}")
    if job in ("describe", "ask", "edit", "depth", "segment"):
        rounds = show(episode, rounds)
    skills = [skill for each in rounds for skill in each.skills]
    turns = []
    for each in rounds:
        parts = tuple(add_typo(p, rng) if isinstance(p, str) and rng.random() < TYPO_SHARE else p for p in each.request)
        turns += [Turn("user", parts), Turn("assistant", tuple(check.right for check in each.checks))]
    checks = tuple(check for each in rounds for check in each.checks)
    return Dialogue(job, tuple(turns), checks, tuple(skills if job == "ask" else dict.fromkeys(skills)))


class Round(NamedTuple):
    """A turn of the user, and what each part of the answer must be."""

    request: tuple[Part, ...]
    checks: tuple[Check, ...]
    skills: tuple[str, ...] = ()


def show(episode: Episode, rounds: list[Round]) -> list[Round]:
    """The user shows the scene before the first request."""
    return [rounds[0]._replace(request=(ImageRef(episode.scene), *rounds[0].request)), *rounds[1:]]


def draw_round(episode: Episode, rng: Random, **options: Any) -> Round:
    request = make_draw_request(episode.scene, rng, allowed_pairs=episode.allowed_pairs, **options)
    return Round((request.text,), (Check("draw", spec=request.spec, scene=episode.scene),), request.skills)


def describe_round(scene: Scene, rng: Random, *, short_share: float) -> Round:
    short = rng.random() < short_share
    check = Check("describe", scene=scene, expected=describe(scene, short=short))
    request = rng.choice(phrases("describe")["short_requests" if short else "requests"])
    return Round((request,), (check,), ("short" if short else "full",))


def edit_round(episode: Episode, rng: Random, *, pronoun: bool = False) -> Round:
    sentence, reference = edit_sentence(episode.edit, episode.scene, rng, pronoun=pronoun)
    check = Check("edit", scene=episode.scene, edit=episode.edit, reference=reference)
    return Round((sentence,), (check,), (episode.edit.kind,))


def dense_round(episode: Episode, kind: DenseKind, rng: Random, *, canonical: float = CANONICAL_DENSE_SHARE) -> Round:
    """A request for the depth or the segmentation, in the first words with the probability `canonical`."""
    table = phrases("dialogue")
    request = table["canonical"][kind] if canonical == 1 or rng.random() < canonical else rng.choice(table[kind])
    return Round((request,), (Check(kind, scene=episode.scene),))


def ask(
    episode: Episode, scene: Scene, rng: Random, *, pronoun: bool = False, kind_weights: Weights = QUESTION_WEIGHTS
) -> Round:
    """A question about a scene of the episode."""
    question = propose_question(scene, rng, kind_weights=kind_weights, allowed_pairs=episode.allowed_pairs)
    expected = answer(question, scene)
    is_only = len(scene.objects) == 1 and question.first is not None and question.first.find_one(scene) is not None
    pronoun = pronoun and is_only
    words = say_question(question, rng, pronoun=pronoun)
    if pronoun and re.search(r"\bit\b", words, re.IGNORECASE):  # some templates have no room for "it"
        question = replace(question, first=ANY)
    check = Check("answer", scene=scene, question=question, expected=expected)
    return Round((words,), (check,), (question.kind,))


def ask_about_other(before: Question, scene: Scene, rng: Random) -> Round | None:
    """The same question about the other one of two objects, which only the question before tells."""
    if before.variant not in ("color of", "size of", "shape of") or len(scene.objects) != 2:
        return None
    others = [item for item in scene.objects if not before.first.matches(item)]
    choices = len(others) == 1 and references(scene, others[0], without=before.kind, loose=before.kind == "shape")
    if not choices:
        return None
    question = replace(before, first=choices[0])
    check = Check("answer", scene=scene, question=question, apart_from=before.first, expected=answer(question, scene))
    return Round((rng.choice(phrases("dialogue")["the other one"]),), (check,), ("the other one",))


def multi_turn_rounds(episode: Episode, rng: Random) -> list[Round]:
    """Draw (or look at) an image, talk about it, change it, talk about the result."""
    if rng.random() < 0.6:
        rounds = [draw_round(episode, rng, kind="full")]
    else:
        rounds = show(episode, talk_about(episode, episode.scene, rng))
    if rng.random() < 0.7:
        rounds += talk_about(episode, episode.scene, rng)
    if rng.random() < 0.85:
        pronoun = len(episode.scene.objects) == 1 and rng.random() < 0.6
        rounds.append(edit_round(episode, rng, pronoun=pronoun))
        if rng.random() < 0.75:
            rounds += talk_about(episode, episode.edited, rng)
    elif rng.random() < 0.5:
        rounds += talk_about(episode, episode.scene, rng)
    return rounds


def talk_about(episode: Episode, scene: Scene, rng: Random) -> list[Round]:
    """One or two questions, perhaps one about the other of two objects; a description; or a depth or segmentation."""
    choice = rng.random()
    if choice < 0.2:
        return [describe_round(scene, rng, short_share=0.3)._replace(skills=("describe",))]
    if choice < 0.3 and scene == episode.scene:
        kind: DenseKind = "depth" if rng.random() < 0.5 else "segmentation"
        return [dense_round(episode, kind, rng, canonical=1)._replace(skills=(kind,))]
    rounds = [ask(episode, scene, rng, pronoun=rng.random() < 0.5) for _ in range(rng.choice((1, 1, 2)))]
    other = ask_about_other(rounds[-1].checks[0].question, scene, rng)
    return rounds if other is None else [*rounds, other]


def interleaved_round(episode: Episode, rng: Random) -> Round:
    """A request in several steps, answered in one turn with text and images."""
    kind = pick(phrases("dialogue")["weights"], rng)
    slots: dict[str, str] = {}
    if kind.startswith("draw"):
        options = {"allowed_pairs": episode.allowed_pairs, "statements": False}
        drawing = make_draw_request(episode.scene, rng, kind="full", **options)
        slots["caption"] = drawing.core
    asked = ask(episode, episode.scene, rng) if kind == "draw then answer" else None
    template = rng.choice(phrases("dialogue")[kind])
    if "edit" in kind:
        sentence, reference = edit_sentence(episode.edit, episode.scene, rng, plain=True)
        slots["edit"] = sentence[:1].lower() + sentence[1:]
        edited = Check("edit", scene=episode.scene, edit=episode.edit, reference=reference)
    if kind == "edit then describe":
        checks = edited, Check("describe", scene=episode.edited, expected=describe(episode.edited))
        return Round((ImageRef(episode.scene), fill(template, slots)), checks, (kind,))
    here = {name: Check("say", expected=words) for name, words in phrases("dialogue")["here"].items()}
    drawn = Check("draw", spec=drawing.spec, scene=episode.scene)
    match kind.removeprefix("draw then "):
        case "edit":
            if reference:  # what is changed is named in the same request
                drawn = replace(drawn, spec=(*drawing.spec, Count(reference, 1)))
            checks = here["image"], drawn, here["edited"], edited
        case "describe":
            checks = drawn, Check("describe", scene=episode.scene, expected=describe(episode.scene))
        case "answer":
            slots["question"] = str(asked.request[0])
            checks = drawn, *asked.checks
        case dense:
            checks = here["image"], drawn, here[dense], Check(dense, scene=episode.scene)
    return Round((fill(template, slots),), checks, (kind,))


def talk_round(rng: Random) -> Round:
    """A question without an image and its one right answer: a fact, a little sum, or what lies outside the world."""
    kind = pick(TALK_WEIGHTS, rng)
    table = phrases("talk")
    match kind:
        case "fact":
            fact = rng.choice(table["facts"])
            question, expected = rng.choice(fact["questions"]), fact["answer"]
        case "outside":
            question = rng.choice(table["outside_requests"]).format(thing=rng.choice(table["outside"]))
            expected = table["refusal"]
        case "sizes":
            small, large = rng.sample(SHAPES, 2)
            named = [with_article(f"{say('small', rng)} {small}"), with_article(f"{say('large', rng)} {large}")]
            rng.shuffle(named)
            question, expected = rng.choice(table["compared_sizes"]).format(a=named[0], b=named[1]), large
        case "reversed":
            a, b = rng.sample(SHAPES, 2)
            relation = rng.choice(RELATIONS)
            question = rng.choice(table["reversed"]).format(a=a, b=b, relation=say(relation, rng))
            expected = OPPOSITE[relation].removesuffix(" of")
        case _:
            left, right = rng.choice([(left, right) for left in range(1, 4) for right in range(1, 5 - left)])
            question = capitalize(rng.choice(table["sums"]).format(a=NUMBER_WORDS[left], b=NUMBER_WORDS[right]))
            expected = str(left + right)
    question = question.lower() if rng.random() < 0.1 else question
    return Round((question,), (Check("answer", expected=expected),), (kind,))
