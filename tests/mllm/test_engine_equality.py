"""Whatever is guessed, and whoever is decoded beside it, a request gets what a plain loop without a cache gives it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import product
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mllm.engine.loop
from mllm.conversation import from_chat
from mllm.engine.forward import AnyBackbone
from mllm.engine.loop import Engine
from mllm.engine.request import Done, ForcedCodes, GenerationRequest, GenerationResult
from mllm.engine.state_machine import never_text_ids
from mllm.engine.step import StaticStep
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.sampling import TEXT, SamplingConfig, choose, gumbel, stack_settings
from mllm.sequence import ImageLayout, TokenSequence
from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, ask, build_model, build_prompt, liking, outcome

PLAN_ID = 39


def pick(logits_C: Tensor, settings: SamplingConfig, *, seed: int, position: int, codebook: int) -> int:
    """One choice."""
    row, counters = stack_settings([settings], num_choices=len(logits_C)), torch.tensor([seed, position])
    noise_1C = gumbel(counters[:1], counters[1:], codebook, num_choices=len(logits_C))
    return int(choose(logits_C[None], row, noise_1C))


@torch.inference_mode()
def hidden_states(model: MLLMForConditionalGeneration, prompt: TokenSequence, ids: list[int], codes: list) -> Tensor:
    """(T, D) of a prompt and what was added, by one forward."""
    codes_PK = torch.cat(
        [torch.from_numpy(prompt.codes_PK), torch.tensor(codes, dtype=torch.int64).view(-1, NUM_CODEBOOKS)]
    )
    alone = model.config.embedding_context == "current"  # each new position for itself
    lengths = [*prompt.image_lengths_I.tolist(), *([1] * len(codes) if alone else [len(codes)] * bool(codes))]
    ids_1T = torch.tensor([[*prompt.token_ids_T.tolist(), *ids]])
    return model(ids_1T, codes=codes_PK if lengths else None, image_lengths=torch.tensor(lengths)).hidden[0]


@torch.inference_mode()
def draw_plainly(model: MLLMForConditionalGeneration, request: GenerationRequest) -> list[list[int]]:
    """The codes (N, K) of one image, one full forward for each."""
    layout = ImageLayout.from_config(model.config)
    grid, ids, drawn = request.grid or layout.default_grid, [], []
    for token_id in layout.token_ids(grid):
        if token_id == layout.image_token_id:
            position, codes = len(drawn), []
            if request.forced_codes is not None and request.forced_codes.is_forced_N[position]:
                codes = request.forced_codes.codes_KN[:, position].tolist()
            branches = [hidden_states(model, prompt, ids, drawn)[-1:] for prompt in request.prompts]
            while len(codes) < model.config.num_codebooks:
                k = len(codes)
                padded_1K = torch.tensor([[*codes, *[0] * (model.config.num_codebooks - k)]])
                logits = [model.code_head(hidden_1D, padded_1K)[0, k] for hidden_1D in branches]
                scale = request.image.guidance
                mixed_C = logits[0] if len(logits) == 1 else logits[1] + scale * (logits[0] - logits[1])
                codes.append(pick(mixed_C, request.image, seed=request.seed, position=position, codebook=k))
            drawn.append(codes)
        ids.append(token_id)
    return drawn


@torch.inference_mode()
def write_plainly(model: MLLMForConditionalGeneration, request: GenerationRequest) -> list[int]:
    """The tokens of a text."""
    layout = ImageLayout.from_config(model.config)
    forbidden, ids = [*never_text_ids(layout, model.config), *layout.opening_ids], []
    while len(ids) < request.max_new_tokens and (not ids or ids[-1] != model.config.eos_token_id):
        logits_V = model.text_logits(hidden_states(model, request.prompt, ids, [])[-1])
        logits_V[forbidden] = -torch.inf
        ids.append(pick(logits_V, request.text, seed=request.seed, position=len(ids), codebook=TEXT))
    return ids


MODELS = [
    {"layout": layout, "head_type": head, "embedding_context": context, "image_position_embedding": places}
    for head, (layout, context, places) in product(
        ("depth_transformer", "mlp"),
        [("fixed", "prefix", True), ("fixed", "current", False), ("grid", "prefix", True), ("bare", "prefix", False)],
    )
]


def equal_to_a_plain_loop(seeds: range) -> None:
    for number, fields in enumerate(MODELS):
        model, layout = build_model(**fields), fields["layout"]
        for seed in seeds:
            rng = np.random.default_rng([seed, number])
            settings = {"temperature": float(rng.choice([0.15, 0.5, 1.0])), "top_p": float(rng.choice([0.8, 1.0]))}
            grid = (int(rng.integers(1, 4)), int(rng.integers(1, 5))) if layout == "grid" else (3, 3)
            is_forced_N = rng.random(grid[0] * grid[1]) < rng.choice([0, 0.4])
            codes_KN = rng.integers(0, CODEBOOK_SIZE, (NUM_CODEBOOKS, len(is_forced_N)))
            request = GenerationRequest(
                prompt=build_prompt(
                    int(rng.integers(3, 9)), seed=seed, num_images=seed % 2 * (layout != "bare"), layout=layout
                ),
                unconditional=build_prompt(3, seed=50 + seed),
                mode="image",
                grid=grid,
                seed=seed,
                image=SamplingConfig(guidance=float(rng.choice([1.0, 2.5])), **settings),
                forced_codes=ForcedCodes(codes_KN, is_forced_N),
            )
            expected = draw_plainly(model, request)
            for window in (None, 1, 2, 5):
                result = Engine(model).generate([replace(request, window=window)])[0]
                assert result.images[0].codes_KN.T.tolist() == expected, (fields, seed, window)
            text = replace(
                request, mode="text", forced_codes=None, grid=None, max_new_tokens=12, text=SamplingConfig(**settings)
            )
            expected_ids = write_plainly(model, text)
            for window, guess in ((None, expected_ids), (1, []), (7, [*expected_ids[:4], 9, *expected_ids[5:]])):
                result = Engine(model).generate([replace(text, window=window, expected_text=tuple(guess))])[0]
                assert result.token_ids == expected_ids, (fields, seed, window)


def test_results_equal_those_of_a_plain_loop() -> None:
    equal_to_a_plain_loop(range(3))


@pytest.mark.slow
def test_results_equal_those_of_a_plain_loop_for_many_seeds() -> None:
    equal_to_a_plain_loop(range(3, 203))


def any_request(rng: random.Random, *, layout: str) -> GenerationRequest:
    """Of any mode, with a prompt that others share."""
    number, mode = rng.randrange(4), rng.choice(["image", "text", "interleaved"])
    filters: dict[str, Any] = rng.choice([{}, {"top_k": 7, "top_p": 0.9}, {"greedy": True}])
    temperature = rng.choice([0.2, 0.7, (0.5, 1.0, 2.0)])
    num_images = number % 2 * (layout == "fixed")
    return ask(
        6 + 5 * number,
        prompt=build_prompt(6 + 5 * number, seed=number, num_images=num_images),
        seed=rng.randrange(100),
        mode=mode,
        grid=(rng.randint(1, 3), rng.randint(1, 4)) if layout == "grid" else None,
        unconditional=build_prompt(3 + 8 * (number % 2), seed=50),
        image=SamplingConfig(guidance=rng.choice([1.0, 2.0]), temperature=temperature, **filters),
        plan=SamplingConfig(temperature=0.5),
        text=SamplingConfig(temperature=rng.choice([0.3, 1.0]), **filters),
        max_new_tokens=rng.randint(15, 45) if mode != "image" else None,
        window=rng.choice([None, None, 1, 3]),
    )


def any_interleaving(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        layout, head_type = ("fixed", "grid")[seed % 2], ("depth_transformer", "mlp")[seed // 2 % 2]
        model = build_model(layout=layout, head_type=head_type, begin_plan_id=PLAN_ID)
        monkeypatch.setattr(mllm.engine.loop, "PASS_PLACES", rng.choice([1, 10, 80]))
        monkeypatch.setattr(mllm.engine.loop, "PREFILL_PLACES", rng.choice([1, 64]))
        monkeypatch.setattr(mllm.engine.loop, "CAPACITY_STEP", rng.choice([3, 128]))
        # passes of static sizes, as they are compiled
        monkeypatch.setattr(StaticStep, "compile", lambda self: self.step)
        engine = Engine(model, num_slots=rng.randint(2, 7), compile=seed // 4 % 2 == 1)
        if engine.static is None and seed % 4 == 3:  # passes that are padded, with prompts apart
            engine.forward.run_backbone = AnyBackbone(model.backbone)
        requests = [any_request(rng, layout=layout) for _ in range(rng.randint(3, 9))]
        coming, submitted, cancelled = list(range(len(requests))), {}, set()
        results: dict[int, GenerationResult] = {}
        with liking(model, {PLAN_ID: 5.0, 3: 5.0}):
            while coming or engine.has_work:
                while coming and (rng.random() < 0.3 or not engine.has_work):
                    n = coming.pop(0)
                    submitted[engine.submit(requests[n])] = n
                if submitted and rng.random() < 0.03:
                    number = rng.choice(list(submitted))
                    engine.cancel(number)
                    cancelled.add(number)
                for event in engine.step():
                    assert event.index not in cancelled, "nothing comes of a request that was cancelled"
                    if isinstance(event, Done):
                        results[submitted[event.index]] = event.result
            assert len(results) + len(cancelled - set(results)) >= len(requests) - len(cancelled)
            for n, result in results.items():
                alone = Engine(model).generate([replace(requests[n], window=1)])[0]
                assert outcome(result) == outcome(alone), (seed, n)


def test_any_interleaving_gives_each_request_what_it_gets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    any_interleaving(range(8), monkeypatch)


@pytest.mark.slow
def test_many_interleavings_give_each_request_what_it_gets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    any_interleaving(range(8, 60), monkeypatch)


def test_threads_share_the_passes_and_each_gets_what_it_gets_alone() -> None:
    """A stream that is dropped and requests that fail concern nobody else."""

    def refuse(ids_1T: Tensor, logits_1V: Tensor) -> Tensor:
        raise RuntimeError("enough")

    rng, model = random.Random(1), build_model(begin_plan_id=PLAN_ID)
    requests = [any_request(rng, layout="fixed") for _ in range(12)]
    engine, alone = Engine(model, num_slots=6), Engine(model, num_slots=2)
    failing = ask(4, mode="text", logits_processors=(refuse,))
    prompt = build_prompt(8, seed=0)
    unknown = ask(prompt=replace(prompt, token_ids_T=prompt.token_ids_T + 1000))  # no such words
    start = Barrier(6)

    def answer(first: int) -> list[GenerationResult]:
        start.wait()
        found = []
        for request in requests[first::4]:
            with closing(engine.stream([ask(5, seed=first), request])) as dropped:
                next(dropped)
            found += engine.generate([request])
        return found

    def fail(request: GenerationRequest, error: type[Exception]) -> None:
        start.wait()
        for _ in range(3):
            with pytest.raises(error):
                engine.generate([request])

    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(answer, first) for first in range(4)]
        failures = [threads.submit(fail, failing, RuntimeError), threads.submit(fail, unknown, IndexError)]
        for first, each in enumerate(answers):
            expected = alone.generate(requests[first::4])
            assert list(map(outcome, each.result())) == list(map(outcome, expected)), first
        for each in failures:
            each.result()
    assert not engine.has_work and not engine.inbox and not any(slot.running for slot in engine.slots)
    assert engine.turn < alone.turn, "they share passes"


@pytest.mark.slow
def test_the_bundled_model_draws_the_same_with_and_without_guesses() -> None:
    """Codes and plans, one at a time and together."""
    pipeline = Pipeline.load(device="cpu", dtype="float32")
    run = pipeline.run
    prompts = [
        "a red circle",
        "a large blue square below a small green star on a black background",
        "three yellow hearts",
    ]
    requests = []
    for seed in range(24):
        chat = from_chat([{"role": "user", "content": prompts[seed % 3]}])
        requests.append(pipeline.build_request(chat, "image", task="draw", overrides={"seed": seed, "resamples": 0}))
    plain = [outcome(run([replace(request, window=1)])[0]) for request in requests]
    assert [outcome(result) for result in run(requests)] == plain
    assert [outcome(run([request])[0]) for request in requests] == plain
