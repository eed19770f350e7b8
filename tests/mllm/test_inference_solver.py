"""The solver: its three jobs in the published call shape, its rules of `<|image|>`, its errors, and known pitfalls.

Kinds, shapes, sizes and determinism are tested here; whether the bundled model is right is for the evaluation.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.conversation import CodesPart, ImagePart, Message, TextPart, UnconditionalPart
from mllm.inference_solver import (
    FlexARInferenceSolver,
    SamplingPlan,
    SolverAnswer,
    SolverRequest,
    build_messages,
    build_row,
    understand,
)
from tests.mllm.tiny_folder import build_tiny_folder

DRAW = "Generate an image of 32x32 according to the following prompt:\na red circle on a white background"
DESCRIBE = "Describe the image in detail. <|image|>"
DEPTH = "Depth estimation. <|image|>"


def picture(seed: int = 3, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def bundled() -> FlexARInferenceSolver:
    return FlexARInferenceSolver(None, "fp32", 256, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = ["draw", "ask", "describe", "edit", "depth", "chat"]
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), tasks=tasks, context=200)


@pytest.fixture(scope="module")
def solver(folder: Path) -> FlexARInferenceSolver:
    return FlexARInferenceSolver(model_path=folder, precision="fp32", target_size=32, device="cpu")


# ---- the three jobs, as published ----


def test_the_bundled_model_draws(bundled: FlexARInferenceSolver) -> None:
    qas = [
        ["Generate an image of 256x256 according to the following prompt:\na red circle on a white background", None]
    ]
    plan = bundled.create_logits_processor(cfg=4.0, image_top_k=2000)
    answer = bundled.generate(images=[], qas=qas, max_gen_len=8192, temperature=1.0, logits_processor=plan, seed=1)
    text, images = answer
    assert text == "<|image|>" and [image.size for image in images] == [(256, 256)]
    assert isinstance(answer, tuple) and len(answer) == 2
    assert answer.finish_reason == "image" and not answer.truncated and answer.seed == 1
    drawn = bundled.pipeline.draw(
        "a red circle on a white background", seed=1, guidance=4.0, top_k=2000, temperature=1.0
    )
    assert images[0].tobytes() == drawn[0].tobytes(), "the same words, the same seed, the same picture"


def test_the_bundled_model_describes(bundled: FlexARInferenceSolver) -> None:
    plan = bundled.create_logits_processor(cfg=4.0, image_top_k=2000)
    text, images = bundled.generate([picture(side=256)], [[DESCRIBE, None]], 64, 1.0, plan)
    assert isinstance(text, str) and "<|image|>" not in text and images == []


def test_the_bundled_model_estimates_depth(bundled: FlexARInferenceSolver) -> None:
    plan = bundled.create_logits_processor(cfg=1.0, image_top_k=200)
    calls = [bundled.generate([picture(side=256)], [[DEPTH, None]], 8192, 1.0, plan, seed=4) for _ in range(2)]
    assert [image.size for image in calls[0].images] == [(256, 256)] and calls[0].text == "<|image|>"
    assert calls[0].images[0].tobytes() == calls[1].images[0].tobytes()


@pytest.mark.parametrize("size", ["768x768", "128x64", "512x512"])
def test_another_size_is_refused_not_changed(bundled: FlexARInferenceSolver, size: str) -> None:
    words = f"Generate an image of {size} according to the following prompt:\na red circle"
    with pytest.raises(ValueError, match=f"no pictures of {size}; use 256x256"):
        bundled.generate([], [[words, None]], 8192, 1.0)


# ---- the constructor ----


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_precision_is_that_of_the_language_model(folder: Path, precision: str) -> None:
    solver = FlexARInferenceSolver(folder, precision, 32, device="cpu")
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    assert solver.pipeline.model.dtype == expected and solver.target_size == 32
    assert solver.generate([], [[DRAW, None]], None, 1.0).images[0].size == (32, 32)


def test_the_constructor_says_what_it_does_not_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown precision: found 'tf32'; use one of bf16, fp16, fp32"):
        FlexARInferenceSolver(folder, "tf32", 32)
    with pytest.raises(ValueError, match="no pictures of 768x768; use target_size 32"):
        FlexARInferenceSolver(folder, "fp32", 768, device="cpu")
    monkeypatch.chdir(folder.parent)  # everything is found inside the folder, whatever the working directory
    assert FlexARInferenceSolver(folder, "fp32", device="cpu").target_size == 32


# ---- placeholders ----


def shape(messages: list[Message]) -> list[str]:
    """Each message as words, with # for a picture."""
    return [f"{m.role[0]}:" + "|".join(p.text if isinstance(p, TextPart) else "#" for p in m.parts) for m in messages]


