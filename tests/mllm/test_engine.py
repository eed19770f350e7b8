"""Generation: the layout is obeyed, budgets are kept, plans belong to their images, events tell what happens.

That guesses, company and caches change nothing is in test_engine_equality.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mllm.engine.forward import CachedForward
from mllm.engine.loop import Engine
from mllm.engine.rejection import answer_ids
from mllm.engine.request import (
    PLAN_BUDGET,
    Done,
    Failed,
    ForcedCodes,
    GenerationRequest,
    ImageDone,
    ImagePreview,
    ImageProgress,
    TextDelta,
)
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from mllm.sequence import ImageLayout
from tests.mllm.engine_helpers import (
    CODEBOOK_SIZE,
    IDS,
    NUM_CODEBOOKS,
    ask,
    build_model,
    build_prompt,
    liking,
    outcome,
)

GREEDY = SamplingConfig(greedy=True)
BEGIN, EOS, PLAN_ID = IDS["begin_image_id"], 2, 39
IMAGE = 11  # tokens of an image of the fixed layout


@pytest.fixture(scope="module")
def model() -> MLLMForConditionalGeneration:
    return build_model()


@pytest.fixture(scope="module")
def planner() -> MLLMForConditionalGeneration:
    return build_model(begin_plan_id=PLAN_ID)


def forced(codes_KN: np.ndarray, is_forced_N: Any) -> ForcedCodes:
    return ForcedCodes(codes_KN, np.array(is_forced_N, dtype=bool))


# ---- text ----


def test_text_holds_no_image_tokens_ends_at_eos_and_is_the_same_for_every_budget(
    model: MLLMForConditionalGeneration, planner: MLLMForConditionalGeneration
) -> None:
    requests = [ask(4, seed=n, mode="text", max_new_tokens=60) for n in range(12)]
    results = Engine(model).generate(requests)
    for result in results:
        assert not {0, 1, *IDS.values()} & set(result.token_ids)
        assert result.finish_reason == ("eos" if result.token_ids[-1] == EOS else "length")
        assert result.text_ids == [token_id for token_id in result.token_ids if token_id != EOS]
    assert {result.finish_reason for result in results} == {"eos", "length"}
    for budget in (1, 5, 40):
        shorter = Engine(model).generate([replace(request, max_new_tokens=budget) for request in requests])
        assert [r.token_ids for r in shorter] == [r.token_ids[:budget] for r in results]
    with liking(planner, {PLAN_ID: 60.0}):
        assert PLAN_ID not in Engine(planner).generate([replace(requests[1], max_new_tokens=20)])[0].token_ids


# ---- images ----


def record_passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many places every pass feeds to each row."""
    passes: list[list[int]] = []
    arrange = CachedForward.arrange
    monkeypatch.setattr(
        CachedForward,
        "arrange",
        lambda self, lengths, counts, **rest: passes.append(list(counts)) or arrange(self, lengths, counts, **rest),
    )
    return passes


def test_an_image_takes_one_forward_per_position_and_only_guidance_a_second_sequence(
    monkeypatch: pytest.MonkeyPatch, model: MLLMForConditionalGeneration
) -> None:
    passes = record_passes(monkeypatch)
    for mode, guidance, rows in (("image", 1.0, 1), ("image", 1.01, 2), ("text", 3.0, 1)):
        passes.clear()
        budget = {"image": None, "text": 2}[mode]
        request = ask(mode=mode, image=SamplingConfig(guidance=guidance), max_new_tokens=budget, window=1)
        Engine(model).generate([request])
        assert {len(counts) for counts in passes} == {rows}
        if mode == "image":  # bos, text and begin-of-image, then every position but the last
            assert [counts[0] for counts in passes] == [9] + [1] * 8


def test_a_prompt_is_fed_in_the_pass_of_what_is_running(
    monkeypatch: pytest.MonkeyPatch, model: MLLMForConditionalGeneration
) -> None:
    passes, engine = record_passes(monkeypatch), Engine(model)
    for number in range(2):
        engine.submit(ask(4 + number, seed=number, window=1))
        engine.step()
    assert passes == [[6], [1, 7]]


