"""The planner of emoji: what a request asks for, and drawings by way of another style."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from mllm.config import MLLMConfig
from mllm.conversation import Message, TextPart
from mllm.emoji import DRAW, RESTYLE, EmojiPlanner
from mllm.engine.request import ImageDone
from mllm.pipeline import Pipeline, candidate_seeds
from tests.mllm.tiny_folder import build_tiny_folder, random_image

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
    assert not planner.detours("a fox " * 30), "longer than any name"


def scored(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, scores: dict[str, float], *, best: int = 0) -> None:
    """Set the scores of texts; of several images with one text the one with this index has twice the score."""

    def score(images: Sequence, texts: Sequence[str], **questions: object) -> list[float]:
        found = [0.0 if questions else scores[text] for text in texts]
        return [each * 2 if n == best and len(found) > 1 else each for n, each in enumerate(found)]

    monkeypatch.setattr(pipeline, "score", score)


def drawn_for(pipeline: Pipeline, parts: Sequence, seed: int, temperature: float | None = None) -> Image.Image:
    settings = {"resamples": 0} | ({} if temperature is None else {"temperature": temperature})
    return pipeline.answer([[Message("user", tuple(parts))]], "image", [seed], **settings)[0][0]


def test_what_is_not_recognized_is_drawn_by_way_of_the_other_style(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pipeline.draw(FOX, seed=3, resamples=0)[0]
    (first,) = pipeline.run([pipeline._request(["draw"], [TextPart(BY_WAY)], "image", {"seed": 3, "resamples": 0})])
    asked = first.images[0], TextPart(RESTYLE.format(style="flat"))
    seeds, temperature = candidate_seeds(3, 3)[1:], pipeline.planner.temperature
    candidates = [drawn_for(pipeline, asked, seed, temperature) for seed in seeds]
    again = [drawn_for(pipeline, [TextPart(FOX)], seed, temperature) for seed in seeds]
    assert len({image.tobytes() for image in (plain, *candidates, *again)}) == 5
    for scores, best, expected in (
        ({FOX: 0.2, BY_WAY: 0.9}, 0, plain),  # recognized
        ({FOX: 0.06, BY_WAY: 0.9}, 1, again[1]),  # the second candidate is
        ({FOX: 1e-3, BY_WAY: 0.9}, 0, candidates[0]),
        ({FOX: 1e-3, BY_WAY: 0.9}, 1, candidates[1]),
        ({FOX: 1e-3, BY_WAY: 9e-4}, 1, again[1]),  # the other style is no better
        ({FOX: 1e-6, BY_WAY: 9e-4}, 0, again[0]),  # not good enough to begin with
    ):
        scored(monkeypatch, pipeline, scores, best=best)
        events: list = []
        (drawn,) = pipeline.draw(FOX, seed=3, resamples=2, on_event=events.append)
        (told,) = (event.image for event in events if isinstance(event, ImageDone))
        assert drawn.tobytes() == expected.tobytes() == told.tobytes()
    monkeypatch.setattr(pipeline.config, "tasks", ["draw"])
    assert pipeline.draw(FOX, seed=3, resamples=2)[0].tobytes() == plain.tobytes(), "it cannot ask itself"
    monkeypatch.undo()
    scored(monkeypatch, pipeline, {FOX: 1e-3, BY_WAY: 0.9})
    history = [Message("user", (TextPart("a"),)), Message("assistant", (TextPart("b"),))]
    chat = pipeline.answer([[*history, Message("user", (TextPart(FOX),))]], "image", [3], resamples=2)
    assert chat[0][0].tobytes() == candidates[0].tobytes(), "whatever was said before"


def test_a_change_is_checked_by_what_it_should_make_of_the_image(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, source, words = pipeline.planner, random_image(), "Make the skin dark."
    for change, name, expected in (
        (words, "man judge with light skin tone", ["man judge with dark skin tone"]),
        ("Without a skin tone.", "man judge with light skin tone", ["man judge"]),
        ("Medium-light skin, please.", "judge", ["judge with medium-light skin tone"]),
        ("A woman instead.", "man judge with light skin tone", ["woman judge with light skin tone"]),
        ("Make it a man.", "judge", ["man judge"]),
        (
            "Now as a person.",
            "man judge with dark skin tone",
            [f"{n}judge with dark skin tone" for n in ("person ", "")],
        ),
    ):
        assert planner.changed(change, (name, "flat")) == [DRAW.format(name=each, style="flat") for each in expected]
    assert planner.changed("The same in gradient style.", ("fox", "flat")) == [
        DRAW.format(name="fox", style="gradient")
    ]
    for other in (FOX, "What is this?", "Add a hat.", "Draw a man.", "a bear in gradient style"):
        assert not planner.changed(other, ("fox", "flat"))

    monkeypatch.setattr(pipeline, "_wanted", lambda goals: [[goal.words] for goal in goals])
    parts = pipeline.processor.encode_images([source])[0], TextPart(words)
    plain = drawn_for(pipeline, parts, 3)
    candidates = [drawn_for(pipeline, parts, seed, planner.temperature) for seed in candidate_seeds(3, 3)[1:]]
    for score, best, expected in ((0.6, 0, plain), (0.3, 1, candidates[1]), (0.0, 0, plain)):
        scored(monkeypatch, pipeline, {words: score}, best=best)
        assert pipeline.edit(source, words, seed=3, resamples=2).tobytes() == expected.tobytes()
    scored(monkeypatch, pipeline, {words: 0.3}, best=1)
    mask = Image.new("RGB", source.size, "black")
    mask.paste("white", (0, 0, 16, 16))
    masked = [pipeline.edit(source, words, mask=mask, seed=3, resamples=n).tobytes() for n in (0, 2)]
    assert masked[0] == masked[1], "codes outside a mask stay"


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