@pytest.mark.parametrize(
    ("num_images", "qas", "expected"),
    [
        (0, [["hi", None]], ["u:hi"]),
        (1, [["hi", None]], ["u:#|hi"]),
        (2, [["hi", "yes"], ["so?", None]], ["u:#|#|hi", "a:yes", "u:so?"]),
        (1, [["What? <|image|>", None]], ["u:#|What?"]),
        (1, [["As in <|image|> do it", None]], ["u:As in|#|do it"]),
        (2, [["<|image|><|image|> equal?", None]], ["u:#|#|equal?"]),
        (1, [["Draw.", "Here: <|image|>"], ["Thanks.", None]], ["u:Draw.", "a:Here:|#", "u:Thanks."]),
        (2, [["A <|image|>", "no <|image|>"], ["why?", None]], ["u:#|A", "a:no|#", "u:why?"]),
        (0, [["say \\<|image|> please", None]], ["u:say <|image|> please"]),
    ],
)
def test_placeholders_are_filled_in_reading_order(num_images: int, qas: list, expected: list[str]) -> None:
    images = [picture(seed) for seed in range(num_images)]
    messages = build_messages(images, qas)
    assert shape(messages) == expected
    parts = [part for message in messages for part in message.parts if isinstance(part, ImagePart)]
    assert [part.image for part in parts] == images