def test_equal_prompts_are_run_once_and_draw_as_they_do_alone(
    monkeypatch: pytest.MonkeyPatch, model: MLLMForConditionalGeneration
) -> None:
    """Images of one sentence share its prompt, guided requests the unconditional one; images inside a prompt count."""
    looked_at, sentence, nothing = (
        build_prompt(5, seed=0, num_images=1),
        build_prompt(8, seed=1),
        build_prompt(9, seed=2),
    )
    others = replace(looked_at, codes_PK=(looked_at.codes_PK + 1) % CODEBOOK_SIZE)
    common = {"unconditional": nothing, "image": SamplingConfig(guidance=2.0), "window": 1}
    requests = [
        ask(prompt=prompt, seed=n, **common)
        for n, prompt in enumerate([looked_at, sentence, looked_at, others, sentence])
    ]
    alone = [outcome(Engine(model).generate([request])[0]) for request in requests]
    passes, engine = record_passes(monkeypatch), Engine(model)
    assert [outcome(result) for result in engine.generate(requests)] == alone
    different = sum(map(len, (looked_at, sentence, others, nothing)))
    num_steps = 2 * 5 * 9  # what follows begin-of-image, of both rows
    assert sum(map(sum, passes)) == different + num_steps
    passes.clear()
    assert [outcome(result) for result in engine.generate(requests[:1])] == alone[:1]
    assert sum(map(sum, passes)) == 2 * 9, "the slots still hold both prompts"


def test_forced_codes_stay_and_the_rest_is_drawn_with_the_noise_of_its_place(
    model: MLLMForConditionalGeneration,
) -> None:
    codes_KN = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (NUM_CODEBOOKS, 9))
    is_forced_N = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1], dtype=bool)
    given = [forced(codes_KN, is_forced_N), None, forced(codes_KN, [1] * 9)]
    drawn = Engine(model).generate([*(ask(forced_codes=codes) for codes in given), ask(), replace(ask(), seed=1)])
    partly, free, fully, same, other = (result.images[0].codes_KN for result in drawn)
    assert (partly[:, is_forced_N] == codes_KN[:, is_forced_N]).all()
    assert (partly[:, ~is_forced_N] != codes_KN[:, ~is_forced_N]).any()
    assert (fully == codes_KN).all() and (free == same).all() and (free != other).any()
    (repeated,) = Engine(model).generate([ask(forced_codes=forced(free, np.arange(9) < 4))])
    assert (repeated.images[0].codes_KN == free).all(), "a forced prefix shifts no random number"


@pytest.mark.parametrize(
    ("fields", "biases", "mean_images"),
    [
        ({}, {BEGIN: 6.0}, 1),
        ({"begin_plan_id": PLAN_ID}, {PLAN_ID: 5.0, BEGIN: 2.0}, 1),
        ({"layout": "grid", "begin_plan_id": PLAN_ID}, {PLAN_ID: 6.0, BEGIN: 3.0}, 0.5),
    ],
)
def test_mixed_answers_hold_whole_images_and_their_plans_between_text(
    fields: dict[str, Any], biases: dict[int, float], mean_images: float
) -> None:
    """Sizes are no text and no words of a plan, and budgets hold."""
    layout = ImageLayout.from_config((model := build_model(**fields)).config)
    requests = [
        ask(4, seed=n, mode="interleaved", max_new_tokens=60, grid=(2 + n % 2, 3) if layout.kind == "grid" else (3, 3))
        for n in range(8)
    ]
    with liking(model, biases):
        results = Engine(model).generate(requests)
    for request, result in zip(requests, results, strict=True):
        written = answer_ids(result.parts, result.plans, layout)
        assert result.token_ids == written + [EOS] * (result.finish_reason == "eos") and len(written) <= 60
        special = {*IDS.values(), PLAN_ID, *layout.size_ids(request.grid)}
        assert not special & {*result.text_ids, *(word for plan in result.plans for word in plan)}
        for image in result.images:
            assert image.codes_KN.shape == (NUM_CODEBOOKS, request.grid[0] * request.grid[1])
            assert image.codes_KN.max() < CODEBOOK_SIZE
    assert sum(len(result.images) for result in results) >= mean_images * len(results)
    assert any(map(any, (result.plans for result in results))) == ("begin_plan_id" in fields)


