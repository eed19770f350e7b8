"""Dialogues of every job: complete, deterministic, made of their episode's images, free of held-out pairs."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest

from mllm.world.dialogue import JOBS, ImageRef, Round, ask_about_other, make_dialogue, make_episode
from mllm.world.export import export_world
from mllm.world.language import normalize_words, phrases
from mllm.world.questions import Question, answer
from mllm.world.scene import COLORS, HELD_OUT_PAIRS, SHAPES, Scene, SceneObject
from mllm.world.spec import Filter


def test_dialogues_are_well_formed_and_name_no_held_out_pair() -> None:
    for job, index in product(JOBS, range(200)):
        episode = make_episode(index)
        dialogue = make_dialogue(job, episode, Random(index))
        assert dialogue == make_dialogue(job, episode, Random(index)) and dialogue.job == job
        roles = [turn.role for turn in dialogue.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        answers = [part for turn in dialogue.turns if turn.role == "assistant" for part in turn.parts]
        for part, check in zip(answers, dialogue.checks, strict=True):
            assert isinstance(part, ImageRef) == (check.kind in ("draw", "edit", "depth", "segmentation"))
            assert isinstance(part, ImageRef) or part == check.expected  # no typos in answers
        assert set(dialogue.images) <= set(episode.images)
        assert not any(image.scene.pairs & HELD_OUT_PAIRS for image in dialogue.images)
        for text in (part for turn in dialogue.turns for part in turn.parts if isinstance(part, str)):
            assert text and "{" not in text and text.isascii() and "None" not in text
            for first, second in pairwise(normalize_words(text)):
                is_pair = first in COLORS and second in SHAPES
                assert not is_pair or (first, second) not in HELD_OUT_PAIRS, text


def test_some_requests_have_typos() -> None:
    for text, has_typos in (("Draw a purple circle.", True), ("a red star on it", False)):  # short words have none
        requests = set()
        for seed in range(300):
            with patch("mllm.world.dialogue.talk_round", lambda rng, text=text: Round((text,), ())):
                requests.add(make_dialogue("talk", make_episode(0), Random(seed)).turns[0].parts[0])
        assert text in requests and (len(requests) > 5) == has_typos


def test_ask_has_one_to_five_rounds_on_one_image() -> None:
    rounds = [make_dialogue("ask", make_episode(index), Random(index)) for index in range(100)]
    assert {len(dialogue.checks) for dialogue in rounds} == {1, 2, 3, 4, 5}
    assert all(len(dialogue.images) == 1 for dialogue in rounds)
    assert len(make_dialogue("ask", make_episode(0), Random(0), num_questions=1).checks) == 1
    with pytest.raises(ValueError):
        make_dialogue("sing", make_episode(0), Random(0))


def test_export_writes_ordinary_datasets(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    export_world(folder, 3, size=64)
    records = [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [record["job"] for record in records] == list(JOBS) * 3 and len(captions) == 6
    parts = [part for record in records for message in record["messages"] for part in message["content"]]
    assert all(part["type"] == "text" or (folder / part["path"]).is_file() for part in parts)
    assert all((folder / caption["image"]).is_file() for caption in captions)
    with pytest.raises(ValueError):
        export_world(folder, 1)


def test_the_other_one_is_the_one_that_was_not_asked_about() -> None:
    star, heart = SceneObject("star", "red", "small", 0.2, 0.3), SceneObject("heart", "blue", "large", 0.7, 0.6)
    two = Scene("white", (star, heart))
    for question, right in (
        (Question("color", "color of", Filter("star")), "blue"),
        (Question("shape", "shape of", Filter(size="large")), "star"),
    ):
        (check,) = (asked := ask_about_other(question, two, Random(0))).checks
        assert asked.request[0] in phrases("dialogue")["the other one"]
        assert check.expected == right == answer(check.question, two)
    for question, scene in (
        (Question("color", "color of", Filter("star")), Scene("white", (star,))),
        (Question("count", "count", Filter("star")), two),
        (Question("color", "color of", Filter("cross")), two),  # absent
    ):
        assert ask_about_other(question, scene, Random(0)) is None
