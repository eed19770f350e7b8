"""Plans: what a model writes before it draws is read by its own branch alone, ends, and stays with the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mllm.engine.loop import Engine, generate
from mllm.engine.request import PLAN_BUDGET, ForcedCodes, GenerationRequest, GenerationResult, ImageDone, TextDelta
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from mllm.sequence import TokenSequence
from tests.mllm.engine_helpers import GRID_IDS, IDS, NUM_CODEBOOKS, build_model, build_prompt

PLAN_ID = 6
NONE_FORCED = ForcedCodes(np.zeros((NUM_CODEBOOKS, 9), dtype=int), np.zeros(9, dtype=bool))


@pytest.fixture(scope="module")
def model() -> MLLMForConditionalGeneration:
    return planning(build_model(begin_plan_id=PLAN_ID))


def planning(model: MLLMForConditionalGeneration) -> MLLMForConditionalGeneration:
    """The model, eager to begin its images with a plan."""
    eager_V = 30.0 * (torch.arange(model.config.vocab_size) == model.config.begin_plan_id)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + eager_V)
    return model


def drawing(seed: int, *, guidance: float = 1.0, length: int = 7) -> GenerationRequest:
    return GenerationRequest(
        prompt=build_prompt(length, seed=seed, num_images=seed % 2),
        unconditional=build_prompt(3, seed=90 + seed, num_images=seed % 2),
        mode="image",
        seed=seed,
        image=SamplingConfig(guidance=guidance),
        max_new_tokens=40,
    )


def lengthened(prompt: TokenSequence, token_ids: list[int]) -> TokenSequence:
    ids = np.array([*prompt.token_ids_T, *token_ids])
    return replace(prompt, token_ids_T=ids, labels_T=np.full_like(ids, -100))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_one_pass_draws_what_two_passes_draw(model: MLLMForConditionalGeneration, guidance: float) -> None:
    """The image is that of a prompt which holds the plan; the branch to guide away from does not hold it."""
    for seed in range(4):
        request = drawing(seed, guidance=guidance)
        result = generate(model, [request])[0]
        plan = [PLAN_ID, *result.plans[0]]
        told = replace(request, prompt=lengthened(request.prompt, plan), forced_codes=NONE_FORCED)
        again = generate(model, [told])[0]
        assert (again.images[0].codes_KN == result.images[0].codes_KN).all()
        assert result.token_ids == plan + again.token_ids
        assert result.finish_reason == "image" and again.plans == [[]]


def test_requests_with_plans_of_different_lengths_decode_together(model: MLLMForConditionalGeneration) -> None:
    requests = [
        replace(drawing(seed, guidance=1.0 + seed % 3, length=4 + seed), max_new_tokens=16 + 3 * seed)
        for seed in range(6)
    ]
    requests.append(GenerationRequest(prompt=build_prompt(5, seed=7), mode="text", seed=7, max_new_tokens=30))
    requests.append(replace(drawing(8), forced_codes=NONE_FORCED))
    requests.append(replace(drawing(9, guidance=2.0), mode="interleaved", text=SamplingConfig(temperature=1.5)))

    def outcome(result: GenerationResult) -> tuple:
        return result.token_ids, [image.codes_KN.tolist() for image in result.images], result.plans

    together = [outcome(result) for result in generate(model, requests)]
    assert together == [outcome(generate(model, [request])[0]) for request in requests]
    assert len({len(plans[0]) for _, _, plans in together[:6]}) > 2


@pytest.mark.parametrize("grid", [(2, 3), (3, 2)])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_where_sizes_differ_a_plan_begins_with_that_of_its_image(grid: tuple[int, int], guidance: float) -> None:
    model = planning(build_model(layout="grid", begin_plan_id=39))
    sizes = [GRID_IDS["first_row_size_id"] + grid[0] - 1, GRID_IDS["first_column_size_id"] + grid[1] - 1]
    for seed in range(3):
        request = replace(drawing(2 * seed, guidance=guidance), grid=grid)
        result = generate(model, [request])[0]
        plan = [39, *sizes, *result.plans[0]]
        assert result.token_ids[: len(plan) + 1] == [*plan, IDS["begin_image_id"]]
        assert not set(sizes) & set(result.plans[0])
        none_forced = ForcedCodes(np.zeros((NUM_CODEBOOKS, 6), dtype=int), np.zeros(6, dtype=bool))
        told = generate(model, [replace(request, prompt=lengthened(request.prompt, plan), forced_codes=none_forced)])[0]
        given = generate(model, [replace(request, given_plan=tuple(result.plans[0]))])[0]
        for again in (told, given):
            assert (again.images[0].codes_KN == result.images[0].codes_KN).all()
        assert given.token_ids == result.token_ids
    needed = 1 + 2 + 6 + grid[0] + 4
    with pytest.raises(ValueError):
        generate(model, [replace(request, max_new_tokens=needed - 1)])
    assert generate(model, [replace(request, max_new_tokens=needed)])[0].plans == [[]]


def test_a_plan_ends_with_the_image_and_is_no_text(model: MLLMForConditionalGeneration) -> None:
    results = [generate(model, [drawing(seed)])[0] for seed in range(8)]
    for result in results:
        assert result.text_ids == [] and len(result.images) == len(result.plans) == 1
        plan = result.plans[0]
        assert result.token_ids[: len(plan) + 2] == [PLAN_ID, *plan, IDS["begin_image_id"]]
        assert not {0, 1, 2, PLAN_ID, *IDS.values()} & set(plan)
    events = list(Engine(model).stream([drawing(0)]))
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert {event.plan for event in events if isinstance(event, ImageDone)} == {tuple(results[0].plans[0])}


def liking(
    model: MLLMForConditionalGeneration, biases: dict[int, float], request: GenerationRequest
) -> GenerationResult:
    """The request of a model that likes some tokens more."""
    bias_V = torch.zeros(model.config.vocab_size)
    bias_V[list(biases)] = torch.tensor(list(biases.values()))
    hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias_V)
    try:
        return generate(model, [request])[0]
    finally:
        hook.remove()


def test_a_model_that_never_begins_the_image_is_made_to() -> None:
    model = planning(build_model(begin_plan_id=PLAN_ID))
    for budget, length in ((None, PLAN_BUDGET), (1 + 11 + 5, 5), (1 + 11, 0)):
        request = GenerationRequest(prompt=build_prompt(7, seed=0), mode="image", max_new_tokens=budget)
        result = liking(model, {IDS["begin_image_id"]: -60.0}, request)
        assert len(result.plans[0]) == length and len(result.images) == 1


def test_an_image_may_begin_without_a_plan(model: MLLMForConditionalGeneration) -> None:
    """A depth map has none: the model chooses, and nothing but a plan or the image can come."""
    for guidance in (1.0, 2.5):
        request = drawing(1, guidance=guidance)
        result = liking(model, {PLAN_ID: -90.0}, request)
        assert result.plans == [[]] and result.token_ids[0] == IDS["begin_image_id"]
        told = generate(model, [replace(request, forced_codes=NONE_FORCED)])[0]
        assert (told.images[0].codes_KN == result.images[0].codes_KN).all()


def test_no_room_for_the_marker_is_refused(model: MLLMForConditionalGeneration) -> None:
    with pytest.raises(ValueError):
        generate(model, [GenerationRequest(prompt=build_prompt(4, seed=0), mode="image", max_new_tokens=11)])


def test_mixed_answers_plan_their_images(model: MLLMForConditionalGeneration) -> None:
    biases, found = {PLAN_ID: -25.0, IDS["begin_image_id"]: 2.0}, []
    for seed in range(6):
        request = GenerationRequest(prompt=build_prompt(4, seed=seed), mode="interleaved", seed=seed, max_new_tokens=60)
        result = liking(model, biases, request)
        found += result.plans
        assert len(result.plans) == len(result.images)
        assert PLAN_ID not in result.text_ids
        written = sum(map(len, result.plans)) + len(result.text_ids) + 11 * len(result.images)
        assert result.token_ids.count(PLAN_ID) + written + (result.finish_reason == "eos") == len(result.token_ids)
    assert any(found)


def test_mixed_answers_plan_images_of_many_sizes() -> None:
    """Sizes are no text and no words of a plan, budgets hold, and company changes nothing."""
    model = planning(build_model(layout="grid", begin_plan_id=39))
    bias_V = torch.zeros(model.config.vocab_size)
    bias_V[[39, IDS["begin_image_id"]]] = torch.tensor([-24.0, 3.0])
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias_V)
    requests = [
        replace(drawing(seed, guidance=1.0 + seed % 2), mode="interleaved", grid=(2 + seed % 2, 3), max_new_tokens=45)
        for seed in range(0, 16, 2)
    ]
    together, found = generate(model, requests), 0
    for request, result in zip(requests, together, strict=True):
        assert generate(model, [request])[0].token_ids == result.token_ids and len(result.token_ids) <= 45
        sizes = [GRID_IDS["first_row_size_id"] + request.grid[0] - 1, GRID_IDS["first_column_size_id"] + 2]
        images = 4 + request.grid[0] + 3 * request.grid[0]
        begun = [place for place, token_id in enumerate(result.token_ids) if token_id == 39]
        assert all(result.token_ids[place + 1 : place + 3] == sizes for place in begun)
        written = sum(map(len, result.plans)) + len(result.text_ids) + images * len(result.images)
        assert 3 * len(begun) + written + (result.finish_reason == "eos") == len(result.token_ids)
        assert not set(sizes) & {*result.text_ids, *(token_id for words in result.plans for token_id in words)}
        found += len(begun)
    assert found > 4


@pytest.mark.parametrize(("spare", "has_image", "has_plan"), [(-1, False, False), (3, True, False), (4, True, True)])
def test_a_mixed_answer_begins_what_has_room(spare: int, has_image: bool, has_plan: bool) -> None:
    """A image without a plan needs less than one with."""
    model = build_model(layout="grid", begin_plan_id=39)
    bias_V = torch.zeros(model.config.vocab_size)
    bias_V[[39, IDS["begin_image_id"]]] = torch.tensor([90.0, 60.0])
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias_V)
    image = 4 + 2 + 2 * 3
    request = replace(drawing(0), mode="interleaved", grid=(2, 3), max_new_tokens=image + spare)
    result = generate(model, [request])[0]
    assert (bool(result.images), 39 in result.token_ids) == (has_image, has_plan)
    assert has_image or result.image_refused


def test_words_alone_never_begin_an_plan(model: MLLMForConditionalGeneration) -> None:
    request = GenerationRequest(prompt=build_prompt(4, seed=1), mode="text", max_new_tokens=20)
    assert PLAN_ID not in liking(model, {PLAN_ID: 60.0}, request).token_ids


def test_a_plan_has_settings_of_its_own(model: MLLMForConditionalGeneration) -> None:
    greedy = [replace(drawing(0), seed=seed, plan=SamplingConfig(greedy=True)) for seed in range(4)]
    assert len({tuple(result.plans[0]) for result in generate(model, greedy)}) == 1
    free = [replace(drawing(0), seed=seed, text=SamplingConfig(greedy=True)) for seed in range(4)]
    assert len({tuple(result.plans[0]) for result in generate(model, free)}) == 4


def test_a_given_plan_is_drawn_as_if_the_model_had_written_it(model: MLLMForConditionalGeneration) -> None:
    for guidance in (1.0, 2.5):
        request = drawing(3, guidance=guidance)
        own = generate(model, [request])[0]
        given = generate(model, [replace(request, given_plan=tuple(own.plans[0]))])[0]
        assert given.token_ids == own.token_ids and given.plans == own.plans
        assert (given.images[0].codes_KN == own.images[0].codes_KN).all()


def test_a_plan_that_cannot_be_taken_is_refused(model: MLLMForConditionalGeneration) -> None:
    request = drawing(1)
    with pytest.raises(ValueError):
        generate(build_model(), [replace(request, given_plan=(7, 8))])
    with pytest.raises(ValueError):
        replace(request, given_plan=(7,) * 65)
    with pytest.raises(ValueError):
        replace(request, mode="text", given_plan=(7,))
