"""Dialogues of every job, the one source of training data and evaluation items.

`make_dialogue(job, episode, rng)`: the episode gives the content and all pictures, `rng` the wording. Pictures are
references; nothing is drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Literal

from PIL import Image

from mllm.world.language import (
    CANONICAL,
    DIRECTIONS,
    DRAWING_WEIGHTS,
    NUMBER_WORDS,
    QUESTION_WEIGHTS,
    SYNONYMS,
    Edit,
    Question,
    answer,
    apply_edit,
    capitalize,
    describe,
    edit_sentence,
    is_unique,
    make_draw_request,
    pluralize,
    propose_edit,
    propose_question,
    references,
    say,
    say_describe_request,
    say_question,
    says_it,
    with_article,
)
from mllm.world.render import RenderSize, render, render_depth, render_segmentation
from mllm.world.scene import (
    BACKGROUNDS,
    COLORS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    Pair,
    PairGroup,
    Scene,
    Split,
    allowed_pairs,
    random_scene_for,
    required,
    split_of,
)
from mllm.world.spec import ANY, Count, Filter, Spec
from mllm.world.templates import dense
from mllm.world.templates import story as story_templates
from mllm.world.templates import talk as talk_templates

# An episode: one scene, one change to it, and the scene after. All pictures a dialogue may use come from its episode.
#
# Content is made here, wording elsewhere with its own random numbers, so that a picture encoded once serves many
# sentences.


EDIT_TRIES = 40
IMAGE_KINDS = ("image", "depth", "segmentation")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture by reference: drawn only when someone asks for it."""

    scene: Scene
    kind: str = "image"

    def render(self, size: RenderSize = 128) -> Image.Image:
        match self.kind:
            case "image":
                return render(self.scene, size)
            case "depth":
                return render_depth(self.scene, size)
            case "segmentation":
                return render_segmentation(self.scene, size)
            case _:
                raise ValueError(f"picture kind {self.kind!r} is unknown; choose one of {', '.join(IMAGE_KINDS)}")


@dataclass(frozen=True, slots=True)
class Episode:
    """The content of one or many dialogues."""

    scene: Scene
    edit: Edit
    edited: Scene  # apply_edit(scene, edit)
    pairs: PairGroup = "seen"  # which color-shape pairs its sentences may name

    @property
    def images(self) -> tuple[ImageRef, ImageRef, ImageRef, ImageRef]:
        """Every picture that a dialogue about this episode can use, in a fixed order."""
        return (
            ImageRef(self.scene),
            ImageRef(self.edited),
            ImageRef(self.scene, "depth"),
            ImageRef(self.scene, "segmentation"),
        )

    @property
    def allowed_pairs(self) -> frozenset[Pair]:
        return allowed_pairs(self.pairs)


def make_episode(
    index: int, *, seed: int = 0, split: Split = "train", pairs: PairGroup = "seen", num_objects: int | None = None
) -> Episode:
    """The episode with this number: always the same for the same arguments. Both scenes belong to the split."""
    rng = Random(f"{seed}/{split}/{pairs}/{num_objects}/{index}")  # a string seeds the same on every machine
    allowed = allowed_pairs(pairs)
    while True:
        scene = random_scene_for(split, rng, pairs=pairs, num_objects=num_objects)
        for _ in range(EDIT_TRIES):
            edit = propose_edit(scene, rng, allowed_pairs=allowed)
            edited = apply_edit(scene, edit)
            if split_of(edited) == split:
                return Episode(scene, edit, edited, pairs)


# What a dialogue is: turns of text and pictures by reference, and one check for every part of every answer.


