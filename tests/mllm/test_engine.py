"""Generation: whatever is guessed and whoever is decoded beside it, a request gets what a plain loop without a cache
gives it; the layout is obeyed, budgets are kept, plans belong to their images, events tell what happens."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from transformers import Gemma3TextConfig, GPT2Config, MistralConfig, PreTrainedConfig, Qwen3Config

import mllm.engine.loop
import mllm.engine.step
from mllm.engine.forward import AnyBackbone, CachedForward
from mllm.engine.loop import Engine
from mllm.engine.rejection import answer_ids
from mllm.engine.request import (
    PLAN_BUDGET,
    Done,
    ForcedCodes,
    GenerationRequest,
    GenerationResult,
    ImageDone,
    ImagePreview,
    ImageProgress,
    TextDelta,
)
from mllm.engine.state_machine import never_text_ids
from mllm.engine.step import StaticStep, StepInputs
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import TEXT, SamplingConfig, choose, gumbel, stack_settings
from mllm.sequence import ImageLayout, TokenSequence
from tests.mllm.engine_helpers import (
    BACKBONE,
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


# ---- a plain loop ----


def pick(logits_C: Tensor, settings: SamplingConfig, *, seed: int, position: int, codebook: int) -> int:
    row, counters = stack_settings([settings], num_choices=len(logits_C)), torch.tensor([seed, position])
    noise_1C = gumbel(counters[:1], counters[1:], codebook, num_choices=len(logits_C))
    return int(choose(logits_C[None], row, noise_1C))


@torch.inference_mode()
def hidden_states(model: MLLMForConditionalGeneration, prompt: TokenSequence, ids: list[int], codes: list) -> Tensor:
    """(T, D) of a prompt and what was added, by one forward."""
    added_NK = torch.tensor(codes, dtype=torch.int64).view(-1, NUM_CODEBOOKS)
    alone = model.config.embedding_context == "current"  # each new position for itself
    lengths = [*prompt.image_lengths_I.tolist(), *([1] * len(codes) if alone else [len(codes)] * bool(codes))]
    codes_PK = torch.cat([torch.from_numpy(prompt.codes_PK), added_NK]) if lengths else None
    ids_1T = torch.tensor([[*prompt.token_ids_T.tolist(), *ids]])
    return model(ids_1T, codes=codes_PK, image_lengths=torch.tensor(lengths)).hidden[0]


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
    layout = ImageLayout.from_config(model.config)
    forbidden, ids = [*never_text_ids(layout, model.config), *layout.opening_ids], []
    while len(ids) < request.max_new_tokens and (not ids or ids[-1] != model.config.eos_token_id):
        logits_V = model.text_logits(hidden_states(model, request.prompt, ids, [])[-1])
        logits_V[forbidden] = -torch.inf
        ids.append(pick(logits_V, request.text, seed=request.seed, position=len(ids), codebook=TEXT))
    return ids


MODELS = [
    {"layout": layout, "head_type": head, "embedding_context": context, "image_position_embedding": has_positions}
    for head, (layout, context, has_positions) in product(
        ("depth_transformer", "mlp"),
        [("fixed", "prefix", True), ("fixed", "current", False), ("grid", "prefix", True), ("bare", "prefix", False)],
    )
]
MODELS += [
    {"layout": "fixed", "head_shared_output": False, "head_num_heads": 3, "head_intermediate_size": 31},
    {"layout": "bare", "code_embedder": "summed", "image_position_embedding": True},
    {"layout": "fixed", "image_source_embedding": True},
    {"layout": "fixed", "code_embedder": "summed", "image_source_embedding": True, "head_type": "mlp"},
]


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 200), marks=pytest.mark.slow)], ids=["few", "many"])
def test_results_equal_those_of_a_plain_loop(seeds: range) -> None:
    for (number, fields), seed in product(enumerate(MODELS), seeds):
        model, layout = build_model(**fields), fields["layout"]
        for part in filter(None, (model.code_embedding.places, model.code_embedding.source)):
            for table in part.parameters(recurse=False):
                torch.nn.init.normal_(table)
        rng = np.random.default_rng([seed, number])
        settings = {"temperature": float(rng.choice([0.15, 0.5, 1.0])), "top_p": float(rng.choice([0.8, 1.0]))}
        grid = (int(rng.integers(1, 4)), int(rng.integers(1, 5))) if layout == "grid" else (3, 3)
        is_forced_N = rng.random(grid[0] * grid[1]) < rng.choice([0, 0.4])
        codes_KN = rng.integers(0, CODEBOOK_SIZE, (NUM_CODEBOOKS, len(is_forced_N)))
        num_tokens, num_images = int(rng.integers(3, 9)), seed % 2 * (layout != "bare")
        request = GenerationRequest(
            prompt=build_prompt(num_tokens, seed=seed, num_images=num_images, layout=layout),
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
        given = {"mode": "text", "forced_codes": None, "grid": None, "max_new_tokens": 12}
        text = replace(request, text=SamplingConfig(**settings), **given)
        expected_ids = write_plainly(model, text)
        for window, guess in ((None, expected_ids), (1, []), (7, [*expected_ids[:4], 9, *expected_ids[5:]])):
            result = Engine(model).generate([replace(text, window=window, expected_text=tuple(guess))])[0]
            assert result.token_ids == expected_ids, (fields, seed, window)


# ---- company ----


def any_request(rng: random.Random, *, layout: str) -> GenerationRequest:
    """Of any mode, with a prompt that others share."""
    number, mode = rng.randrange(4), rng.choice(["image", "text", "interleaved"])
    filters: dict[str, Any] = rng.choice([{}, {"top_k": 7, "top_p": 0.9}, {"greedy": True}])
    temperature = rng.choice([0.2, 0.7, (0.5, 1.0, 2.0)])
    num_images = number % 2 * (layout == "fixed")
    return ask(
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


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 48), marks=pytest.mark.slow)], ids=["few", "many"])
def test_any_interleaving_gives_each_request_what_it_gets_alone(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    # passes of static sizes, as they are compiled
    monkeypatch.setattr(StaticStep, "compile", lambda self: self.step)
    monkeypatch.setattr(mllm.engine.step, "MOST_PREPARED", 2)
    for seed in seeds:
        rng = random.Random(seed)
        layout, head_type = ("fixed", "grid")[seed % 2], ("depth_transformer", "mlp")[seed // 2 % 2]
        model = build_model(layout=layout, head_type=head_type, begin_plan_id=PLAN_ID)
        monkeypatch.setattr(mllm.engine.loop, "PASS_POSITIONS", rng.choice([1, 10, 80]))
        monkeypatch.setattr(mllm.engine.loop, "PREFILL_POSITIONS", rng.choice([1, 64]))
        monkeypatch.setattr(mllm.engine.loop, "CAPACITY_STEP", rng.choice([3, 128]))
        engine = Engine(model, num_slots=rng.randint(2, 7), compile=seed // 4 % 2 == 1)
        if engine.static is None and seed % 4 == 3:  # passes that are padded, with prompts apart
            engine.forward.run_backbone = AnyBackbone(model.backbone)
        requests = [any_request(rng, layout=layout) for _ in range(rng.randint(3, 9))]
        coming, submitted, cancelled = list(range(len(requests))), {}, set()
        results: dict[int, GenerationResult] = {}
        with liking(model, {PLAN_ID: 5.0, BEGIN: 5.0}):
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
            assert engine.static is None or len(engine.static.prepared) <= 2
            for n, result in results.items():
                alone = Engine(model).generate([replace(requests[n], window=1)])[0]
                assert outcome(result) == outcome(alone), (seed, n)


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


# ---- passes ----


def record_passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many positions every pass feeds to each row."""
    passes: list[list[int]] = []
    arrange = CachedForward.arrange

    def record(self: CachedForward, lengths: Any, counts: Any, **rest: Any) -> Any:
        passes.append(list(counts))
        return arrange(self, lengths, counts, **rest)

    monkeypatch.setattr(CachedForward, "arrange", record)
    return passes