@pytest.mark.parametrize(
    ("budget", "biases", "has_image", "has_plan"),
    [(-1, {}, False, False), (0, {BEGIN: 60.0}, True, False), (3, {}, True, False), (4, {}, True, True)],
)
def test_what_the_budget_cannot_finish_is_not_begun_and_reported(
    budget: int, biases: dict[int, float], has_image: bool, has_plan: bool
) -> None:
    """An image without a plan needs less than one with."""
    image = 4 + 2 + 2 * 3
    request = ask(mode="interleaved", grid=(2, 3), max_new_tokens=image + budget)
    with liking(build_model(layout="grid", begin_plan_id=PLAN_ID), biases or {PLAN_ID: 90.0, BEGIN: 60.0}) as model:
        (result,) = Engine(model).generate([request])
    assert (bool(result.images), PLAN_ID in result.token_ids) == (has_image, has_plan)
    assert has_image or (result.image_refused and BEGIN not in result.token_ids)
    with liking(model, {PLAN_ID: -90.0, BEGIN: -60.0}):
        assert not Engine(model).generate([request])[0].image_refused


# ---- plans ----


@pytest.mark.parametrize(("layout", "grid"), [("fixed", (3, 3)), ("grid", (2, 3)), ("grid", (3, 2))])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_an_image_is_that_of_a_prompt_with_its_plan(layout: str, grid: tuple[int, int], guidance: float) -> None:
    """The plan begins with the image's size where sizes differ, and the branch to guide away from does not hold it."""
    sampling, num_positions = SamplingConfig(guidance=guidance), grid[0] * grid[1]
    none_forced = forced(np.zeros((NUM_CODEBOOKS, num_positions), dtype=int), [0] * num_positions)
    with liking(build_model(layout=layout, begin_plan_id=PLAN_ID), {PLAN_ID: 30.0}) as model:
        images = ImageLayout.from_config(model.config)
        for seed in range(3):
            request = ask(seed=seed, grid=grid, image=sampling, max_new_tokens=40)
            (result,) = Engine(model).generate([request])
            plan = [*images.plan_opening(grid), *result.plans[0]]
            assert result.token_ids == plan + images.token_ids(grid) and not result.text_ids
            assert not {0, 1, EOS, *IDS.values(), *images.plan_opening(grid)} & set(result.plans[0])
            ids_T = np.array([*request.prompt.token_ids_T, *plan])
            prompt = replace(request.prompt, token_ids_T=ids_T, labels_T=np.full_like(ids_T, -100))
            told = replace(request, prompt=prompt, forced_codes=none_forced)
            given = replace(request, given_plan=tuple(result.plans[0]))
            for other, plans in ((told, [[]]), (given, result.plans)):
                (again,) = Engine(model).generate([other])
                assert (again.images[0].codes_KN == result.images[0].codes_KN).all() and again.plans == plans
        needed = len(images.plan_opening(grid)) + images.num_tokens(grid)
        with pytest.raises(ValueError):
            Engine(model).generate([replace(request, max_new_tokens=needed - 1)])
        assert Engine(model).generate([replace(request, max_new_tokens=needed)])[0].plans == [[]]


def test_a_plan_ends_in_time_or_is_left_out(planner: MLLMForConditionalGeneration) -> None:
    for budget, length in ((None, PLAN_BUDGET), (1 + IMAGE + 5, 5), (1 + IMAGE, 0)):
        with liking(planner, {PLAN_ID: 30.0, BEGIN: -60.0}):
            (result,) = Engine(planner).generate([ask(max_new_tokens=budget)])
        assert len(result.plans[0]) == length and len(result.images) == 1
    none_forced = forced(np.zeros((NUM_CODEBOOKS, 9), dtype=int), [0] * 9)
    for guidance in (1.0, 2.5):  # a depth map has none: nothing but a plan or the image can come
        request = ask(1, image=SamplingConfig(guidance=guidance), max_new_tokens=40)
        with liking(planner, {PLAN_ID: -60.0}):
            (result,) = Engine(planner).generate([request])
        assert result.plans == [[]] and result.token_ids[0] == BEGIN
        (told,) = Engine(planner).generate([replace(request, forced_codes=none_forced)])
        assert (told.images[0].codes_KN == result.images[0].codes_KN).all()


def test_a_plan_has_settings_of_its_own(planner: MLLMForConditionalGeneration) -> None:
    with liking(planner, {PLAN_ID: 30.0}):
        for settings, num_plans in (({"plan": GREEDY}, 1), ({"text": GREEDY}, 4)):
            requests = [replace(ask(max_new_tokens=40), seed=seed, **settings) for seed in range(4)]
            assert len({tuple(result.plans[0]) for result in Engine(planner).generate(requests)}) == num_plans


# ---- events and errors ----


