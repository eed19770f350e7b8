"""Rejection sampling: which try stands, that what came before it stays, and that company changes nothing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mllm.conversation import CodesPart, from_chat
from mllm.engine.loop import Engine
from mllm.engine.rejection import SEED_STRIDE as STRIDE
from mllm.engine.rejection import Check, Verdict, answer_ids, stream_accepted
from mllm.engine.request import Done, Event, GenerationRequest, GenerationResult, ImageDone, ImageProgress, TextDelta
from mllm.pipeline import Pipeline, load_planner
from mllm.sampling import SamplingConfig
from mllm.sequence import ImageLayout, extend_sequence
from tests.mllm.engine_helpers import outcome
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.unitok import UniTok


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model without training that likes to plan and to draw; its plans begin with a size."""
    fields = {"layout": "grid", "outlines": True, "context": 800, "planner": "mllm.world.plan.ScenePlanner"}
    pipeline = Pipeline.load(build_tiny_folder(tmp_path_factory.mktemp("resampled"), **fields))
    likes_V = torch.zeros(pipeline.config.vocab_size)
    likes_V[pipeline.config.begin_plan_id] = 8.0
    likes_V[pipeline.config.begin_image_id] = 5.0
    pipeline.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + likes_V)
    return pipeline


def build_requests(
    pipeline: Pipeline, mode: str, count: int, *, resamples: int, guidance: float = 1.0
) -> list[GenerationRequest]:
    overrides = {"guidance": guidance, "max_new_tokens": 90}
    chats = [from_chat([{"role": "user", "content": "a" * (n + 1)}]) for n in range(count)]
    requests = [pipeline.build_request(chat, mode, task="chat", overrides=overrides) for chat in chats]
    text = SamplingConfig(temperature=1.2)
    return [replace(request, seed=n, resamples=resamples, text=text) for n, request in enumerate(requests)]


def run(pipeline: Pipeline, requests: Sequence[GenerationRequest], check: Check) -> list[list[Event]]:
    events: list[list[Event]] = [[] for _ in requests]
    layout = ImageLayout.from_config(pipeline.config)
    for event in stream_accepted(requests, stream=Engine(pipeline.model).stream, check=check, layout=layout):
        events[event.index].append(event)
    return events


def results_of(events: Sequence[Sequence[Event]]) -> list[GenerationResult]:
    assert all(isinstance(of_one[-1], Done) for of_one in events)
    return [of_one[-1].result for of_one in events]


def by_codes(is_right: Callable[[list], bool], seen: list[int] | None = None) -> Check:
    """A check of the codes; how many images it saw at once is noted."""

    def check(images: Sequence[ImageDone], requests: Sequence[GenerationRequest]) -> list[Verdict]:
        assert len(images) == len(requests)
        if seen is not None:
            seen.append(len(images))
        return [is_right(image.codes.codes_KN.tolist()) for image in images]

    return check


sometimes = by_codes(lambda codes: sum(map(sum, codes)) % 3 == 0)


def test_the_first_right_try_stands_or_else_the_last(pipeline: Pipeline) -> None:
    (request,) = build_requests(pipeline, "image", 1, resamples=0)
    tries = [Engine(pipeline.model).generate([replace(request, seed=request.seed + k * STRIDE)])[0] for k in range(4)]
    right = tries[2].images[0].codes_KN.tolist()
    for resamples, standing in ((0, 0), (1, 1), (2, 2), (3, 2)):
        seen: list[int] = []
        check = by_codes(lambda codes: codes == right, seen)
        (result,) = results_of(run(pipeline, [replace(request, resamples=resamples)], check))
        assert outcome(result) == (*outcome(tries[standing])[:3], request.seed, "image", False)
        assert seen == [1] * min(resamples + 1, 3) * (resamples > 0)


