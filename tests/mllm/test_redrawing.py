"""Drawing again: which try stands, that what came before it stays, and that company and streaming change nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mllm import pipeline as redrawing
from mllm.conversation import CodesPart
from mllm.engine.loop import ImageEvent, RowEvent, TextEvent, generate, stream
from mllm.engine.request import Generated, Row
from mllm.pipeline import REDRAW_STRIDE as STRIDE
from mllm.pipeline import Pipeline, answer_ids, redraw, stream_redrawn
from mllm.sampling import SamplingConfig
from mllm.sequence import extend_sequence
from tests.mllm.tiny_folder import build_tiny_folder

Verdicts = list[bool]


@pytest.fixture(scope="module", params=["fixed", "grid"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model without training that likes to outline and to draw; in the grid layout outlines begin with a size."""
    folder = tmp_path_factory.mktemp("redrawn")
    pipeline = Pipeline.load(build_tiny_folder(folder, layout=request.param, outlines=True, context=800))
    likes_V = torch.zeros(pipeline.config.vocab_size)
    likes_V[pipeline.config.begin_plan_id] = 8.0
    likes_V[pipeline.config.begin_image_id] = 5.0
    pipeline.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + likes_V)
    return pipeline


def rows_of(pipeline: Pipeline, mode: str, count: int, *, redraws: int, guidance: float = 1.0) -> list[Row]:
    build = partial(pipeline.rows.build, mode=mode, task="chat")
    rows = [
        build(pipeline.processor.read_chat(chat(n)), overrides={"guidance": guidance, "max_new_tokens": 90})
        for n in range(count)
    ]
    return [replace(row, seed=n, redraws=redraws, text=SamplingConfig(temperature=1.2)) for n, row in enumerate(rows)]


def chat(n: int) -> list[dict]:
    return [{"role": "user", "content": "a" * (n + 1)}]


def again(pipeline: Pipeline, rows: list[Row]) -> list[Generated]:
    return redraw(rows, generate(pipeline.model, rows), processor=pipeline.processor, run=pipeline.decode)


def outcome(result: Generated) -> tuple:
    parts = [part if isinstance(part, list) else part.codes_KN.tolist() for part in result.parts]
    return result.token_ids, parts, result.outlines, result.seed, result.finish_reason


def judge_by(monkeypatch: pytest.MonkeyPatch, is_right: object) -> list[int]:
    """Let a function of the codes stand for looking; how many pictures it saw at once is noted."""
    seen: list[int] = []

    def are_as_outlined(pictures: list, *_: object) -> Verdicts:
        seen.append(len(pictures))
        return [is_right(image.codes_KN) for image, _ in pictures]

    monkeypatch.setattr(redrawing, "are_as_outlined", are_as_outlined)
    return seen


