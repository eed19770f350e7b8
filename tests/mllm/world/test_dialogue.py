"""Dialogues of every job: complete, deterministic, made of their episode's pictures, free of held-out pairs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from mllm.world.dialogue import JOBS, Dialogue, ImageRef, make_ask, make_dialogue, make_episode
from mllm.world.export import export_world
from mllm.world.language import normalize_words
from mllm.world.scene import COLORS, HELD_OUT_PAIRS, SHAPES


def words_of(dialogue: Dialogue) -> list[str]:
    return [part for turn in dialogue.turns for part in turn.parts if isinstance(part, str)]


@pytest.mark.parametrize("job", JOBS)
def test_dialogues_are_well_formed(job: str) -> None:
    for index in range(150):
        episode = make_episode(index)
        dialogue = make_dialogue(job, episode, Random(index))
        assert dialogue == make_dialogue(job, episode, Random(index))
        assert dialogue.job == job
        roles = [turn.role for turn in dialogue.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        answers = [part for turn in dialogue.turns if turn.role == "assistant" for part in turn.parts]
        assert len(answers) == len(dialogue.checks)
        assert set(dialogue.images) <= set(episode.images)
        for part, check in zip(answers, dialogue.checks, strict=True):
            assert isinstance(part, ImageRef) == (check.kind in ("draw", "edit", "depth", "segmentation"))
            if isinstance(part, str):
                assert part == check.expected
        assert all(text and "{" not in text and text.isascii() and "None" not in text for text in words_of(dialogue))


@pytest.mark.parametrize("job", JOBS)
def test_no_training_sentence_names_a_held_out_pair(job: str) -> None:
    for index in range(500):
        dialogue = make_dialogue(job, make_episode(index), Random(index))
        for text in words_of(dialogue):
            for first, second in pairwise(normalize_words(text)):
                if first in COLORS and second in SHAPES:
                    assert (first, second) not in HELD_OUT_PAIRS, text
        for picture in dialogue.images:
            assert not picture.scene.pairs & HELD_OUT_PAIRS


def test_the_same_content_has_many_wordings() -> None:
    episode = make_episode(3)
    for job in ("draw", "describe", "edit", "depth", "segment", "interleaved", "multi_turn"):
        requests = {str(make_dialogue(job, episode, Random(seed)).turns[0].parts) for seed in range(60)}
        assert len(requests) > 12, job


def test_ask_has_one_to_five_rounds_on_one_picture() -> None:
    rounds = [make_dialogue("ask", make_episode(index), Random(index)) for index in range(100)]
    assert {len(dialogue.checks) for dialogue in rounds} == {1, 2, 3, 4, 5}
    assert all(len(dialogue.images) == 1 for dialogue in rounds)
    assert len(make_ask(make_episode(0), Random(0), num_questions=1).checks) == 1


def test_unknown_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="'sing' is unknown"):
        make_dialogue("sing", make_episode(0), Random(0))


def test_export_writes_ordinary_datasets(tmp_path: Path) -> None:
    export_world(tmp_path / "world", 3, size=64)
    records = [json.loads(line) for line in (tmp_path / "world/messages.jsonl").read_text().splitlines()]
    captions = [json.loads(line) for line in (tmp_path / "world/captions.jsonl").read_text().splitlines()]
    assert [record["job"] for record in records] == list(JOBS) * 3 and len(captions) == 6
    for record in records:
        for message in record["messages"]:
            for part in message["content"]:
                assert part["type"] == "text" or (tmp_path / "world" / part["path"]).is_file()
    assert all((tmp_path / "world" / caption["image"]).is_file() for caption in captions)
    with pytest.raises(ValueError, match="not empty"):
        export_world(tmp_path / "world", 1)
