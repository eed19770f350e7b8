"""The solver: its three jobs in the published call shape, its rules of `<|image|>`, its errors, and known pitfalls.

Kinds, shapes, sizes and determinism are tested here; whether the bundled model is right is for the evaluation.
"""

from pathlib import Path
from typing import Any
from unittest.mock import ANY, Mock, call

import numpy as np
import pytest
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from mllm.conversation import ImagePart, TextPart
from mllm.inference_solver import FlexARInferenceSolver, SolverSampling, build_messages, understand
from tests.mllm.engine_helpers import liking
from tests.mllm.tiny_folder import build_tiny_folder, random_image

DRAW = "Generate an image of 32x32 according to the following prompt:\na red circle on a white background"
DESCRIBE = "Describe the image in detail. <|image|>"
DEPTH = "Depth estimation. <|image|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = ["draw", "ask", "describe", "edit", "depth", "chat"]
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), tasks=tasks, context=200)


@pytest.fixture(scope="module")
def solver(folder: Path) -> FlexARInferenceSolver:
    return FlexARInferenceSolver(model_path=folder, precision="fp32", target_size=32, device="cpu")


def test_the_three_jobs_as_published(solver: FlexARInferenceSolver) -> None:
    sampling = solver.create_logits_processor(cfg=4.0, image_top_k=2000)
    answer = solver.generate([], [[DRAW, None]], 8192, 1.0, sampling, seed=1)
    text, images = answer
    assert isinstance(answer, tuple) and text == "<|image|>" and answer.finish_reason == "image"
    assert not answer.truncated and answer.seed == 1 and answer.seconds > 0
    drawn = solver.pipeline.draw("a red circle on a white background", seed=1, guidance=4.0, temperature=1.0)
    assert images[0].tobytes() == drawn[0].tobytes(), "the same prompt, the same seed, the same image"
    assert solver.decode_image(answer.codes[0]).tobytes() == images[0].tobytes()
    qas = [[DRAW, text], ["Describe the image in detail.", None]]
    request = solver.build_request(answer.codes, qas, 20, 1.0, seed=1, generation_mode="text")
    assert (request.prompt.codes_PK == answer.codes[0].codes_KN.T).all(), "the very codes, not a second encoding"
    text, images = solver.generate([random_image()], [[DESCRIBE, None]], 64, 1.0, sampling)
    assert isinstance(text, str) and "<|image|>" not in text and images == []
    many = solver.generate([random_image()], [[DEPTH, None]], None, 1.0, seed=4, n=2)
    assert [answer.seed for answer in many] == [4, 5] and many[0].images[0].size == (32, 32)
    assert solver.create_image_grid([*many[0].images, *many[1].images, *drawn], 2, 2).size == (64, 64)


def test_placeholders_are_filled_in_reading_order() -> None:
    for num_images, qas, expected in (
        (0, [["hi", None]], ["u:hi"]),
        (2, [["hi", "yes"], ["so?", None]], ["u:#|#|hi", "a:yes", "u:so?"]),
        (1, [["As in <|image|> do it", None]], ["u:As in|#|do it"]),
        (2, [["<|image|><|image|> equal?", None]], ["u:#|#|equal?"]),
        (1, [["Draw.", "Here: <|image|>"], ["Thanks.", None]], ["u:Draw.", "a:Here:|#", "u:Thanks."]),
        (2, [["A <|image|>", "no <|image|>"], ["why?", None]], ["u:#|A", "a:no|#", "u:why?"]),
        (0, [["say \\<|image|> please", None]], ["u:say <|image|> please"]),
    ):
        images = [random_image(seed) for seed in range(num_images)]
        messages, placed, found = build_messages(images, qas), [], []
        for message in messages:
            placed += [part.image for part in message.parts if isinstance(part, ImagePart)]
            shown = [part.text if isinstance(part, TextPart) else "#" for part in message.parts]
            found.append(f"{message.role[0]}:" + "|".join(shown))
        assert found == expected and placed == images