@pytest.mark.parametrize(("redraws", "standing"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_the_first_right_try_stands_or_else_the_last(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, redraws: int, standing: int
) -> None:
    (row,) = rows_of(pipeline, "image", 1, redraws=redraws)
    tries = [generate(pipeline.model, [replace(row, seed=row.seed + k * STRIDE)])[0] for k in range(4)]
    right = tries[2].images[0].codes_KN.tolist()
    seen = judge_by(monkeypatch, lambda codes_KN: codes_KN.tolist() == right)
    (result,) = again(pipeline, [row])
    assert outcome(result) == (*outcome(tries[standing])[:3], row.seed, "image")
    assert seen == [1] * min(redraws + 1, 3) * (redraws > 0)


def test_what_came_before_the_picture_stays(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture is drawn again, as if the answer up to it had been in the prompt."""
    (row,) = rows_of(pipeline, "interleaved", 1, redraws=1, guidance=2.0)
    (first,) = generate(pipeline.model, [row])
    assert len(first.images) >= 2 and any(first.outlines)
    wrong = first.images[1].codes_KN.tolist()
    judge_by(monkeypatch, lambda codes_KN: codes_KN.tolist() != wrong)
    (result,) = again(pipeline, [row])

    place = [n for n, part in enumerate(first.parts) if isinstance(part, CodesPart)][1]
    begun, images = first.parts[:place], first.images[:1]
    layout = redrawing.ImageLayout.from_config(pipeline.config)
    token_ids = answer_ids(begun, first.outlines[:1], layout)
    assert first.token_ids[: len(token_ids)] == token_ids, "the tokens of an answer follow from its parts"
    without = answer_ids(begun, [[]], layout)
    told = replace(
        row,
        prompt=extend_sequence(row.prompt, token_ids, images),
        unconditional=extend_sequence(row.unconditional, without, images),
        max_new_tokens=row.max_new_tokens - len(token_ids),
        seed=row.seed + STRIDE,
    )
    (rest,) = generate(pipeline.model, [told])
    assert result.token_ids == token_ids + rest.token_ids and result.seed == row.seed
    assert result.outlines == first.outlines[:1] + rest.outlines
    assert [image.codes_KN.tolist() for image in result.images] == [
        image.codes_KN.tolist() for image in [*images, *rest.images]
    ]
    texts = [part for part in result.parts if isinstance(part, list)]
    assert all(isinstance(a, CodesPart) or isinstance(b, CodesPart) for a, b in pairwise(result.parts))
    assert sum(map(len, texts)) == sum(len(part) for part in [*begun, *rest.parts] if isinstance(part, list))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_together_alone_and_streamed_the_answers_are_equal(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    judge_by(monkeypatch, lambda codes_KN: int(codes_KN.sum()) % 3 == 0)
    rows = rows_of(pipeline, "interleaved", 3, redraws=2, guidance=guidance)
    rows += rows_of(pipeline, "image", 2, redraws=2, guidance=guidance)
    together = again(pipeline, rows)
    assert [outcome(result) for result in together] == [outcome(again(pipeline, [row])[0]) for row in rows]
    plain = generate(pipeline.model, rows)
    assert sum(outcome(a) != outcome(b) for a, b in zip(together, plain, strict=True)) >= 3
    for row, expected in zip(rows, together, strict=True):
        events = list(
            stream_redrawn(
                row, processor=pipeline.processor, run=pipeline.decode, stream=partial(stream, pipeline.model)
            )
        )
        *_, last = events
        assert isinstance(last, RowEvent) and outcome(last.generated) == outcome(expected)
        told = [event.image for event in events if isinstance(event, ImageEvent) and event.image is not None]
        assert [image.codes_KN.tolist() for image in told] == [image.codes_KN.tolist() for image in expected.images]
        if not expected.image_refused:
            words = [event.token_id for event in events if isinstance(event, TextEvent)]
            assert words == expected.text_ids


def test_a_listener_hears_what_stands(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(monkeypatch, lambda codes_KN: int(codes_KN.sum()) % 3 == 0)
    rows = rows_of(pipeline, "interleaved", 3, redraws=2) + rows_of(pipeline, "interleaved", 1, redraws=0)
    heard: list[list] = [[] for _ in rows]
    results = pipeline.run(rows, on_progress=lambda event: heard[event.row].append(event))
    assert [outcome(result) for result in results] == [outcome(result) for result in again(pipeline, rows)]
    assert any(outcome(a) != outcome(b) for a, b in zip(results, generate(pipeline.model, rows), strict=True))
    for events, result in zip(heard, results, strict=True):
        *_, last = events
        assert isinstance(last, RowEvent) and outcome(last.generated) == outcome(result)
        told = [event.image for event in events if isinstance(event, ImageEvent) and event.image is not None]
        assert [image.codes_KN.tolist() for image in told] == [image.codes_KN.tolist() for image in result.images]
        assert sum(isinstance(event, ImageEvent) and event.image is None for event in events) > 3  # progress
        if not result.image_refused:
            assert [event.token_id for event in events if isinstance(event, TextEvent)] == result.text_ids


def test_the_largest_seed_can_be_drawn_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_by(monkeypatch, lambda codes_KN: False)
    assert pipeline.draw("a red circle", seed=2**63 - 1, redraws=1)[0].info["seed"] == 2**63 - 1


def test_a_picture_that_is_unlike_its_outline_is_drawn_again(pipeline: Pipeline) -> None:
    """By real looking: a model without training sees no red circle."""
    outline = "white, large red circle 35"
    settings = {"outline": outline, "redraws": 0}
    third = pipeline.draw("a red circle", seed=3 + 2 * STRIDE, **settings)[0]
    assert pipeline.draw("a red circle", seed=3, **settings)[0].tobytes() != third.tobytes()
    drawn = pipeline.draw("a red circle", seed=3, outline=outline, redraws=2)[0]
    assert drawn.tobytes() == third.tobytes() and drawn.info["seed"] == 3
    free = {"outline": "something red", "seed": 3}
    once, maybe_more = (pipeline.draw("a", redraws=n, **free)[0].tobytes() for n in (0, 2))
    assert once == maybe_more, "free words cannot be compared"


def test_how_often_is_the_checkpoints_choice_or_the_callers(pipeline: Pipeline) -> None:
    def chosen(**overrides: object) -> int:
        messages = pipeline.processor.read_chat(chat(0))
        return pipeline.rows.build(messages, "image", task="draw", overrides=overrides).redraws

    assert (chosen(), chosen(redraws=2)) == (0, 2)
    pipeline.config.image_redraws = 3
    try:
        assert (chosen(), chosen(redraws=0), chosen(greedy=True)) == (3, 0, 0)
        pipeline.rows.stored_settings["draw"] = {"redraws": 1}
        assert chosen() == 1
    finally:
        pipeline.config.image_redraws = 0
        pipeline.rows.stored_settings.pop("draw", None)
    with pytest.raises(ValueError, match="redraws is no number of tries: found -1"):
        chosen(redraws=-1)


def test_a_model_without_outlines_draws_once(tmp_path: Path) -> None:
    plain = Pipeline.load(build_tiny_folder(tmp_path))
    once, thrice = (plain.draw("a red circle", seed=1, redraws=n)[0].tobytes() for n in (0, 3))
    assert once == thrice
