"""How many ways there are to say a thing, and that slips of the keyboard leave it readable."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from mllm.world.dialogue import (
    ask_about_other,
    assistant,
    make_dialogue,
    make_episode,
    mistype,
    undo_slips,
    user,
    with_typos,
)
from mllm.world.language import Question, answer
from mllm.world.reader import read_request
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import Filter
from mllm.world.templates import ask, dense, describe, draw, edit, story, talk

LEAST = 60


def texts_of(value: Any) -> set[str]:
    """All strings in nested tables."""
    if isinstance(value, str):
        return {value}
    items = value.values() if isinstance(value, dict) else value
    return {text for item in items for text in texts_of(item)}


def constants(module: Any) -> set[str]:
    return texts_of([value for name, value in vars(module).items() if name.isupper() and isinstance(value, tuple)])


TEMPLATES = {
    "draw": constants(draw),
    "ask": texts_of(ask.QUESTIONS),
    "describe": texts_of([describe.REQUESTS, describe.SHORT_REQUESTS]),
    "edit": texts_of(edit.EDITS),
    "depth": texts_of(dense.DEPTH),
    "segment": texts_of(dense.SEGMENTATION),
    "interleaved": constants(story) - set(story.THE_OTHER_ONE) | texts_of(story.DRAW_THEN_DENSE),
    "talk": {text for texts, _ in talk.FACTS for text in texts},
}


@pytest.mark.parametrize("job", TEMPLATES)
def test_every_job_can_be_asked_for_in_many_ways(job: str) -> None:
    assert len(TEMPLATES[job]) >= LEAST


def test_no_request_for_one_picture_is_also_one_for_the_other() -> None:
    assert not TEMPLATES["depth"] & TEMPLATES["segment"]


@pytest.mark.parametrize("seed", range(40))
def test_a_slip_changes_one_longer_word_and_keeps_its_first_letter(seed: int) -> None:
    text = "Draw three orange circles to the left of a square."
    before, after = text.split(), mistype(text, Random(seed)).split()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    for old, new in changed:
        assert old in ("orange", "circles", "square.") and old[0] == new[0] and abs(len(old) - len(new)) <= 1


def test_a_slip_makes_no_number() -> None:
    assert not any("three" in mistype("Are there stars", Random(seed)) for seed in range(200))
    assert all(mistype("small", Random(seed)) != "small" for seed in range(50))


@pytest.mark.parametrize("seed", range(60))
def test_a_request_with_a_slip_is_read_like_one_without(seed: int) -> None:
    text = "a large yellow triangle above two orange circles on a cream background"
    assert undo_slips(mistype(text, Random(seed))) == text
    assert read_request(mistype(text, Random(seed))) == read_request(text)


def test_words_without_a_slip_stay() -> None:
    text = "Where there are three stars, while others star in a white circus"
    assert undo_slips(text) == text


def test_short_words_have_no_slips() -> None:
    assert mistype("a red star on it", Random(0)) == "a red star on it"


def test_some_requests_have_slips_and_no_answer_has() -> None:
    asked = user("Draw a purple circle.")
    found = {with_typos(asked, Random(seed)) for seed in range(300)}
    assert asked in found and len(found) > 5
    said = assistant("There is a purple circle on a white background.")
    assert {with_typos(said, Random(seed)) for seed in range(50)} == {said}
    for index in range(100):
        dialogue = make_dialogue("describe", make_episode(index), Random(index))
        assert dialogue.turns[-1].parts == (dialogue.checks[-1].expected,)


TWO = Scene("white", (SceneObject("star", "red", "small", 0.2, 0.3), SceneObject("heart", "blue", "large", 0.7, 0.6)))


def test_the_other_one_is_the_one_that_was_not_asked_about() -> None:
    before = Question("color", "color of", Filter("star"))
    words, check = ask_about_other(before, TWO, Random(0))
    assert words in story.THE_OTHER_ONE and check.expected == "blue" == answer(check.question, TWO)
    shape = Question("shape", "shape of", Filter(size="large"))
    assert ask_about_other(shape, TWO, Random(0))[1].expected == "star"


def test_where_there_is_no_other_one_nothing_is_asked() -> None:
    one = Scene("white", TWO.objects[:1])
    assert ask_about_other(Question("color", "color of", Filter("star")), one, Random(0)) is None
    assert ask_about_other(Question("count", "count", Filter("star")), TWO, Random(0)) is None
    assert ask_about_other(Question("color", "color of", Filter("cross")), TWO, Random(0)) is None  # absent