def test_what_came_before_the_image_stays(pipeline: Pipeline) -> None:
    """The second image is sampled again, as if the answer up to it had been in the prompt."""
    (request,) = build_requests(pipeline, "interleaved", 1, resamples=1, guidance=2.0)
    (first,) = Engine(pipeline.model).generate([request])
    assert len(first.images) >= 2 and any(first.plans)
    wrong = first.images[1].codes_KN.tolist()
    (result,) = results_of(run(pipeline, [request], by_codes(lambda codes: codes != wrong)))

    end = [n for n, part in enumerate(first.parts) if isinstance(part, CodesPart)][1]
    begun, images = first.parts[:end], first.images[:1]
    layout = ImageLayout.from_config(pipeline.config)
    token_ids = answer_ids(begun, first.plans[:1], layout)
    assert first.token_ids[: len(token_ids)] == token_ids, "the tokens of an answer follow from its parts"
    told = replace(
        request,
        prompt=extend_sequence(request.prompt, token_ids, images),
        unconditional=extend_sequence(request.unconditional, answer_ids(begun, [[]], layout), images),
        max_new_tokens=request.max_new_tokens - len(token_ids),
        seed=request.seed + STRIDE,
    )
    (rest,) = Engine(pipeline.model).generate([told])
    assert result.token_ids == token_ids + rest.token_ids and result.seed == request.seed
    assert result.plans == first.plans[:1] + rest.plans
    expected = [image.codes_KN.tolist() for image in [*images, *rest.images]]
    assert [image.codes_KN.tolist() for image in result.images] == expected
    assert all(isinstance(a, CodesPart) or isinstance(b, CodesPart) for a, b in pairwise(result.parts))


def test_another_image_can_stand_in_the_place_of_one_and_the_answer_goes_on_from_it(pipeline: Pipeline) -> None:
    (drawing,) = build_requests(pipeline, "image", 1, resamples=1)
    (other,) = Engine(pipeline.model).generate([replace(drawing, seed=99)])[0].images
    events = run(pipeline, [drawing], lambda images, requests: [other for _ in images])[0]
    (result,), (told,) = results_of([events]), [event for event in events if isinstance(event, ImageDone)]
    assert result.images == [told.codes] == [other] and result.seed == drawing.seed

    (request,) = build_requests(pipeline, "interleaved", 1, resamples=1)
    (first,) = Engine(pipeline.model).generate([request])
    wrong = first.images[0].codes_KN.tolist()
    exchange = lambda images, requests: [  # noqa: E731
        other if image.codes.codes_KN.tolist() == wrong else True for image in images
    ]
    (result,) = results_of(run(pipeline, [request], exchange))
    end = next(n for n, part in enumerate(first.parts) if isinstance(part, CodesPart))
    begun = [*first.parts[:end], other]
    token_ids = answer_ids(begun, first.plans[:1], ImageLayout.from_config(pipeline.config))
    told_before = replace(
        request,
        prompt=extend_sequence(request.prompt, token_ids, [other]),
        max_new_tokens=request.max_new_tokens - len(token_ids),
        seed=request.seed + STRIDE,
    )
    (rest,) = Engine(pipeline.model).generate([told_before])
    assert result.token_ids == token_ids + rest.token_ids and len(rest.token_ids) > 1, "sampled again: it saw another"
    assert result.images[0] == other and len(result.images) == 1 + len(rest.images)


def test_an_answer_whose_image_is_refused_goes_on_in_words(pipeline: Pipeline) -> None:
    (request,) = build_requests(pipeline, "interleaved", 1, resamples=1)
    (first,) = Engine(pipeline.model).generate([request])
    assert first.images
    events = run(pipeline, [request], lambda images, requests: ["words" for _ in images])[0]
    (result,) = results_of([events])
    assert not result.images and not any(isinstance(event, ImageDone) for event in events)
    before = first.parts[0] if isinstance(first.parts[0], list) else []
    assert result.text_ids[: len(before)] == before and len(result.text_ids) > len(before)
    assert [event.token_id for event in events if isinstance(event, TextDelta)] == result.text_ids