def test_equal_prompts_are_run_once_and_draw_as_they_do_alone(
    monkeypatch: pytest.MonkeyPatch, model: MLLMForConditionalGeneration
) -> None:
    """Images of one sentence share its prompt, guided requests the unconditional one; images inside a prompt count. A
    prompt is fed in the pass of what is running; an image takes one position of a pass for each of its own, in both
    rows if it is guided."""
    sentence, nothing = build_prompt(8, seed=1), build_prompt(9, seed=2)
    looked_at = build_prompt(5, seed=0, num_images=1)
    others = replace(looked_at, codes_PK=(looked_at.codes_PK + 1) % CODEBOOK_SIZE)
    common = {"unconditional": nothing, "image": SamplingConfig(guidance=2.0), "window": 1}
    prompts = [looked_at, sentence, looked_at, others, sentence]
    requests = [ask(prompt=prompt, seed=n, **common) for n, prompt in enumerate(prompts)]
    alone = [outcome(Engine(model).generate([request])[0]) for request in requests]
    passes, engine = record_passes(monkeypatch), Engine(model)
    assert [outcome(result) for result in engine.generate(requests)] == alone
    different = sum(map(len, (looked_at, sentence, others, nothing)))
    num_steps = 2 * 5 * 9  # what follows begin-of-image, of both rows
    assert sum(map(sum, passes)) == different + num_steps
    passes.clear()
    assert [outcome(result) for result in engine.generate(requests[:1])] == alone[:1]
    assert sum(map(sum, passes)) == 2 * 9, "the slots still hold both prompts"
    passes.clear()
    engine = Engine(model)
    for number in range(2):
        engine.submit(ask(4 + number, seed=number, window=1))
        engine.step()
    assert passes == [[6], [1, 7]]