def test_events_tell_what_happens_in_order(
    model: MLLMForConditionalGeneration, planner: MLLMForConditionalGeneration
) -> None:
    requests = [ask(seed=1), ask(5, seed=2, mode="text", max_new_tokens=4)]
    events = list(Engine(model).stream(requests))
    progress = [event for event in events if isinstance(event, ImageProgress)]
    assert [(event.index, event.done, event.total) for event in progress] == [(0, n, 9) for n in range(1, 10)]
    (image,) = (event for event in events if isinstance(event, ImageDone))
    finished = {event.index: event.result for event in events if isinstance(event, Done)}
    assert image.codes is finished[0].images[0]
    assert [event.token_id for event in events if isinstance(event, TextDelta)] == finished[1].text_ids
    counted: list = []
    Engine(model).generate(requests, on_event=counted.append)
    assert len(counted) == len(events) and list(Engine(model).stream([])) == []
    with liking(planner, {PLAN_ID: 30.0}):
        events = list(Engine(planner).stream([ask(max_new_tokens=40)]))
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert [list(event.plan) for event in events if isinstance(event, ImageDone)] == events[-1].result.plans


def test_previews_hold_what_stands_and_change_nothing(model: MLLMForConditionalGeneration) -> None:
    plain = ask(seed=1)
    expected = Engine(model).generate([plain])[0].images[0].codes_KN
    for every, window, places in ((3, 1, [3, 6]), (4, 1, [4, 8]), (2, None, None)):
        events = list(Engine(model).stream([replace(plain, preview_every=every, window=window)]))
        previews = [event for event in events if isinstance(event, ImagePreview)]
        assert places is None or [event.done for event in previews] == places
        for event in previews:
            assert event.codes.codes_KN.shape == expected.shape
            assert (event.codes.codes_KN[:, : event.done] == expected[:, : event.done]).all()
        assert (events[-1].result.images[0].codes_KN == expected).all()


def test_what_cannot_be_answered_is_refused(model: MLLMForConditionalGeneration) -> None:
    for wrong in (  # in themselves
        {"mode": "video"},
        {"image": SamplingConfig(guidance=2.0), "unconditional": None},
        {"text": SamplingConfig(guidance=2.0)},
        {"mode": "text", "forced_codes": forced(np.zeros((3, 9)), [1] * 9)},
        {"mode": "text", "given_plan": (7,)},
        {"given_plan": (7,) * 65},
        *({name: 0} for name in ("max_new_tokens", "window", "preview_every")),
        *({name: -1} for name in ("seed", "resamples")),
    ):
        with pytest.raises(ValueError):
            ask(**wrong)
    for request in (  # by this model
        ask(max_new_tokens=IMAGE - 1),
        ask(89),
        ask(95, mode="text"),
        ask(image=SamplingConfig(temperature=(1.0, 2.0))),
        ask(forced_codes=forced(np.zeros((3, 8), dtype=int), [1] * 8)),
        ask(given_plan=(7, 8)),
    ):
        with pytest.raises(ValueError):
            Engine(model).generate([request])


def test_an_error_ends_its_own_request_alone(model: MLLMForConditionalGeneration) -> None:
    def refuse(ids_1T: torch.Tensor, logits_1V: torch.Tensor) -> torch.Tensor:
        if ids_1T.shape[1] > 6:
            raise RuntimeError("enough")
        return logits_1V

    fine: list[GenerationRequest] = [ask(4, seed=n, mode="text", max_new_tokens=9) for n in range(3)]
    requests = [fine[0], replace(fine[1], logits_processors=(refuse,)), fine[2]]
    last = {event.index: event for event in Engine(model).stream(requests)}
    assert isinstance(last[1], Failed) and "enough" in str(last[1].error)
    for n in (0, 2):
        assert outcome(last[n].result) == outcome(Engine(model).generate([fine[n]])[0])
    with pytest.raises(RuntimeError):
        Engine(model).generate(requests)


def test_cancelled_requests_leave_at_once_and_waiting_ones_enter(model: MLLMForConditionalGeneration) -> None:
    engine = Engine(model, num_slots=1)
    first, second = engine.submit(ask(4, window=1)), engine.submit(ask(4, seed=1, window=1))
    for _ in range(3):
        assert {event.index for event in engine.step()} <= {first}
    engine.cancel(first)
    assert {event.index for event in engine.step()} == {second}
    with pytest.raises(ValueError):
        engine.submit(ask(4, image=SamplingConfig(guidance=2.0)))