Part = str | ImageRef
Role = Literal["user", "assistant"]
DenseKind = Literal["depth", "segmentation"]
CheckKind = Literal["draw", "edit", "describe", "answer", "depth", "segmentation", "say"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: text and pictures in order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """What one part of an answer must be. Which fields are set depends on the kind."""

    kind: CheckKind
    scene: Scene | None = None  # the scene the part is about: before the edit, described, asked about, to be segmented
    spec: Spec | None = None  # draw: what the sentence demands
    edit: Edit | None = None  # edit: the change to the scene
    reference: Filter | None = None  # edit: how its words name the object they speak of, to find it in another scene
    question: Question | None = None  # answer: the question, so that it can be put to another scene
    apart_from: Filter | None = None  # answer: asked about "the other one", the object that this does not match
    expected: str = ""  # answer, describe: the right words; say: the words used in training (any will do)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole dialogue of one job, with the right answers."""

    job: str
    turns: tuple[Turn, ...]
    checks: tuple[Check, ...]  # one for each part of the assistant's turns, in order
    skills: tuple[str, ...] = ()  # what it exercises: skills of a drawing, kinds of questions, kind of edit

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All pictures in order of appearance, repetitions included."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))


def user(*parts: Part) -> Turn:
    return Turn("user", parts)


def assistant(*parts: Part) -> Turn:
    return Turn("assistant", parts)


# Dialogues with more than one step: a request answered with text and images in one turn, and whole conversations.
#
# All pictures are those of the episode; the words come from `rng`.


INTERLEAVED_WEIGHTS = {
    "draw then edit": 40,
    "draw then describe": 15,
    "draw then answer": 15,
    "draw then depth": 8,
    "draw then segmentation": 8,
    "edit then describe": 14,
}
Exchange = tuple[list[Turn], list[Check], list[str]]


def make_interleaved(episode: Episode, rng: Random) -> Dialogue:
    """A request in several steps, answered in one turn with text and images."""
    kind = rng.choices(tuple(INTERLEAVED_WEIGHTS), tuple(INTERLEAVED_WEIGHTS.values()))[0]
    if kind == "edit then describe":
        return edit_then_describe(episode, rng)
    caption, spec = full_caption(episode, rng)
    drawn = Check("draw", spec=spec, scene=episode.scene)
    picture = ImageRef(episode.scene)
    match kind:
        case "draw then edit":
            template = rng.choice(story_templates.DRAW_THEN_EDIT)
            slots, reference = edit_slots(episode, rng)
            text = template.format(caption=caption, **slots)
            parts: tuple[Part, ...] = (story_templates.HERE, picture, story_templates.CHANGED, ImageRef(episode.edited))
            if reference:  # what is changed is named in the same request
                drawn = replace(drawn, spec=Spec((*spec.constraints, Count(reference, 1))))
            checks: tuple[Check, ...] = (
                say_text(story_templates.HERE),
                drawn,
                say_text(story_templates.CHANGED),
                edit_check(episode, reference),
            )
        case "draw then describe":
            text = rng.choice(story_templates.DRAW_THEN_DESCRIBE).format(caption=caption)
            words = describe(episode.scene)
            parts, checks = (picture, words), (drawn, Check("describe", scene=episode.scene, expected=words))
        case "draw then answer":
            question, _, check = ask(episode, episode.scene, rng)
            text = rng.choice(story_templates.DRAW_THEN_ANSWER).format(caption=caption, question=question)
            parts, checks = (picture, check.expected), (drawn, check)
        case _:
            dense_kind: DenseKind = "depth" if kind == "draw then depth" else "segmentation"
            text = rng.choice(story_templates.DRAW_THEN_DENSE[dense_kind]).format(caption=caption)
            words = story_templates.DENSE_HERE[dense_kind]
            parts = (story_templates.HERE, picture, words, ImageRef(episode.scene, dense_kind))
            checks = (say_text(story_templates.HERE), drawn, say_text(words), Check(dense_kind, scene=episode.scene))
    return Dialogue("interleaved", (user(text), assistant(*parts)), checks, (kind,))


def edit_then_describe(episode: Episode, rng: Random) -> Dialogue:
    template = rng.choice(story_templates.EDIT_THEN_DESCRIBE)
    slots, reference = edit_slots(episode, rng)
    words = describe(episode.edited)
    turns = (user(ImageRef(episode.scene), template.format(**slots)), assistant(ImageRef(episode.edited), words))
    checks = (edit_check(episode, reference), Check("describe", scene=episode.edited, expected=words))
    return Dialogue("interleaved", turns, checks, ("edit then describe",))


def full_caption(episode: Episode, rng: Random) -> tuple[str, Spec]:
    """A noun phrase that describes the scene fully."""
    request = make_draw_request(episode.scene, rng, kind="full", allowed_pairs=episode.allowed_pairs, statements=False)
    return request.core, request.spec


def edit_slots(episode: Episode, rng: Random) -> tuple[dict[str, str], Filter | None]:
    """The edit's words within and at the beginning of a sentence, and how they name the object."""
    sentence, reference = edit_sentence(episode.edit, episode.scene, rng, plain=True)
    return {"edit": sentence[:1].lower() + sentence[1:], "Edit": capitalize(sentence)}, reference


def say_text(text: str) -> Check:
    return Check("say", expected=text)


def edit_check(episode: Episode, reference: Filter | None) -> Check:
    return Check("edit", scene=episode.scene, edit=episode.edit, reference=reference)


def ask(
    episode: Episode,
    scene: Scene,
    rng: Random,
    *,
    pronoun: bool = False,
    kind_weights: Mapping[str, float] = QUESTION_WEIGHTS,
) -> tuple[str, str, Check]:
    """A question about a scene of the episode in words, its kind, and the check of its answer."""
    question = propose_question(scene, rng, kind_weights=kind_weights, allowed_pairs=episode.allowed_pairs)
    expected = required(answer(question, scene), "the answer of a proposed question")
    pronoun = pronoun and len(scene.objects) == 1 and question.first is not None and is_unique(question.first, scene)
    words = say_question(question, rng, pronoun=pronoun)
    if pronoun and says_it(words):
        question = replace(question, first=ANY)
    return words, question.kind, Check("answer", scene=scene, question=question, expected=expected)


def make_multi_turn(episode: Episode, rng: Random) -> Dialogue:
    """Draw (or look at) a picture, talk about it, change it, talk about the result."""
    if rng.random() < 0.6:
        exchange = open_with_drawing(episode, rng)
    else:
        exchange = open_with_picture(episode, rng)
    turns, checks, skills = exchange
    if rng.random() < 0.7:
        _extend(exchange, talk_about(episode, episode.scene, rng))
    if rng.random() < 0.85:
        pronoun = len(episode.scene.objects) == 1 and rng.random() < 0.6
        sentence, reference = edit_sentence(episode.edit, episode.scene, rng, pronoun=pronoun)
        picture = ImageRef(episode.edited)
        _extend(exchange, ([user(sentence), assistant(picture)], [edit_check(episode, reference)], [episode.edit.kind]))
        if rng.random() < 0.75:
            _extend(exchange, talk_about(episode, episode.edited, rng))
    elif rng.random() < 0.5:
        _extend(exchange, talk_about(episode, episode.scene, rng))
    return Dialogue("multi_turn", tuple(turns), tuple(checks), tuple(dict.fromkeys(skills)))


def _extend(exchange: Exchange, more: Exchange) -> None:
    exchange[0].extend(more[0])
    exchange[1].extend(more[1])
    exchange[2].extend(more[2])


def open_with_drawing(episode: Episode, rng: Random) -> Exchange:
    request = make_draw_request(episode.scene, rng, kind="full", allowed_pairs=episode.allowed_pairs)
    turns = [user(request.text), assistant(ImageRef(episode.scene))]
    return turns, [Check("draw", spec=request.spec, scene=episode.scene)], list(request.skills)


def open_with_picture(episode: Episode, rng: Random) -> Exchange:
    turns, checks, skills = talk_about(episode, episode.scene, rng)
    turns[0] = user(ImageRef(episode.scene), *turns[0].parts)
    return turns, checks, skills


def talk_about(episode: Episode, scene: Scene, rng: Random) -> Exchange:
    """One or two questions, of two objects also about the other one, a description, or (of the first scene) a depth or
    segmentation picture.
    """
    choice = rng.random()
    if choice < 0.2:
        short = rng.random() < 0.3
        words = describe(scene, short=short)
        turns = [user(say_describe_request(rng, short=short)), assistant(words)]
        return turns, [Check("describe", scene=scene, expected=words)], ["describe"]
    if choice < 0.3 and scene == episode.scene:
        kind: DenseKind = "depth" if rng.random() < 0.5 else "segmentation"
        turns = [user(dense.CANONICAL[kind]), assistant(ImageRef(scene, kind))]
        return turns, [Check(kind, scene=scene)], [kind]
    turns, checks, skills = [], [], []
    for _ in range(rng.choice((1, 1, 2))):
        words, question_kind, check = ask(episode, scene, rng, pronoun=rng.random() < 0.5)
        turns += [user(words), assistant(check.expected)]
        checks.append(check)
        skills.append(question_kind)
    about_other = ask_about_other(required(checks[-1].question, "question"), scene, rng)
    if about_other is not None:
        words, check = about_other
        turns += [user(words), assistant(check.expected)]
        checks.append(check)
        skills.append("the other one")
    return turns, checks, skills


def ask_about_other(before: Question, scene: Scene, rng: Random) -> tuple[str, Check] | None:
    """The same question about the other one of two objects, which only the question before tells."""
    if before.variant not in ("color of", "size of", "shape of") or len(scene.objects) != 2:
        return None
    others = [item for item in scene.objects if not before.subject.matches(item)]
    if len(others) != 1:
        return None
    choices = references(scene, others[0], without=before.kind, loose=before.kind == "shape")
    if not choices:
        return None
    question = replace(before, first=choices[0])
    expected = required(answer(question, scene), "the answer of a question about one object")
    check = Check("answer", scene=scene, question=question, apart_from=before.subject, expected=expected)
    return rng.choice(story_templates.THE_OTHER_ONE), check


# Questions without a picture and their one right answer: facts of the world, little sums, what lies outside.


KIND_WEIGHTS = {"fact": 60, "outside": 16, "sizes": 8, "reversed": 8, "sum": 8}


def make_talk(rng: Random) -> tuple[str, str, str]:
    """A question, its answer and its kind."""
    kind = rng.choices(tuple(KIND_WEIGHTS), tuple(KIND_WEIGHTS.values()))[0]
    match kind:
        case "fact":
            questions, answer = rng.choice(talk_templates.FACTS)
            question = rng.choice(questions)
        case "outside":
            question = rng.choice(talk_templates.OUTSIDE_REQUESTS).format(thing=rng.choice(talk_templates.OUTSIDE))
            answer = talk_templates.REFUSAL
        case "sizes":
            small, large = rng.sample(SHAPES, 2)
            phrases = [with_article(f"{say('small', rng)} {small}"), with_article(f"{say('large', rng)} {large}")]
            rng.shuffle(phrases)
            question = rng.choice(talk_templates.COMPARED_SIZES).format(a=phrases[0], b=phrases[1])
            answer = large
        case "reversed":
            a, b = rng.sample(SHAPES, 2)
            relation = rng.choice(RELATIONS)
            question = rng.choice(talk_templates.REVERSED).format(a=a, b=b, relation=say(relation, rng))
            answer = DIRECTIONS[OPPOSITE[relation]]
        case _:
            left, right = rng.choice([(left, right) for left in range(1, 4) for right in range(1, 5 - left)])
            question = capitalize(rng.choice(talk_templates.SUMS).format(a=NUMBER_WORDS[left], b=NUMBER_WORDS[right]))
            answer = str(left + right)
    return (question.lower() if rng.random() < 0.1 else question), answer, kind


# Slips of the keyboard: what people type is not what they meant to type, and is understood all the same.


SHARE = 0.06
"""Of the requests that have one."""
SHORTEST = 5
"""Letters of a word that is mistyped; of a shorter one too little is left."""
SHORTEST_CUT = 6
"""Letters of a word that may lose one."""
OTHERS = ("background", "larger", "bigger", "smaller", "every", "without", "right", "different")
"""Words beside attributes that change what is asked for."""
WORDS = re.compile(rf"[A-Za-z]{{{SHORTEST},}}")


def mistype(text: str, rng: Random) -> str:
    """One longer word with two letters exchanged, one doubled or one left out; its first letter stays.

    Number words are left alone and never made: "three" is one slip away from "there".
    """
    words = [found for found in WORDS.finditer(text) if found[0].lower() not in NUMBER_WORDS]
    if not words:
        return text
    found = rng.choice(words)
    slipped = found[0]
    while slipped == found[0] or slipped.lower() in NUMBER_WORDS:
        slipped = slip(found[0], rng)
    return text[: found.start()] + slipped + text[found.end() :]


def slip(word: str, rng: Random) -> str:
    """One of the word's slips, the word itself where two equal letters change places."""
    place = rng.randrange(1, len(word) - 1)
    return rng.choice(list(slips_at(word, place)))


def slips_at(word: str, place: int) -> Iterator[str]:
    """Exchange the letter there with the next, double it, leave it out."""
    yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    yield word[:place] + word[place] + word[place:]
    if len(word) >= SHORTEST_CUT:
        yield word[:place] + word[place + 1 :]


def undo_slips(text: str) -> str:
    """The text with slips in words that say what is in a picture put right; what else there is stays."""
    return WORDS.sub(lambda found: known_slips().get(found[0].lower(), found[0]), text)


@cache
def known_slips() -> dict[str, str]:
    """Every slip of these words that is no other word, with the word that was meant."""
    nouns = ("shape", *SHAPES, *(word for word in CANONICAL if CANONICAL[word] in ("shape", *SHAPES)))
    words = {*nouns, *map(pluralize, nouns), *COLORS, *BACKGROUNDS, *SIZES, *SYNONYMS, *CANONICAL, *OTHERS}
    meant: dict[str, set[str]] = {}
    for word in words:
        if word.isalpha() and len(word) >= SHORTEST:
            for place in range(1, len(word) - 1):
                for slipped in slips_at(word, place):
                    meant.setdefault(slipped, set()).add(word)
    return {
        slipped: next(iter(sources))
        for slipped, sources in meant.items()
        if len(sources) == 1 and slipped not in words and slipped not in NUMBER_WORDS
    }


QUESTION_ROUND_WEIGHTS = (30, 25, 20, 15, 10)  # one to five questions on one picture
SHORT_DESCRIPTION_SHARE = 0.25
CANONICAL_DENSE_SHARE = 0.5


def make_draw(episode: Episode, rng: Random, *, drawing_weights: Mapping[str, float] = DRAWING_WEIGHTS) -> Dialogue:
    request = make_draw_request(episode.scene, rng, kind_weights=drawing_weights, allowed_pairs=episode.allowed_pairs)
    turns = (user(request.text), assistant(ImageRef(episode.scene)))
    return Dialogue("draw", turns, (Check("draw", spec=request.spec, scene=episode.scene),), request.skills)


def make_describe(episode: Episode, rng: Random) -> Dialogue:
    short = rng.random() < SHORT_DESCRIPTION_SHARE
    words = describe(episode.scene, short=short)
    turns = (user(ImageRef(episode.scene), say_describe_request(rng, short=short)), assistant(words))
    check = Check("describe", scene=episode.scene, expected=words)
    return Dialogue("describe", turns, (check,), ("short",) if short else ("full",))


def make_ask(
    episode: Episode,
    rng: Random,
    *,
    num_questions: int | None = None,
    question_weights: Mapping[str, float] = QUESTION_WEIGHTS,
) -> Dialogue:
    """Several rounds of question and answer about one picture."""
    if num_questions is None:
        num_questions = rng.choices(range(1, len(QUESTION_ROUND_WEIGHTS) + 1), QUESTION_ROUND_WEIGHTS)[0]
    asked = (ask(episode, episode.scene, rng, kind_weights=question_weights) for _ in range(num_questions))
    rounds = {words: (kind, check) for words, kind, check in asked}  # no question twice
    turns = []
    for index, (words, (_, check)) in enumerate(rounds.items()):
        turns.append(user(words) if index else user(ImageRef(episode.scene), words))
        turns.append(assistant(check.expected))
    kinds, checks = zip(*rounds.values(), strict=True)
    return Dialogue("ask", tuple(turns), checks, kinds)


def make_edit(episode: Episode, rng: Random) -> Dialogue:
    sentence, reference = edit_sentence(episode.edit, episode.scene, rng)
    turns = (user(ImageRef(episode.scene), sentence), assistant(ImageRef(episode.edited)))
    return Dialogue("edit", turns, (edit_check(episode, reference),), (episode.edit.kind,))


def _make_dense(job: str, kind: DenseKind, requests: tuple[str, ...], episode: Episode, rng: Random) -> Dialogue:
    request = dense.CANONICAL[kind] if rng.random() < CANONICAL_DENSE_SHARE else rng.choice(requests)
    turns = (user(ImageRef(episode.scene), request), assistant(ImageRef(episode.scene, kind)))
    return Dialogue(job, turns, (Check(kind, scene=episode.scene),))


def make_depth(episode: Episode, rng: Random) -> Dialogue:
    return _make_dense("depth", "depth", dense.DEPTH, episode, rng)


def make_segment(episode: Episode, rng: Random) -> Dialogue:
    return _make_dense("segment", "segmentation", dense.SEGMENTATION, episode, rng)


def make_talk_dialogue(episode: Episode, rng: Random) -> Dialogue:
    question, expected, kind = make_talk(rng)
    return Dialogue("talk", (user(question), assistant(expected)), (Check("answer", expected=expected),), (kind,))


MAKERS: dict[str, Callable[[Episode, Random], Dialogue]] = {
    "draw": make_draw,
    "describe": make_describe,
    "ask": make_ask,
    "edit": make_edit,
    "depth": make_depth,
    "segment": make_segment,
    "interleaved": make_interleaved,
    "multi_turn": make_multi_turn,
    "talk": make_talk_dialogue,
}
JOBS = tuple(MAKERS)


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
    if job not in MAKERS:
        raise ValueError(f"job {job!r} is unknown; choose one of {', '.join(JOBS)}")
    match job:  # two of the makers can be told more
        case "ask":
            dialogue = make_ask(episode, rng, num_questions=num_questions, question_weights=question_weights)
        case "draw":
            dialogue = make_draw(episode, rng, drawing_weights=drawing_weights)
        case _:
            dialogue = MAKERS[job](episode, rng)
    return replace(dialogue, turns=tuple(with_typos(turn, rng) for turn in dialogue.turns))


def with_typos(turn: Turn, rng: Random) -> Turn:
    """The turn as a person types it; what the assistant says has no typos."""
    if turn.role == "assistant":
        return turn
    slips = (isinstance(part, str) and rng.random() < SHARE for part in turn.parts)
    parts = (mistype(str(part), rng) if is_slip else part for part, is_slip in zip(turn.parts, slips, strict=True))
    return replace(turn, parts=tuple(parts))
