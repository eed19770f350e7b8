"""Generation: cached = uncached, together = alone, the layout is obeyed, the budget is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mllm.engine.loop
from mllm.engine.forward import CachedForward
from mllm.engine.loop import Engine, generate
from mllm.engine.request import (
    Done,
    ForcedCodes,
    GenerationRequest,
    GenerationResult,
    ImageDone,
    ImagePreview,
    ImageProgress,
    TextDelta,
)
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig
from mllm.sequence import ImageLayout
from tests.mllm.engine_helpers import CODEBOOK_SIZE, IDS, NUM_CODEBOOKS, build_model, build_prompt

GREEDY = SamplingConfig(greedy=True)


@pytest.fixture(scope="module")
def model() -> MLLMForConditionalGeneration:
    return build_model()


def record_logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every logits that a choice is made from, in order."""
    seen: list[torch.Tensor] = []
    choose = mllm.engine.loop.choose
    monkeypatch.setattr(
        mllm.engine.loop, "choose", lambda logits, *rest: seen.append(logits.clone()) or choose(logits, *rest)
    )
    return seen


def record_passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many places every pass feeds to each row."""
    passes: list[list[int]] = []
    call = CachedForward.__call__
    monkeypatch.setattr(
        CachedForward,
        "__call__",
        lambda self, embedded, lengths, counts, **rest: (
            passes.append(list(counts)) or call(self, embedded, lengths, counts, **rest)
        ),
    )
    return passes


@torch.inference_mode()
def uncached_code_logits(
    model: MLLMForConditionalGeneration, request: GenerationRequest, codes_NK: torch.Tensor
) -> torch.Tensor:
    """Guided logits (N, K, C) of an image by one full forward per branch."""
    layout = ImageLayout.from_config(model.config)
    grid = request.grid or layout.default_grid
    branches = []
    for prompt in request.prompts:
        ids = [*prompt.token_ids_T.tolist(), *layout.token_ids(grid)]
        codes_PK = torch.cat([torch.from_numpy(prompt.codes_PK), codes_NK])
        lengths = torch.tensor([*prompt.image_lengths_I.tolist(), len(codes_NK)])
        hidden_TD = model(torch.tensor([ids]), codes=codes_PK, image_lengths=lengths).hidden[0]
        places = [t for t, token in enumerate(ids) if token == layout.image_token_id][-len(codes_NK) :]
        branches.append(model.code_head(hidden_TD[[t - 1 for t in places]], codes_NK))
    if len(branches) == 1:
        return branches[0]
    return branches[1] + request.image.guidance * (branches[0] - branches[1])


@pytest.mark.parametrize("head_type", ["depth_transformer", "mlp"])
@pytest.mark.parametrize(("layout", "grid"), [("fixed", (3, 3)), ("grid", (2, 4))])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_code_logits_equal_the_full_forward(
    monkeypatch: pytest.MonkeyPatch, head_type: str, layout: str, grid: tuple[int, int], guidance: float
) -> None:
    model = build_model(layout=layout, head_type=head_type, image_position_embedding=True)
    for table in model.code_embedding.places.parameters(recurse=False) if model.code_embedding.places else ():
        torch.nn.init.normal_(table)
    request = GenerationRequest(
        prompt=build_prompt(7, seed=0, num_images=1, layout=layout),
        unconditional=build_prompt(3, seed=1),
        mode="image",
        grid=grid,
        image=SamplingConfig(guidance=guidance),
        window=1,
    )
    seen = record_logits(monkeypatch)
    result = generate(model, [request])[0]
    codes_NK = torch.from_numpy(result.images[0].codes_KN.T.astype(np.int64))
    cached_NKC = torch.cat(seen).view(*codes_NK.shape, -1)
    full_NKC = uncached_code_logits(model, request, codes_NK)
    assert torch.allclose(cached_NKC, full_NKC, rtol=1e-4, atol=1e-4 * full_NKC.abs().max())
    assert result.token_ids == ImageLayout.from_config(model.config).token_ids(grid)
    assert result.finish_reason == "image"


def test_cached_text_logits_equal_the_full_forward(
    monkeypatch: pytest.MonkeyPatch, model: MLLMForConditionalGeneration
) -> None:
    prompt = build_prompt(6, seed=3, num_images=2)
    seen = record_logits(monkeypatch)
    request = GenerationRequest(prompt=prompt, mode="text", seed=4, max_new_tokens=9, window=1)
    result = generate(model, [request])[0]
    ids = torch.tensor([[*prompt.token_ids_T.tolist(), *result.token_ids]])
    with torch.inference_mode():
        full = model(
            ids, codes=torch.from_numpy(prompt.codes_PK), image_lengths=torch.from_numpy(prompt.image_lengths_I)
        ).logits[0, len(prompt) - 1 : -1]
    cached = torch.cat(seen)
    allowed = cached > -torch.inf
    assert torch.allclose(cached[allowed], full[allowed], rtol=1e-4, atol=1e-4)


def mixed_requests() -> list[GenerationRequest]:
    """Different lengths, modes, seeds and settings."""
    filtered = SamplingConfig(temperature=0.8, top_k=7, top_p=0.9, guidance=3.0)
    plain = SamplingConfig()
    return [
        GenerationRequest(prompt=build_prompt(7, seed=0), mode="image", seed=1, image=plain),
        GenerationRequest(prompt=build_prompt(12, seed=1), mode="text", seed=2, max_new_tokens=15),
        GenerationRequest(
            prompt=build_prompt(3, seed=2, num_images=1),
            unconditional=build_prompt(2, seed=9),
            mode="image",
            seed=3,
            image=filtered,
        ),
        GenerationRequest(
            prompt=build_prompt(5, seed=3, num_images=2),
            unconditional=build_prompt(4, seed=8),
            mode="interleaved",
            seed=19,
            max_new_tokens=40,
            image=SamplingConfig(guidance=1.5, temperature=(0.5, 1.0, 2.0)),
            text=SamplingConfig(temperature=1.3),
        ),
        GenerationRequest(
            prompt=build_prompt(9, seed=4), mode="interleaved", seed=5, max_new_tokens=25, text=GREEDY, image=GREEDY
        ),
        GenerationRequest(
            prompt=build_prompt(9, seed=5), mode="text", seed=6, max_new_tokens=3, text=SamplingConfig(top_k=5)
        ),
    ]


def outcome(result: GenerationResult) -> tuple:
    return result.token_ids, [image.codes_KN.tolist() for image in result.images], result.finish_reason


@pytest.mark.parametrize("head_type", ["depth_transformer", "mlp"])
def test_a_batch_of_different_requests_equals_each_alone(head_type: str) -> None:
    model = build_model(head_type=head_type)
    requests = mixed_requests()
    together = [outcome(result) for result in generate(model, requests)]
    assert together == [outcome(generate(model, [request])[0]) for request in requests]
    backwards = [outcome(result) for result in generate(model, requests[::-1])]
    assert backwards[::-1] == together


def test_requests_of_different_grids_decode_together() -> None:
    model = build_model(layout="grid")
    requests = [
        GenerationRequest(prompt=build_prompt(4 + n, seed=n), mode="image", seed=n, grid=grid)
        for n, grid in enumerate([(2, 3), (4, 1), (1, 1), (3, 5)])
    ]
    together = generate(model, requests)
    assert [outcome(result) for result in together] == [outcome(generate(model, [request])[0]) for request in requests]
    assert [result.images[0].grid for result in together] == [(2, 3), (4, 1), (1, 1), (3, 5)]


def test_the_isolated_context_differs_and_needs_no_cache(model: MLLMForConditionalGeneration) -> None:
    isolated = build_model(embedding_context="current")
    request = GenerationRequest(prompt=build_prompt(7, seed=0), mode="image", seed=1, image=GREEDY)
    with_prefix, alone = (generate(m, [request])[0].images[0].codes_KN for m in (model, isolated))
    assert (with_prefix[:, :2] == alone[:, :2]).all(), "the second position follows from the first code either way"
    assert (with_prefix != alone).any()


def test_an_image_takes_one_forward_per_position_and_only_guidance_a_second_sequence(
    monkeypatch: pytest.MonkeyPatch, model: MLLMForConditionalGeneration
) -> None:
    shapes = record_passes(monkeypatch)
    prompts = {"prompt": build_prompt(7, seed=0), "unconditional": build_prompt(2, seed=1)}
    for mode, guidance, rows in (("image", 1.0, 1), ("image", 1.01, 2), ("text", 3.0, 1)):
        shapes.clear()
        image = SamplingConfig(guidance=guidance)
        budget = {"image": None, "text": 2}[mode]
        generate(model, [GenerationRequest(**prompts, mode=mode, image=image, max_new_tokens=budget, window=1)])
        assert {len(counts) for counts in shapes} == {rows}
        if mode == "image":  # bos and text, then begin-of-image and every position but the last
            assert [counts[0] for counts in shapes] == [8] + [1] * 9


def test_the_same_seed_gives_the_same_and_another_another(model: MLLMForConditionalGeneration) -> None:
    requests = [GenerationRequest(prompt=build_prompt(7, seed=0), mode="image", seed=seed) for seed in (1, 1, 2, 3)]
    drawn = [str(outcome(result)) for result in generate(model, requests)]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


def test_text_is_the_same_for_every_budget(model: MLLMForConditionalGeneration) -> None:
    def write(budget: int) -> list[int]:
        request = GenerationRequest(prompt=build_prompt(4, seed=3), mode="text", seed=7, max_new_tokens=budget)
        return generate(model, [request])[0].token_ids

    longest = write(80)
    for budget in (1, 5, 70):
        assert write(budget) == longest[:budget]


def test_text_holds_no_image_tokens_and_ends_at_eos(model: MLLMForConditionalGeneration) -> None:
    requests = [
        GenerationRequest(prompt=build_prompt(4, seed=n), mode="text", seed=n, max_new_tokens=60) for n in range(12)
    ]
    results = generate(model, requests)
    for result in results:
        assert not {0, 1, *IDS.values()} & set(result.token_ids)
        assert result.finish_reason == ("eos" if result.token_ids[-1] == 2 else "length")
        assert 2 not in result.token_ids[:-1]
        assert result.text_ids == [token_id for token_id in result.token_ids if token_id != 2]
    assert {result.finish_reason for result in results} == {"eos", "length"}


def interleaved(model: MLLMForConditionalGeneration, *, seed: int, budget: int, bias: float = 6.0) -> GenerationResult:
    """An answer of a model that likes to begin images."""
    hook = model.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits + bias * (torch.arange(logits.shape[-1]) == IDS["begin_image_id"])
    )
    try:
        request = GenerationRequest(
            prompt=build_prompt(4, seed=seed), mode="interleaved", seed=seed, max_new_tokens=budget
        )
        return generate(model, [request])[0]
    finally:
        hook.remove()


def test_interleaved_answers_hold_whole_images_between_text(model: MLLMForConditionalGeneration) -> None:
    results = [interleaved(model, seed=seed, budget=60) for seed in range(6)]
    assert max(len(result.images) for result in results) >= 2
    whole = [IDS["begin_image_id"], *[IDS["image_token_id"]] * 9, IDS["end_image_id"]]
    for result in results:
        expected: list[int] = []
        for part in result.parts:
            expected += part if isinstance(part, list) else whole
        assert result.token_ids == expected + [2] * (result.finish_reason == "eos")
        assert all(image.codes_KN.shape == (NUM_CODEBOOKS, 9) for image in result.images)
        assert all(image.codes_KN.max() < CODEBOOK_SIZE for image in result.images)


def test_an_image_without_room_is_masked_and_reported(model: MLLMForConditionalGeneration) -> None:
    tight = interleaved(model, seed=0, budget=10, bias=60.0)
    assert tight.images == []
    assert tight.image_refused
    assert IDS["begin_image_id"] not in tight.token_ids
    roomy = interleaved(model, seed=0, budget=11, bias=60.0)
    assert len(roomy.images) == 1
    assert roomy.finish_reason == "length"
    uninterested = interleaved(model, seed=0, budget=10, bias=-60.0)
    assert not uninterested.image_refused


def test_forced_codes_stay_and_the_rest_is_drawn(model: MLLMForConditionalGeneration) -> None:
    codes_KN = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (NUM_CODEBOOKS, 9))
    is_forced_N = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1], dtype=bool)
    prompt = build_prompt(7, seed=0)
    requests = [
        GenerationRequest(prompt=prompt, mode="image", seed=2, forced_codes=ForcedCodes(codes_KN, is_forced_N)),
        GenerationRequest(prompt=prompt, mode="image", seed=2),
        GenerationRequest(
            prompt=prompt, mode="image", seed=2, forced_codes=ForcedCodes(codes_KN, np.ones(9, dtype=bool))
        ),
    ]
    partly, free, fully = (result.images[0].codes_KN for result in generate(model, requests))
    assert (partly[:, is_forced_N] == codes_KN[:, is_forced_N]).all()
    assert (partly[:, ~is_forced_N] != codes_KN[:, ~is_forced_N]).any()
    assert (fully == codes_KN).all()
    repeated = GenerationRequest(prompt=prompt, mode="image", seed=2, forced_codes=ForcedCodes(free, np.arange(9) < 4))
    assert (generate(model, [repeated])[0].images[0].codes_KN == free).all(), "a forced prefix shifts no random number"


def test_events_tell_what_happens_in_order(model: MLLMForConditionalGeneration) -> None:
    requests = [
        GenerationRequest(prompt=build_prompt(7, seed=0), mode="image", seed=1),
        GenerationRequest(prompt=build_prompt(5, seed=1), mode="text", seed=2, max_new_tokens=4),
    ]
    events = list(Engine(model).stream(requests))
    progress = [event for event in events if isinstance(event, ImageProgress)]
    assert [(event.index, event.done, event.total) for event in progress] == [(0, n, 9) for n in range(1, 10)]
    (image,) = (event for event in events if isinstance(event, ImageDone))
    finished = {event.index: event.result for event in events if isinstance(event, Done)}
    assert image.codes is finished[0].images[0]
    assert [event.token_id for event in events if isinstance(event, TextDelta)] == finished[1].text_ids
    counted: list = []
    generate(model, requests, on_event=counted.append)
    assert len(counted) == len(events)
    assert list(Engine(model).stream([])) == []


def test_previews_hold_what_stands_and_change_nothing(model: MLLMForConditionalGeneration) -> None:
    plain = GenerationRequest(prompt=build_prompt(7, seed=0), mode="image", seed=1)
    expected = generate(model, [plain])[0].images[0].codes_KN
    for every, window, places in ((3, 1, [3, 6]), (4, 1, [4, 8]), (2, None, None)):
        events = list(Engine(model).stream([replace(plain, preview_every=every, window=window)]))
        previews = [event for event in events if isinstance(event, ImagePreview)]
        assert places is None or [event.done for event in previews] == places
        for event in previews:
            assert event.codes.codes_KN.shape == expected.shape
            assert (event.codes.codes_KN[:, : event.done] == expected[:, : event.done]).all()
        assert (events[-1].result.images[0].codes_KN == expected).all()
    with pytest.raises(ValueError):
        replace(plain, preview_every=0)


def test_what_cannot_be_finished_is_refused_before_it_begins(model: MLLMForConditionalGeneration) -> None:
    with pytest.raises(ValueError):
        generate(model, [GenerationRequest(prompt=build_prompt(4, seed=0), mode="image", max_new_tokens=10)])
    with pytest.raises(ValueError):
        generate(model, [GenerationRequest(prompt=build_prompt(89, seed=0), mode="image")])
    with pytest.raises(ValueError):
        generate(model, [GenerationRequest(prompt=build_prompt(95, seed=0), mode="text")])


def test_contradictory_requests_are_refused() -> None:
    for wrong in (
        {"mode": "video"},
        {"image": SamplingConfig(guidance=2.0)},
        {"text": SamplingConfig(guidance=2.0)},
        {"mode": "text", "forced_codes": ForcedCodes(np.zeros((3, 9)), np.ones(9, dtype=bool))},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"resamples": -1},
    ):
        with pytest.raises(ValueError):
            GenerationRequest(**{"prompt": build_prompt(3, seed=0), "mode": "image", **wrong})


def test_settings_and_codes_of_another_model_are_refused(model: MLLMForConditionalGeneration) -> None:
    prompt = build_prompt(3, seed=0)
    with pytest.raises(ValueError):
        generate(model, [GenerationRequest(prompt=prompt, mode="image", image=SamplingConfig(temperature=(1.0, 2.0)))])
    with pytest.raises(ValueError):
        known = ForcedCodes(np.zeros((3, 8), dtype=int), np.ones(8, dtype=bool))
        generate(model, [GenerationRequest(prompt=prompt, mode="image", forced_codes=known)])


def test_equal_prompts_are_run_once_and_draw_as_they_do_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one sentence share its prompt, guided requests the unconditional one; images inside a prompt count."""
    model = build_model()
    looked_at, sentence, nothing = (
        build_prompt(5, seed=0, num_images=1),
        build_prompt(8, seed=1),
        build_prompt(9, seed=2),
    )
    others = replace(looked_at, codes_PK=(looked_at.codes_PK + 1) % CODEBOOK_SIZE)
    image = SamplingConfig(guidance=2.0)
    requests = [
        GenerationRequest(prompt=prompt, unconditional=nothing, mode="image", seed=n, image=image, window=1)
        for n, prompt in enumerate([looked_at, sentence, looked_at, others, sentence])
    ]
    alone = [outcome(generate(model, [request])[0]) for request in requests]
    passes, engine = record_passes(monkeypatch), Engine(model)
    assert [outcome(result) for result in engine.generate(requests)] == alone
    different = sum(map(len, (looked_at, sentence, others, nothing)))
    num_steps = 2 * 5 * 9  # what follows begin-of-image, of both rows
    assert sum(map(sum, passes)) == different + num_steps
    passes.clear()
    assert [outcome(result) for result in engine.generate(requests[:1])] == alone[:1]
    assert sum(map(sum, passes)) == 2 * 9, "the slots still hold both prompts"
