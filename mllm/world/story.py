"""Dialogues with more than one step: a request answered with text and images in one turn, and whole conversations.

All pictures are those of the episode; the words come from `rng`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from mllm.world.ask_language import QUESTION_WEIGHTS, propose_question, say_question, says_it
from mllm.world.describe_language import describe, say_describe_request
from mllm.world.draw_language import make_draw_request
from mllm.world.edit_language import edit_sentence
from mllm.world.episode import Episode, Picture
from mllm.world.phrases import capitalize, is_unique, references
from mllm.world.questions import Question, answer
from mllm.world.scene import Scene, required
from mllm.world.spec import ANY, Count, Filter, Spec
from mllm.world.templates import dense
from mllm.world.templates import story as story_templates
from mllm.world.turns import Check, DenseKind, Dialogue, Part, Turn, assistant, user

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
    picture = Picture(episode.scene)
    match kind:
        case "draw then edit":
            template = rng.choice(story_templates.DRAW_THEN_EDIT)
            slots, reference = edit_slots(episode, rng)
            text = template.format(caption=caption, **slots)
            parts: tuple[Part, ...] = (story_templates.HERE, picture, story_templates.CHANGED, Picture(episode.edited))
            if reference:  # what is changed is named in the same request
                drawn = replace(drawn, spec=Spec((*spec.constraints, Count(reference, 1))))
            checks: tuple[Check, ...] = (
                say(story_templates.HERE),
                drawn,
                say(story_templates.CHANGED),
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
            parts = (story_templates.HERE, picture, words, Picture(episode.scene, dense_kind))
            checks = (say(story_templates.HERE), drawn, say(words), Check(dense_kind, scene=episode.scene))
    return Dialogue("interleaved", (user(text), assistant(*parts)), checks, (kind,))


def edit_then_describe(episode: Episode, rng: Random) -> Dialogue:
    template = rng.choice(story_templates.EDIT_THEN_DESCRIBE)
    slots, reference = edit_slots(episode, rng)
    words = describe(episode.edited)
    turns = (user(Picture(episode.scene), template.format(**slots)), assistant(Picture(episode.edited), words))
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


def say(text: str) -> Check:
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
        picture = Picture(episode.edited)
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
    turns = [user(request.text), assistant(Picture(episode.scene))]
    return turns, [Check("draw", spec=request.spec, scene=episode.scene)], list(request.skills)


def open_with_picture(episode: Episode, rng: Random) -> Exchange:
    turns, checks, skills = talk_about(episode, episode.scene, rng)
    turns[0] = user(Picture(episode.scene), *turns[0].parts)
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
        turns = [user(dense.CANONICAL[kind]), assistant(Picture(scene, kind))]
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
