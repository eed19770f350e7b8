"""The planner of emoji: what a request asks for, and drawings by way of another style."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mllm.config import MLLMConfig
from mllm.conversation import Message, TextPart
from mllm.emoji import DRAW, RESTYLE, EmojiPlanner
from mllm.engine.request import ImageDone
from mllm.pipeline import Pipeline
from tests.mllm.tiny_folder import build_tiny_folder

STYLES = ["flat", "gradient"]
FOX = "Draw a fox, flat style."
BY_WAY = DRAW.format(name="a fox", style="gradient")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    fields = {"context": 600, "planner": "mllm.emoji.EmojiPlanner"}
    pipeline = Pipeline.load(build_tiny_folder(tmp_path_factory.mktemp("emoji"), **fields))
    pipeline.planner.styles = STYLES
    return pipeline


def test_a_request_names_a_thing_and_a_style_or_nothing_is_checked() -> None:
    planner = EmojiPlanner(MLLMConfig(styles=STYLES))
    for prompt, expected in {
        "Draw a fox, gradient style.": ("fox", "gradient"),
        "a red apple": ("red apple", "flat"),
        "Can you draw the flag of Chad in the gradient style, please?": ("flag of Chad", "gradient"),
        "please draw me a flat fox": ("flat fox", "flat"),
        "Show me man judge with dark skin tone, flat": ("man judge with dark skin tone", "flat"),
    }.items():
        found = planner.read(prompt)
        assert found is not None and (found.name, found.style) == expected
        (way,) = planner.detours(prompt)
        assert planner.read(way[0]).name == expected[0] and planner.read(way[0]).style != expected[1] in way[1]
        assert [answer for _, answer in planner.questions(prompt)] == list(expected)
    for prompt in (
        *("Draw it in flat style.", "Now gradient style.", "Make the skin dark.", "another one", "Gradient, please."),
        *("something about clock, thirty", "an emoji for joy", "the same in gradient", "", "Draw"),
    ):
        assert planner.read(prompt) is None and not planner.detours(prompt)
        assert [answer for _, answer in planner.questions(prompt)] == ["yes"]
    assert not EmojiPlanner(MLLMConfig()).detours(FOX), "without styles"


def scored(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, scores: dict[str, float]) -> None:
    def score(images: Sequence, texts: Sequence[str], **questions: object) -> list[float]:
        return [0.0 if questions else scores[text] for text in texts]

    monkeypatch.setattr(pipeline, "score", score)


def test_what_is_not_recognized_is_drawn_by_way_of_the_other_style(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pipeline.draw(FOX, seed=3, resamples=0)[0]
    (first,) = pipeline.run([pipeline._request(["draw"], [TextPart(BY_WAY)], "image", {"seed": 3, "resamples": 0})])
    asked = [Message("user", (first.images[0], TextPart(RESTYLE.format(style="flat"))))]
    restyled = pipeline.answer([asked], "image", [3], resamples=0)[0][0]
    assert plain.tobytes() != restyled.tobytes()
    for scores, expected in (
        ({FOX: 0.5, BY_WAY: 0.9}, plain),  # recognized
        ({FOX: 1e-3, BY_WAY: 0.9}, restyled),
        ({FOX: 1e-3, BY_WAY: 9e-4}, plain),  # no better
        ({FOX: 1e-6, BY_WAY: 9e-4}, plain),  # not good enough to begin with
    ):
        scored(monkeypatch, pipeline, scores)
        events: list = []
        (drawn,) = pipeline.draw(FOX, seed=3, resamples=1, on_event=events.append)
        (told,) = (event.image for event in events if isinstance(event, ImageDone))
        assert drawn.tobytes() == expected.tobytes() == told.tobytes()
    scored(monkeypatch, pipeline, {FOX: 1e-3, BY_WAY: 0.9})
    history = [Message("user", (TextPart("a"),)), Message("assistant", (TextPart("b"),))]
    chat = pipeline.answer([[*history, Message("user", (TextPart(FOX),))]], "image", [3], resamples=1)
    assert chat[0][0].tobytes() == restyled.tobytes(), "whatever was said before"


def test_what_it_neither_knows_nor_recognizes_is_answered_in_words(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = [Message("user", (TextPart(FOX),))]
    likes = pipeline.model.lm_head.weight.new_zeros(pipeline.config.vocab_size)
    likes[pipeline.config.begin_image_id] = 50.0
    handle = pipeline.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + likes)
    try:
        request = pipeline.build_request(message, "interleaved", task="chat", overrides={"seed": 1, "resamples": 1})
        request = replace(request, max_new_tokens=40)
        for scores, draws in (({FOX: 1e-6, BY_WAY: 1e-6}, False), ({FOX: 1e-6, BY_WAY: 0.9}, True)):
            scored(monkeypatch, pipeline, scores)
            assert bool(pipeline.run([request])[0].images) == draws
        monkeypatch.setattr(pipeline.config, "image_resamples", 1)
        assert pipeline.decline(FOX) is None
        scored(monkeypatch, pipeline, {FOX: 1e-6, BY_WAY: 1e-6})
        assert pipeline.decline(FOX) is not None
    finally:
        handle.remove()