# ---- steps of static sizes ----


def some_requests() -> list[GenerationRequest]:
    """Guidance, filters, settings per codebook, and an image that has no room."""
    image = SamplingConfig(guidance=2.0, top_k=7, top_p=0.9, temperature=(0.5, 1.0, 2.0))
    return [
        ask(6, seed=1, mode="image", image=image),
        ask(9, seed=2, mode="image", image=SamplingConfig(temperature=0.2)),
        ask(5, seed=3, mode="interleaved", text=SamplingConfig(top_k=9), max_new_tokens=10),
    ]


@pytest.mark.parametrize("head_type", ["depth_transformer", pytest.param("mlp", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_a_step_has_no_graph_break_and_waits_for_nothing(head_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(head_type=head_type, layout="grid")
    seen: list[StepInputs] = []
    monkeypatch.setattr(StaticStep, "compile", lambda self: lambda inputs: seen.append(inputs) or self.step(inputs))
    engine = Engine(model, compile=True)
    engine.generate(some_requests())
    inputs = next(each for each in seen if each.codes and each.codes.guidance and each.text and each.text.asks_wanted)
    step = engine.static.step
    expected = step(inputs)
    compiled = torch.compile(step.__call__, fullgraph=True, dynamic=False, backend="eager")  # traced, not translated
    torch.testing.assert_close(compiled(inputs)._asdict(), expected._asdict())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = step(pytree.tree_map_only(Tensor, mode.from_tensor, inputs))
    assert [output.shape for output in fake] == [output.shape for output in expected]


@pytest.mark.slow
@pytest.mark.parametrize("head_type", ["mlp", "depth_transformer"])
def test_compiled_steps_give_what_ordinary_ones_give(head_type: str) -> None:
    model = build_model(head_type=head_type, layout="grid", begin_plan_id=PLAN_ID)
    with liking(model, {PLAN_ID: 5.0}):
        expected = [outcome(result) for result in Engine(model).generate(some_requests())]
        engine = Engine(model, compile=True)
        assert [outcome(result) for result in engine.generate(some_requests())] == expected
    assert engine.static.prepared


@pytest.mark.parametrize(
    "text_config",
    [
        MistralConfig(**BACKBONE, sliding_window=5),
        Qwen3Config(**BACKBONE, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        pytest.param(Gemma3TextConfig(**BACKBONE, head_dim=8, sliding_window=5), marks=pytest.mark.slow),
        pytest.param(GPT2Config(n_embd=24, n_head=4, n_layer=2, vocab_size=61, n_positions=40), marks=pytest.mark.slow),
    ],
    ids=lambda config: config.model_type,
)
def test_sliding_windows_hold_and_any_backbone_is_compiled(
    text_config: PreTrainedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compiled = build_model(text_config=text_config), torch.compile
    requests = [ask(16, seed=2, image=GREEDY, window=1), ask(4, seed=3, image=GREEDY, window=1)]
    expected = Engine(model).generate(requests)
    assert expected[0].images[0].codes_KN.T.tolist() == draw_plainly(model, requests[0])
    monkeypatch.setattr(torch, "compile", partial(compiled, backend="eager"))
    engine = Engine(model, compile=True)
    assert list(map(outcome, engine.generate(requests))) == list(map(outcome, expected)) and engine.static.prepared


def test_every_size_is_compiled_however_few_versions_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = build_model(), torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiled, backend="eager"))
    engine, request = Engine(model, compile=True), ask(6, mode="text", max_new_tokens=12, text=SamplingConfig(top_k=9))
    expected = outcome(Engine(model).generate([request])[0])
    with torch._dynamo.config.patch(recompile_limit=1):
        for window in (1, 2, 5):
            guessed = replace(request, window=window, expected_text=tuple(expected[0]))
            assert outcome(engine.generate([guessed])[0]) == expected
    assert len(engine.static.prepared) > 2


# ---- text, images and plans ----


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
    grids = [(2 + n % 2, 3) if layout.kind == "grid" else (3, 3) for n in range(8)]
    requests = [ask(4, seed=n, mode="interleaved", max_new_tokens=60, grid=grid) for n, grid in enumerate(grids)]
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


@pytest.mark.parametrize(("layout", "grid", "guidance"), [("fixed", (3, 3), 1.0), ("grid", (2, 3), 2.5)])
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


def test_a_plan_ends_in_time_or_is_left_out_and_has_settings_of_its_own(planner: MLLMForConditionalGeneration) -> None:
    for budget, length in ((None, PLAN_BUDGET), (1 + IMAGE + 5, 5), (1 + IMAGE, 0)):
        with liking(planner, {PLAN_ID: 30.0, BEGIN: -60.0}):
            (result,) = Engine(planner).generate([ask(max_new_tokens=budget)])
        assert len(result.plans[0]) == length and len(result.images) == 1
    with liking(planner, {PLAN_ID: -60.0}):  # a depth map has none: nothing but a plan or the image can come
        (result,) = Engine(planner).generate([ask(1, max_new_tokens=40)])
    assert result.plans == [[]] and result.token_ids[0] == BEGIN
    with liking(planner, {PLAN_ID: 30.0}):
        for settings, num_plans in (({"plan": GREEDY}, 1), ({"text": GREEDY}, 4)):
            requests = [replace(ask(max_new_tokens=40), seed=seed, **settings) for seed in range(4)]
            assert len({tuple(result.plans[0]) for result in Engine(planner).generate(requests)}) == num_plans


def test_a_guess_of_a_plan_saves_passes_and_changes_nothing(planner: MLLMForConditionalGeneration) -> None:
    def decode(guess: list[int]) -> tuple[GenerationResult, int]:
        engine = Engine(planner)
        (result,) = engine.generate([replace(ask(max_new_tokens=60), window=40, expected_text=tuple(guess))])
        return result, engine.turn

    with liking(planner, {PLAN_ID: 30.0, BEGIN: 2.0}):
        plain, num_turns = decode([])
        (plan,) = plain.plans
        assert len(plan) > 3
        # a wrong word, a word more and one less: the guess goes on where the plan agrees with it again
        guesses = [plan, [*plan[:2], 9, *plan[3:]], [*plan[:2], 9, *plan[2:]], [*plan[:2], *plan[3:]], [9] * 50]
        for guess, most in zip(guesses, (0.5, 0.7, 1.0, 1.0, 1.2), strict=True):
            result, turns = decode(guess)
            assert result.token_ids == plain.token_ids
            assert (result.images[0].codes_KN == plain.images[0].codes_KN).all()
            assert turns <= most * num_turns, (turns, num_turns)


# ---- events and errors ----


def test_events_tell_what_happens_in_order(
    model: MLLMForConditionalGeneration, planner: MLLMForConditionalGeneration
) -> None:
    requests, events = [ask(seed=1), ask(5, seed=2, mode="text", max_new_tokens=4)], []
    image_result, text_result = Engine(model).generate(requests, on_event=events.append)
    progress = [(event.index, event.done, event.total) for event in events if isinstance(event, ImageProgress)]
    assert progress == [(0, n, 9) for n in range(1, 10)]
    assert [event.codes for event in events if isinstance(event, ImageDone)] == image_result.images
    assert [event.token_id for event in events if isinstance(event, TextDelta)] == text_result.text_ids
    with liking(planner, {PLAN_ID: 30.0}):
        events = list(Engine(planner).stream([ask(max_new_tokens=40)]))
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert [list(event.plan) for event in events if isinstance(event, ImageDone)] == events[-1].result.plans


def test_previews_hold_what_stands_and_change_nothing(model: MLLMForConditionalGeneration) -> None:
    plain = ask(seed=1)
    expected = Engine(model).generate([plain])[0].images[0].codes_KN
    for every, window, due in ((3, 1, [3, 6]), (4, 1, [4, 8]), (2, None, None)):
        events = list(Engine(model).stream([replace(plain, preview_every=every, window=window)]))
        previews = [event for event in events if isinstance(event, ImagePreview)]
        assert due is None or [event.done for event in previews] == due
        for event in previews:
            assert event.codes.codes_KN.shape == expected.shape
            assert (event.codes.codes_KN[:, : event.done] == expected[:, : event.done]).all()
        assert (events[-1].result.images[0].codes_KN == expected).all()


def test_what_cannot_be_answered_is_refused(model: MLLMForConditionalGeneration) -> None:
    for wrong in (  # in themselves
        {"image": SamplingConfig(guidance=2.0), "unconditional": None},
        {"text": SamplingConfig(guidance=2.0)},
        {"mode": "text", "forced_codes": forced(np.zeros((3, 9)), [1] * 9)},
        {"mode": "text", "given_plan": (7,)},
        *({"mode": "video"}, {"given_plan": (7,) * 65}, {"max_new_tokens": 0}, {"window": 0}, {"preview_every": 0}),
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
    with pytest.raises(ValueError):
        Engine(model, num_slots=1).submit(ask(4, image=SamplingConfig(guidance=2.0)))
    spread = build_model()
    spread.backbone.layers[1]._hf_hook = None  # as accelerate marks modules that it moves between devices
    with pytest.raises(ValueError, match="compile"):
        Engine(spread, compile=True)
