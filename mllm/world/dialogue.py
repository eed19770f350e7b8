"""Dialogues of every job, the one source of training data and evaluation items.

An episode is one scene, one change to it, and the scene after: `make_episode(index)` makes the content and all images,
`make_dialogue(job, episode, rng)` the wording with its own random numbers, so that an image encoded once serves many
sentences. Images are references; nothing is rendered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, NamedTuple

from PIL import Image

from mllm.world.edits import Edit, apply_edit, edit_sentence, propose_edit
from mllm.world.language import (
    DRAWING_WEIGHTS,
    NUMBER_WORDS,
    add_typo,
    capitalize,
    describe,
    fill,
    make_draw_request,
    phrases,
    pick,
    references,
    say,
    say_describe_request,
    with_article,
)
from mllm.world.questions import QUESTION_WEIGHTS, Question, answer, propose_question, say_question, says_it
from mllm.world.render import RenderSize, render
from mllm.world.scene import (
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Pair,
    PairGroup,
    Scene,
    Split,
    allowed_pairs,
    random_scene_for,
    split_of,
)
from mllm.world.spec import ANY, Count, Filter, Spec

JOBS = ("draw", "describe", "ask", "edit", "depth", "segment", "interleaved", "multi_turn", "talk")
QUESTION_ROUND_WEIGHTS = (30, 25, 20, 15, 10)  # one to five questions about one image
INTERLEAVED_WEIGHTS = {
    "draw then edit": 40,
    "draw then describe": 15,
    "draw then answer": 15,
    "draw then depth": 8,
    "draw then segmentation": 8,
    "edit then describe": 14,
}
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


def make_episode(
    index: int, *, seed: int = 0, split: Split = "train", pairs: PairGroup = "seen", num_objects: int | None = None
) -> Episode:
    """The episode with this index: always the same for the same arguments. Both scenes belong to the split."""
    rng = Random(f"{seed}/{split}/{pairs}/{num_objects}/{index}")  # a string seeds the same on every machine
    while True:
        scene = random_scene_for(split, rng, pairs=pairs, num_objects=num_objects)
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

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images in order of appearance, repetitions included."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))


def make_dialogue(
    job: str,
    episode: Episode,
    rng: Random,
    *,
    num_questions: int | None = None,
    question_weights: Mapping[str, float] = QUESTION_WEIGHTS,
    drawing_weights: Mapping[str, float] = DRAWING_WEIGHTS,
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


# ---- rounds ----


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
    return Round((say_describe_request(rng, short=short),), (check,), ("short" if short else "full",))


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
    episode: Episode,
    scene: Scene,
    rng: Random,
    *,
    pronoun: bool = False,
    kind_weights: Mapping[str, float] = QUESTION_WEIGHTS,
) -> Round:
    """A question about a scene of the episode."""
    question = propose_question(scene, rng, kind_weights=kind_weights, allowed_pairs=episode.allowed_pairs)
    expected = answer(question, scene)
    is_only = len(scene.objects) == 1 and question.first is not None and question.first.find_one(scene) is not None
    pronoun = pronoun and is_only
    words = say_question(question, rng, pronoun=pronoun)
    if pronoun and says_it(words):
        question = replace(question, first=ANY)
    check = Check("answer", scene=scene, question=question, expected=expected)
    return Round((words,), (check,), (question.kind,))


def ask_about_other(before: Question, scene: Scene, rng: Random) -> Round | None:
    """The same question about the other one of two objects, which only the question before tells."""
    if before.variant not in ("color of", "size of", "shape of") or len(scene.objects) != 2:
        return None
    others = [item for item in scene.objects if not before.first.matches(item)]
    if len(others) != 1:
        return None
    choices = references(scene, others[0], without=before.kind, loose=before.kind == "shape")
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
    """One or two questions, of two objects also about the other one, a description, or (of the first scene) a depth or
    segmentation image.
    """
    choice = rng.random()
    if choice < 0.2:
        return [describe_round(scene, rng, short_share=0.3)._replace(skills=("describe",))]
    if choice < 0.3 and scene == episode.scene:
        kind: DenseKind = "depth" if rng.random() < 0.5 else "segmentation"
        return [dense_round(episode, kind, rng, canonical=1)._replace(skills=(kind,))]
    rounds = []
    for _ in range(rng.choice((1, 1, 2))):
        rounds.append(ask(episode, scene, rng, pronoun=rng.random() < 0.5))
    other = ask_about_other(rounds[-1].checks[0].question, scene, rng)
    return rounds if other is None else [*rounds, other]


def interleaved_round(episode: Episode, rng: Random) -> Round:
    """A request in several steps, answered in one turn with text and images."""
    kind = pick(INTERLEAVED_WEIGHTS, rng)
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
                drawn = replace(drawn, spec=Spec((*drawing.spec.constraints, Count(reference, 1))))
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