def test_no_image_is_lost_to_the_budget(solver: FlexARInferenceSolver) -> None:
    config = solver.pipeline.config
    with liking(solver.pipeline.model, {config.begin_image_id: 8.0}):
        for budget in (1, 7, 13, 25):  # an image takes 6: upstream drops a cut one silently, or never returns
            answer = solver.generate([], [["Tell me a story.", None]], budget, 1.0, seed=1)
            assert len(answer.tokens) <= budget and (answer.truncated or budget >= 16), "the model wanted more"
            assert answer.tokens.count(config.begin_image_id) == len(answer.images)
            assert answer.text.count("<|image|>") == len(answer.images) == len(answer.codes)
        assert answer.images


def test_settings_reach_what_they_are_for(solver: FlexARInferenceSolver) -> None:
    def build(question: str, sampling: SolverSampling) -> Any:
        images = [random_image()] if "<|image|>" in question else []
        return solver.build_request(images, [[question, None]], None, 0.8, [sampling], seed=0)

    request = build(DRAW, SolverSampling(cfg=4.0, image_top_k=200.0, text_top_k=7, image_temperature=0.5))
    assert (request.image.guidance, request.image.top_k, request.image.temperature) == (4.0, 200, 0.5)
    assert (request.text.top_k, request.text.temperature) == (7, 0.8)
    assert not build(DESCRIBE, SolverSampling(cfg=9.0)).is_guided, "guidance means nothing to a description"
    for uncond, num_images in (("text", 1), ("all", 0)):
        request = build(DEPTH, SolverSampling(cfg=2.0, uncond=uncond))
        assert len(request.unconditional.image_lengths_I) == num_images
    first = solver.generate([random_image()], [[DESCRIBE, None]], 12, 1.0, SolverSampling(text_top_k=1))
    suppressed = LogitsProcessorList([SuppressTokensLogitsProcessor([first.tokens[0]])])
    second = solver.generate([random_image()], [[DESCRIBE, None]], 12, 1.0, [SolverSampling(text_top_k=1), *suppressed])
    assert first.tokens[0] not in second.tokens


def test_a_streamer_gets_text_and_progress(solver: FlexARInferenceSolver, capsys: pytest.CaptureFixture[str]) -> None:
    answer = solver.generate([random_image()], [[DESCRIBE, None]], 12, 1.0, None, solver.get_streamer(), seed=2)
    assert capsys.readouterr().out.strip() == answer.text

    recorder = Mock()
    solver.generate([], [[DRAW, None]], None, 1.0, streamer=recorder)
    expected = [call.put(ANY), *(call.on_image_progress(done, 4) for done in (1, 2, 3, 4)), call.end()]
    assert recorder.mock_calls == expected


def test_wrong_calls_are_refused(solver: FlexARInferenceSolver, folder: Path) -> None:
    for images, qas in (
        (1, [["<|image|> <|image|>", None]]),
        (2, [["a <|image|>", "b"], ["c", None]]),
        *((0, qas) for qas in ([["a", None], ["b", None]], [["a", "b"]], [["a"]], np.array([["a", "b"]]))),
    ):
        with pytest.raises(ValueError):
            build_messages([random_image()] * images, qas)
    for refused in (
        lambda: solver.generate([None], [[DEPTH, None]], None, 1.0),
        lambda: solver.generate([], [[DRAW, None]], 5, 1.0),
        lambda: solver.generate([], [[DRAW, None]], 99, "warm"),
        lambda: solver.generate([], [[DRAW, None]], 99, 1.0, streamer=solver.get_streamer(), n=2),
        lambda: solver.generate([], [[DRAW.replace("32x32", "64x64"), None]], 99, 1.0),
        lambda: solver.generate([random_image()], [["Detect: cat <|image|>", None]], 99, 1.0),
        lambda: solver.create_logits_processor(text_top_k=2.5),
        lambda: FlexARInferenceSolver(folder, "tf32", 32, device="cpu"),
        lambda: FlexARInferenceSolver(folder, "fp32", 768, device="cpu"),
    ):
        with pytest.raises(ValueError):
            refused()
    for text, mode, replaced in (  # published sentences say what is asked for, and a given mode goes first
        (DRAW, "image", "a red circle on a white background"),
        (DESCRIBE, "text", None),
        ("Segmentic segmentation. <|image|>", "image", "Semantic segmentation."),
        ("Depth estimation.", "interleaved", None),
    ):
        question = understand(text, "auto")
        assert (question.mode, question.text) == (mode, replaced)
    assert understand("Make it green. <|image|>", "image").capabilities == ("edit",)
    assert understand(DRAW, "text").mode == "text"