@pytest.mark.parametrize(
    ("num_images", "qas", "message"),
    [
        (1, [["<|image|> <|image|>", None]], r"found 2 of <\|image\|> \(per question and answer: 2\) and 1 images"),
        (2, [["a <|image|>", "b"], ["c", None]], r"found 1 of <\|image\|> \(per question and answer: 1, 0, 0\) and 2"),
        (0, [["a <|image|>", None]], "found 1 of .* and 0 images; use one per image, or .* for the text"),
        (0, [["a", None], ["b", None]], "only the last answer is open: found no answer in turn 1 of 2"),
        (0, [["a", "b"]], "only the last answer is open: found a finished answer in turn 1 of 1"),
        (0, [], "qas is no dialogue: found"),
        (0, "a", "qas is no dialogue: found 'a'"),
        (0, [["a"]], "turn 1 is no question with its answer"),
        (0, ["ab"], "turn 1 is no question with its answer"),
        (0, [[None, None]], "turn 1 is no question with its answer"),
    ],
)
def test_wrong_placeholders_and_turns_are_value_errors(num_images: int, qas: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_messages([picture()] * num_images, qas)


def test_images_come_in_any_form(solver: FlexARInferenceSolver, tmp_path: Path) -> None:
    image, data = picture(), io.BytesIO()
    image.save(tmp_path / "a.png")
    image.save(data, "PNG")
    pixels_3HW = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    codes = solver.pipeline.processor.encode_images([image])[0]
    forms = [image, tmp_path / "a.png", str(tmp_path / "a.png"), data.getvalue(), pixels_3HW, pixels_3HW / 255, codes]
    answers = [solver.generate(form, [[DEPTH, None]], None, 1.0, seed=1) for form in forms]
    assert len({answer.images[0].tobytes() for answer in answers}) == 1
    assert solver.generate(None, [[DRAW, None]], None, 1.0, seed=1).images
    for wrong, message in (
        (3, "an image is in no known form: found int"),
        (b"no", "2 bytes in no known format"),
        (torch.zeros(32, 32, 3), r"wrong shape: found \(32, 32, 3\)"),
        ([None], "an image is in no known form: found NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            solver.generate(wrong, [[DEPTH, None]], None, 1.0)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        solver.generate("nowhere.png", [[DEPTH, None]], None, 1.0)


def test_a_picture_changes_the_answer_and_is_never_cropped_at_random(solver: FlexARInferenceSolver) -> None:
    wide = picture(side=48).resize((90, 40))
    answers = [solver.generate([image], [[DEPTH, None]], None, 1.0, seed=1) for image in (wide, wide, picture(9))]
    assert answers[0].tokens == answers[1].tokens
    assert (answers[0].codes[0].codes_KN == answers[1].codes[0].codes_KN).all()
    assert not (answers[0].codes[0].codes_KN == answers[2].codes[0].codes_KN).all()


# ---- dialogues ----


def test_an_answer_goes_back_into_the_dialogue_without_loss(solver: FlexARInferenceSolver) -> None:
    first = solver.generate([], [[DRAW, None]], None, 1.0, seed=1)
    qas = [[DRAW, first.text], ["Describe the image in detail.", None]]
    second = solver.generate(first.codes, qas, 20, 1.0, seed=1, generation_mode="text")
    assert isinstance(second.text, str) and second.images == []
    request = SolverRequest(images=first.codes, qas=qas, max_gen_len=20, temperature=1.0, generation_mode="text")
    codes_PK = build_row(solver.pipeline, request).prompt.codes_PK
    assert (codes_PK == first.codes[0].codes_KN.T).all(), "the very codes, not a second encoding"


def test_a_mixed_answer_has_a_placeholder_where_its_picture_stands(
    solver: FlexARInferenceSolver, begins_images: None
) -> None:
    answer = solver.generate([], [["Tell me a story.", None]], 30, 1.0, seed=1)
    assert answer.text.count("<|image|>") == len(answer.images) == len(answer.codes) >= 1
    assert answer.truncated == (answer.finish_reason == "length")


@pytest.fixture
def begins_images(solver: FlexARInferenceSolver) -> Iterator[None]:
    """The model wants to draw all the time."""

    def push(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        pushed = logits.clone()
        pushed[..., solver.pipeline.config.begin_image_id] += 8.0
        return pushed

    handle = solver.pipeline.model.lm_head.register_forward_hook(push)
    yield
    handle.remove()


def test_no_image_is_lost_to_the_budget(solver: FlexARInferenceSolver, begins_images: None) -> None:
    for budget in range(1, 16):  # an image takes 6: upstream drops a cut one silently, or never returns
        answer = solver.generate([], [["Tell me a story.", None]], budget, 1.0, seed=1)
        assert len(answer.tokens) <= budget
        assert answer.tokens.count(solver.pipeline.config.begin_image_id) == len(answer.images)
        assert answer.truncated, "the model wanted more"
    with pytest.raises(ValueError, match="no room for the image: it takes 6 tokens, found 5 left"):
        solver.generate([], [[DRAW, None]], 5, 1.0)


# ---- sampling ----


def test_a_plan_serves_any_number_of_calls_and_threads(solver: FlexARInferenceSolver) -> None:
    plan = solver.create_logits_processor(3.0, 5, 4)
    assert plan == SamplingPlan(cfg=3.0, image_top_k=5, text_top_k=4)
    expected = {seed: solver.generate([], [[DRAW, None]], None, 1.0, plan, seed=seed).codes[0] for seed in (1, 2)}
    given: dict[int, CodesPart] = {}

    def draw(seed: int) -> None:
        given[seed] = solver.generate([], [[DRAW, None]], None, 1.0, plan, seed=seed).codes[0]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((given[seed].codes_KN == expected[seed].codes_KN).all() for seed in (1, 2))
    with pytest.raises(AttributeError):
        plan.cfg = 4.0


def settings_of(solver: FlexARInferenceSolver, question: str, plan: Any, **fields: Any) -> Any:
    images = [picture()] if "<|image|>" in question else []
    request = SolverRequest(
        images=images, qas=[[question, None]], max_gen_len=None, temperature=0.8, logits_processor=plan, **fields
    )
    return build_row(solver.pipeline, request)


def test_top_k_zero_is_off_and_never_greedy(solver: FlexARInferenceSolver) -> None:
    for off in (0, None):
        row = settings_of(solver, DRAW, SamplingPlan(image_top_k=off, text_top_k=off))
        assert row.image.top_k is None and row.text.top_k is None and not row.image.greedy
    one = [
        solver.generate([], [[DRAW, None]], None, 1.0, SamplingPlan(cfg=1.0, image_top_k=1), seed=seed).codes[0]
        for seed in (1, 2)
    ]
    assert (one[0].codes_KN == one[1].codes_KN).all()
    many = [
        solver.generate([], [[DRAW, None]], None, 1.0, SamplingPlan(cfg=1.0, image_top_k=k), seed=1).codes[0]
        for k in (0, 17, 2000)
    ]
    assert (many[0].codes_KN == many[1].codes_KN).all() and (many[0].codes_KN == many[2].codes_KN).all()


def test_settings_reach_what_they_are_for(solver: FlexARInferenceSolver) -> None:
    row = settings_of(solver, DRAW, SamplingPlan(cfg=4.0, image_top_k=200, text_top_k=7, image_temperature=0.5))
    assert (row.image.guidance, row.image.top_k, row.image.temperature) == (4.0, 200, 0.5)
    assert (row.text.top_k, row.text.temperature) == (7, 0.8)
    row = settings_of(solver, DRAW, None)
    assert (row.image.guidance, row.image.temperature) == (2.0, 0.8), "without a plan the checkpoint's guidance"
    row = settings_of(solver, DESCRIBE, SamplingPlan(cfg=9.0))
    assert not row.is_guided and row.mode == "text", "guidance means nothing to a description"
    assert settings_of(solver, DEPTH, SamplingPlan(image_top_k=200.0)).image.top_k == 200, "sliders send floats"


def test_guidance_leaves_out_the_words_or_everything(solver: FlexARInferenceSolver) -> None:
    words = settings_of(solver, DEPTH, SamplingPlan(cfg=2.0))
    everything = settings_of(solver, DEPTH, SamplingPlan(cfg=2.0, uncond="all"))
    assert len(words.unconditional.image_lengths_I) == 1 and len(everything.unconditional.image_lengths_I) == 0
    expected = solver.pipeline.processor.build(
        [Message("user", (UnconditionalPart(),))], add_generation_prompt=True, answer="image"
    )
    assert everything.unconditional.token_ids_T.tolist() == expected.token_ids_T.tolist()
    assert settings_of(solver, DEPTH, SamplingPlan(cfg=1.0, uncond="all")).unconditional is None


def test_guidance_one_computes_one_branch(solver: FlexARInferenceSolver) -> None:
    rows: list[int] = []
    hook = solver.pipeline.model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    try:
        solver.generate([picture()], [[DEPTH, None]], None, 1.0, SamplingPlan(cfg=1.0))
        one, rows[:] = set(rows), []
        solver.generate([picture()], [[DEPTH, None]], None, 1.0, SamplingPlan(cfg=1.5))
    finally:
        hook.remove()
    assert one == {1} and set(rows) == {2}


def test_plain_logits_processors_act_on_text_only_and_are_never_dropped(solver: FlexARInferenceSolver) -> None:
    seen: list[int] = []

    def only_nine(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([9]), 0.0)

    plan = solver.create_logits_processor(cfg=1.0)
    answer = solver.generate([picture()], [[DESCRIBE, None]], 3, 1.0, [plan, only_nine])
    assert answer.tokens == [9, 9, 9] and answer.truncated and len(seen) == 3
    solver.generate([], [[DRAW, None]], None, 1.0, only_nine)
    assert len(seen) == 3, "a picture has no text"


def test_seeds_settle_the_answer_and_torch_s_state_stands_in(solver: FlexARInferenceSolver) -> None:
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(solver.generate([], [[DRAW, None]], None, 1.0))
    assert drawn[0].seed == drawn[1].seed != drawn[2].seed
    assert drawn[0].images[0].tobytes() == drawn[1].images[0].tobytes()
    three = solver.generate([], [[DRAW, None]], None, 1.0, seed=7, n=3)
    assert [answer.seed for answer in three] == [7, 8, 9] and all(isinstance(a, SolverAnswer) for a in three)
    alone = solver.generate([], [[DRAW, None]], None, 1.0, seed=8)
    assert three[1].images[0].tobytes() == alone.images[0].tobytes()


def test_a_streamer_gets_text_and_the_progress_of_images(
    solver: FlexARInferenceSolver, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = solver.generate([picture()], [[DESCRIBE, None]], 12, 1.0, None, solver.get_streamer(), seed=2)
    assert capsys.readouterr().out.strip() == answer.text

    class Counter:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen.append("put")

        def end(self) -> None:
            self.seen.append("end")

        def on_image_progress(self, done: int, total: int) -> None:
            self.seen.append((done, total))

    counter = Counter()
    solver.generate([], [[DRAW, None]], None, 1.0, streamer=counter)
    assert counter.seen == ["put", (1, 4), (2, 4), (3, 4), (4, 4), "end"]


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.generate([], [[DRAW, None]], 99, 0.0), "temperature has no meaning: found 0.0; .* image_top_k=1"),
        (lambda s: s.generate([], [[DRAW, None]], 0, 1.0), "max_new_tokens leaves no room: found 0"),
        (lambda s: s.generate([], [[DRAW, None]], 99, 1.0, n=0), "n is no number of answers: found 0"),
        (lambda s: s.generate([], [[DRAW, None]], 99, 1.0, "cfg"), "logits_processor holds what is none: found str"),
        (lambda s: s.generate([], [[DRAW, None]], 99, 1.0, size=(64, 64)), "two sizes are asked for: found 32x32"),
        (lambda s: s.generate([], [["a cat", None]], 99, 1.0, generation_mode="sound"), "unknown generation mode"),
        (lambda s: s.generate([], [[" ", None]], 99, 1.0), "the message is empty"),
        (lambda s: s.generate([picture()], [["Human pose estimation. <|image|>", None]], 99, 1.0), "cannot pose"),
        (lambda s: s.generate([picture()], [["Detect: cat <|image|>", None]], 99, 1.0), "cannot detect"),
        (lambda s: s.create_logits_processor(image_top_k=-1), "image_top_k is no number of choices: found -1"),
        (lambda s: s.create_logits_processor(text_top_k=2.5), "text_top_k is no number of choices: found 2.5"),
        (lambda s: s.create_logits_processor(cfg=0.0), "guidance has no meaning: found 0.0"),
        (lambda s: s.create_logits_processor(image_top_p=0.0), "top_p has no meaning"),
        (lambda s: s.create_logits_processor(uncond="none"), "unknown uncond: found 'none'"),
        (lambda s: s.create_image_grid([], 1, 1), "the grid does not hold the images: found 0"),
    ],
)
def test_wrong_calls_get_one_clear_sentence(solver: FlexARInferenceSolver, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(solver)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (DRAW, "image", "a red circle on a white background"),
        ("Generate an image of 32x32 according to the following prompt:\na\nb", "image", "a\nb"),
        (DESCRIBE, "text", None),
        ("<|image|> Depth estimation.", "image", None),
        ("Segmentic segmentation. <|image|>", "image", "Semantic segmentation."),
        ("Depth estimation.", "interleaved", None),
        ("Make it green. <|image|>", "interleaved", None),
        ("Tell me about depth estimation. <|image|>", "interleaved", None),
    ],
)
def test_published_sentences_say_what_is_asked_for(text: str, mode: str, words: str | None) -> None:
    question = understand(text, None)
    assert (question.mode, question.words) == (mode, words)


def test_a_mode_goes_before_what_the_words_suggest(solver: FlexARInferenceSolver) -> None:
    edited = solver.generate([picture()], [["Make it green. <|image|>", None]], None, 1.0, generation_mode="image")
    assert [image.size for image in edited.images] == [(32, 32)]
    asked = solver.generate([picture()], [["Make it green. <|image|>", None]], 9, 1.0, generation_mode="text")
    assert asked.images == []
    assert solver.decode_image(edited.codes[0]).tobytes() == edited.images[0].tobytes()
    assert solver.create_image_grid(edited.images * 3, 2, 2).size == (64, 64)
