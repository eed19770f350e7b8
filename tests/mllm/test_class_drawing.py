"""Class-conditional drawing in the LlamaGen manner: the sequence, guidance, cached = uncached, the facade, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm import conversation
from mllm.cli.main import main
from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, Message, TextPart, render, unconditional
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.engine.state_machine import never_text_ids
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.sampling import SamplingConfig
from mllm.sequence import IGNORED, ImageLayout, TokenSequence, build_sequence
from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model
from tests.mllm.test_engine import draw_plainly
from tests.mllm.tiny_folder import build_tiny_folder

FIRST, COUNT = 50, 7  # classes of the random models


def class_model(layout: str = "bare", **fields: object) -> MLLMForConditionalGeneration:
    return build_model(layout=layout, prompt_style="class", first_class_id=FIRST, num_classes=COUNT, **fields)


def image(seed: int = 0) -> CodesPart:
    codes_KN = np.random.default_rng(seed).integers(0, CODEBOOK_SIZE, (NUM_CODEBOOKS, 9)).astype(np.uint16)
    return CodesPart(codes_KN, (3, 3))


def build(messages: list[Message], config: MLLMConfig, *, is_prompt: bool = False) -> TokenSequence:
    """No text, so no tokenizer."""
    return build_sequence(messages, tokenizer=None, config=config, add_generation_prompt=is_prompt)


def asked(index: int) -> list[Message]:
    return [Message("user", (ClassPart(index),))]


def request_for(index: int, config: MLLMConfig, *, guidance: float) -> GenerationRequest:
    return GenerationRequest(
        prompt=build(asked(index), config, is_prompt=True),
        unconditional=build(unconditional(asked(index)), config, is_prompt=True),
        mode="image",
        seed=index,
        image=SamplingConfig(guidance=guidance),
    )


def test_a_sample_is_a_class_and_the_positions_of_the_image_and_nothing_else() -> None:
    config = class_model().config
    sample = build([*asked(2), Message("assistant", (image(),))], config)
    assert sample.token_ids_T.tolist() == [FIRST + 2, *[config.image_token_id] * 9]
    assert (sample.labels_T == IGNORED).all() and sample.code_targets_P.all()
    assert build(asked(2), config, is_prompt=True).token_ids_T.tolist() == [FIRST + 2]
    assert build(unconditional(asked(2)), config, is_prompt=True).token_ids_T.tolist() == [FIRST + COUNT]
    assert set(range(FIRST, FIRST + COUNT + 1)) <= set(never_text_ids(ImageLayout.from_config(config), config))


def test_a_class_can_also_be_part_of_a_dialogue() -> None:
    messages = [*asked(4), Message("assistant", (image(),))]
    assert [segment.content for segment in render(messages, "native")[1:4]] == ["USER:", ClassPart(4), " ASSISTANT:"]
    assert conversation.from_chat([{"role": "user", "content": [{"type": "class", "class": 4}]}]) == asked(4)
    assert "<class_" in conversation.chat_template("class")


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_model = Pipeline.load(build_tiny_folder(tmp_path / "text"), device="cpu")
    for call in (
        lambda: render([Message("user", (TextPart("a cat"),))], "class", add_generation_prompt=True),
        lambda: render([Message("user", (ClassPart(1),))], "vicuna_v1", add_generation_prompt=True),
        lambda: build(asked(COUNT), class_model().config, is_prompt=True),
        lambda: class_model().config.class_token_id(-1),
        lambda: build_model().config.class_token_id(0),
        lambda: MLLMConfig(num_classes=3),
        lambda: text_model.draw_class(0),
    ):
        with pytest.raises(ValueError):
            call()
    for arguments in ([], ["a cat", "--class", "1"], ["--class", "1", "--size", "32x32"], ["--class", "cat"]):
        assert main(["draw", *arguments, "-o", str(tmp_path / "a.png")]) == 2
        assert capsys.readouterr().err


@pytest.mark.parametrize("code_embedder", ["summed", "projected"])
@pytest.mark.parametrize("layout", ["bare", "fixed"])
def test_classes_are_drawn_as_by_a_plain_loop(code_embedder: str, layout: str) -> None:
    model = class_model(code_embedder=code_embedder, image_position_embedding=True, layout=layout)
    for table in model.code_embedding.places.parameters(recurse=False):
        torch.nn.init.normal_(table)
    requests = [request_for(5, model.config, guidance=guidance) for guidance in (1.0, 2.5)]
    for request, result in zip(requests, Engine(model).generate(requests), strict=True):
        assert result.images[0].codes_KN.T.tolist() == draw_plainly(model, request)
        assert result.token_ids == ImageLayout.from_config(model.config).token_ids((3, 3))


def test_pipeline_and_command_draw_classes_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"code_embedder": "summed", "num_classes": 5, "prompt_style": "class", "tasks": ["draw_class"]}
    folder = build_tiny_folder(tmp_path / "model", layout="bare", **fields)
    pipeline = Pipeline.load(folder, device="cpu")
    images = pipeline.draw_class(3, n=2, seed=4)
    assert [image.info["seed"] for image in images] == [4, 5] and images[0].size == (32, 32)
    assert images[1].tobytes() == pipeline.draw_class(3, seed=5)[0].tobytes()
    others = (pipeline.draw_class(2, seed=4), pipeline.draw_class(3, seed=4, guidance=5.0))
    assert all(images[0].tobytes() != other[0].tobytes() for other in others)
    for refused in (lambda: pipeline.draw("a cat"), lambda: pipeline.draw_class(5)):
        with pytest.raises(ValueError):
            refused()
    out = tmp_path / "a.png"
    assert main(["draw", "--class", "3", "-n", "1", "--seed", "4", "--model", str(folder), "-o", str(out)]) == 0
    assert "seed 4" in capsys.readouterr().out and Image.open(out).tobytes() == images[0].tobytes()
