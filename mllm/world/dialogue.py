"""Dialogues of every job, the one source of training data and evaluation items.

`make_dialogue(job, episode, rng)`: the episode gives the content and all pictures, `rng` the wording. Pictures are
references; nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from mllm.world.ask_language import QUESTION_WEIGHTS
from mllm.world.describe_language import describe, say_describe_request
from mllm.world.draw_language import DRAWING_WEIGHTS, make_draw_request
from mllm.world.edit_language import edit_sentence
from mllm.world.episode import Episode, Picture
from mllm.world.story import ask, edit_check, make_interleaved, make_multi_turn
from mllm.world.talk_language import make_talk
from mllm.world.templates import dense
from mllm.world.turns import Check, DenseKind, Dialogue, Turn, assistant, user
from mllm.world.typos import SHARE, mistype

QUESTION_ROUND_WEIGHTS = (30, 25, 20, 15, 10)  # one to five questions on one picture
SHORT_DESCRIPTION_SHARE = 0.25
CANONICAL_DENSE_SHARE = 0.5


def make_draw(episode: Episode, rng: Random, *, drawing_weights: Mapping[str, float] = DRAWING_WEIGHTS) -> Dialogue:
    request = make_draw_request(episode.scene, rng, kind_weights=drawing_weights, allowed_pairs=episode.allowed_pairs)
    turns = (user(request.text), assistant(Picture(episode.scene)))
    return Dialogue("draw", turns, (Check("draw", spec=request.spec, scene=episode.scene),), request.skills)


def make_describe(episode: Episode, rng: Random) -> Dialogue:
    short = rng.random() < SHORT_DESCRIPTION_SHARE
    words = describe(episode.scene, short=short)
    turns = (user(Picture(episode.scene), say_describe_request(rng, short=short)), assistant(words))
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
        turns.append(user(words) if index else user(Picture(episode.scene), words))
        turns.append(assistant(check.expected))
    kinds, checks = zip(*rounds.values(), strict=True)
    return Dialogue("ask", tuple(turns), checks, kinds)


def make_edit(episode: Episode, rng: Random) -> Dialogue:
    sentence, reference = edit_sentence(episode.edit, episode.scene, rng)
    turns = (user(Picture(episode.scene), sentence), assistant(Picture(episode.edited)))
    return Dialogue("edit", turns, (edit_check(episode, reference),), (episode.edit.kind,))


def _make_dense(job: str, kind: DenseKind, requests: tuple[str, ...], episode: Episode, rng: Random) -> Dialogue:
    request = dense.CANONICAL[kind] if rng.random() < CANONICAL_DENSE_SHARE else rng.choice(requests)
    turns = (user(Picture(episode.scene), request), assistant(Picture(episode.scene, kind)))
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