def test_together_and_alone_the_answers_are_equal_and_events_tell_what_stands(pipeline: Pipeline) -> None:
    requests = build_requests(pipeline, "interleaved", 2, resamples=2, guidance=2.0)
    requests += build_requests(pipeline, "interleaved", 1, resamples=2)
    requests += build_requests(pipeline, "image", 2, resamples=2)
    requests += build_requests(pipeline, "interleaved", 1, resamples=0)
    together = run(pipeline, requests, sometimes)
    alone = [run(pipeline, [request], sometimes)[0] for request in requests]
    for events, expected in zip(alone, results_of(together), strict=True):
        assert outcome(events[-1].result) == outcome(expected)
    plain = Engine(pipeline.model).generate(requests)
    assert sum(outcome(a) != outcome(b) for a, b in zip(results_of(together), plain, strict=True)) >= 3
    for events in (*together, *alone):
        result = events[-1].result
        shown = [event.codes.codes_KN.tolist() for event in events if isinstance(event, ImageDone)]
        assert shown == [image.codes_KN.tolist() for image in result.images]
        assert sum(isinstance(event, ImageProgress) for event in events) > 3
        if not result.image_refused:
            assert [event.token_id for event in events if isinstance(event, TextDelta)] == result.text_ids


def test_the_next_try_is_asked_for_while_other_answers_are_not_begun(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.engine.rejection.CHECKED_TOGETHER", 1)
    requests = build_requests(pipeline, "image", 3, resamples=1)
    taken: list[int] = []

    def stream(requests: Iterable[GenerationRequest | None]) -> Iterator[Event]:
        seen = (taken.append(request.seed) or request if request else None for request in requests)
        return Engine(pipeline.model, num_slots=1).stream(seen)

    order: list[int] = []
    for event in stream_accepted(
        requests,
        stream=stream,
        check=lambda images, requests: [len(taken) > 3 for _ in images],
        layout=ImageLayout.from_config(pipeline.config),
    ):
        if isinstance(event, Done):
            order.append(event.index)
    assert taken == [0, 1, 2, STRIDE] and order == [1, 2, 0]


def test_an_image_that_is_unlike_its_plan_is_sampled_again_and_every_try_decoded_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real description: a model without training sees no red circle."""
    settings = {"plan": "white, large red circle 35", "resamples": 0}
    first, third = (pipeline.draw("a red circle", seed=3 + n * STRIDE, **settings)[0] for n in (0, 2))
    assert first.tobytes() != third.tobytes()
    assert pipeline.draw("a", seed=2**63 - 1, **{**settings, "resamples": 1})[0].info["seed"] == 2**63 - 1
    decoded: list[int] = []
    decode = UniTok.decode
    monkeypatch.setattr(
        UniTok, "decode", lambda self, codes, **rest: decoded.append(len(codes)) or decode(self, codes, **rest)
    )
    events: list[Event] = []
    drawn = pipeline.draw("a red circle", seed=3, **{**settings, "resamples": 2, "on_event": events.append})[0]
    assert drawn.tobytes() == third.tobytes() and drawn.info["seed"] == 3
    (told,) = (event.image for event in events if isinstance(event, ImageDone))
    assert decoded == [1, 1, 1] and told.tobytes() == drawn.tobytes(), "for its check, the events and the caller"


def test_a_model_without_a_planner_draws_once(tmp_path: Path) -> None:
    plain = Pipeline.load(build_tiny_folder(tmp_path, outlines=True, context=400))
    once, thrice = (plain.draw("a red circle", seed=1, resamples=n)[0].tobytes() for n in (0, 3))
    assert plain.planner is None and once == thrice
    for name in ("json.JSONDecoder", "mllm.nowhere.Planner", "mllm.world.plan.Nothing", "mllm.world.plan.plan_of"):
        plain.config.planner = name
        with pytest.raises(ValueError):  # planners come from this package only
            load_planner(plain.config)
