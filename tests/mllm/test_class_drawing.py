"""Class-conditional drawing in the LlamaGen manner: the sequence, guidance, cached = uncached, the facade, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.config import MLLMConfig
from mllm.conversation import (
    ClassPart,
    CodesPart,
    Message,
    TextPart,
    chat_template,
    from_chat,
    render,
    unconditional,
)
from mllm.engine.loop import generate, never_text_ids
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.sampling import SamplingConfig
from mllm.sequence import IGNORED, ImageLayout, TokenSequence, build_sequence
from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model
from tests.mllm.test_engine import record_logits, uncached_code_logits
from tests.mllm.tiny_folder import build_tiny_folder

CLASS_FIELDS = {"prompt_style": "class", "image_layout": "bare", "tasks": ["draw_class"]}
FIRST, COUNT = 50, 7  # classes of the random models


def class_model(**fields: object) -> MLLMForConditionalGeneration:
    fields = {"image_layout": "bare", **fields}
    return build_model(
        layout=fields.pop("image_layout"), prompt_style="class", first_class_id=FIRST, num_classes=COUNT, **fields
    )


def image(seed: int = 0) -> CodesPart:
    codes_KN = np.random.default_rng(seed).integers(0, CODEBOOK_SIZE, (NUM_CODEBOOKS, 9)).astype(np.uint16)
    return CodesPart(codes_KN, (3, 3))


def build(messages: list[Message], config: MLLMConfig, *, is_prompt: bool = False) -> TokenSequence:
    """No text, so no tokenizer."""
    return build_sequence(messages, tokenizer=None, config=config, add_generation_prompt=is_prompt)


def asked(index: int) -> list[Message]:
    return [Message("user", (ClassPart(index),))]


def test_a_sample_is_a_class_and_the_image_s_positions_and_nothing_else() -> None:
    config = class_model().config
    sample = build([*asked(2), Message("assistant", (image(),))], config)
    assert sample.token_ids_T.tolist() == [FIRST + 2, *[config.image_token_id] * 9]
    assert (sample.labels_T == IGNORED).all() and sample.code_targets_P.all()
    assert build(asked(2), config, is_prompt=True).token_ids_T.tolist() == [FIRST + 2]


def test_the_other_branch_of_guidance_is_the_class_after_the_last() -> None:
    config = class_model().config
    assert build(unconditional(asked(2)), config, is_prompt=True).token_ids_T.tolist() == [FIRST + COUNT]
    assert config.class_token_id(None) == FIRST + COUNT


def test_a_class_can_also_be_part_of_an_ordinary_dialogue() -> None:
    segments = render([*asked(4), Message("assistant", (image(),))], "native")
    assert [segment.content for segment in segments[1:4]] == ["USER:", ClassPart(4), " ASSISTANT:"]


@pytest.mark.parametrize(
    ("style", "parts", "named"),
    [
        ("class", (TextPart("a cat"),), "draws classes by number"),
        ("vicuna_v1", (ClassPart(1),), "found a ClassPart"),
    ],
)
def test_what_a_style_has_no_place_for_is_refused(style: str, parts: tuple, named: str) -> None:
    with pytest.raises(ValueError):
        render([Message("user", parts)], style, add_generation_prompt=True)


def test_classes_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError):
        build(asked(COUNT), class_model().config, is_prompt=True)
    with pytest.raises(ValueError):
        class_model().config.class_token_id(-1)
    with pytest.raises(ValueError):
        build_model().config.class_token_id(0)
    with pytest.raises(ValueError):
        MLLMConfig(num_classes=3)


def test_class_tokens_are_never_sampled_as_text() -> None:
    config = class_model().config
    assert set(range(FIRST, FIRST + COUNT + 1)) <= set(never_text_ids(ImageLayout.from_config(config), config))


@pytest.mark.parametrize("code_embedder", ["summed", "projected"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("layout", ["bare", "fixed"])
def test_cached_code_logits_equal_the_full_forward(
    monkeypatch: pytest.MonkeyPatch, code_embedder: str, guidance: float, layout: str
) -> None:
    model = class_model(code_embedder=code_embedder, image_position_embedding=True, image_layout=layout)
    for table in model.code_embedding.places.parameters(recurse=False):
        torch.nn.init.normal_(table)
    row = GenerationRequest(
        prompt=build(asked(5), model.config, is_prompt=True),
        unconditional=build(unconditional(asked(5)), model.config, is_prompt=True),
        mode="image",
        image=SamplingConfig(guidance=guidance),
    )
    seen = record_logits(monkeypatch)
    result = generate(model, [row])[0]
    codes_NK = torch.from_numpy(result.images[0].codes_KN.T.astype(np.int64))
    full_NKC = uncached_code_logits(model, row, codes_NK)
    cached_NKC = torch.stack(seen).view(full_NKC.shape)
    assert torch.allclose(cached_NKC, full_NKC, rtol=1e-4, atol=1e-4 * full_NKC.abs().max())
    assert result.token_ids == ImageLayout.from_config(model.config).token_ids((3, 3))


def test_classes_together_equal_each_alone() -> None:
    model = class_model(code_embedder="summed")
    rows = [
        GenerationRequest(
            prompt=build(asked(index), model.config, is_prompt=True),
            unconditional=build(unconditional(asked(index)), model.config, is_prompt=True),
            mode="image",
            seed=index,
            image=SamplingConfig(guidance=1.0 + index % 2),
        )
        for index in range(4)
    ]
    together = [result.images[0].codes_KN.tolist() for result in generate(model, rows)]
    assert together == [generate(model, [row])[0].images[0].codes_KN.tolist() for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_folder(
        tmp_path_factory.mktemp("classes"), layout="bare", code_embedder="summed", num_classes=5, **CLASS_FIELDS
    )


def build_class_pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


def test_the_pipeline_draws_classes_and_nothing_else(folder: Path) -> None:
    pipeline = build_class_pipeline(folder)
    pictures = pipeline.draw_class(3, n=2, seed=4)
    assert [picture.info["seed"] for picture in pictures] == [4, 5]
    assert pictures[0].size == (32, 32)
    assert pictures[1].tobytes() == pipeline.draw_class(3, seed=5)[0].tobytes()
    assert pictures[0].tobytes() != pipeline.draw_class(2, seed=4)[0].tobytes()
    assert pictures[0].tobytes() != pipeline.draw_class(3, seed=4, guidance=5.0)[0].tobytes()
    for refused in (lambda: pipeline.draw("a cat"), lambda: pipeline.ask(pictures[0], "What?")):
        with pytest.raises(ValueError):
            refused()
    with pytest.raises(ValueError):
        pipeline.draw_class(5)


def test_a_model_of_words_refuses_classes(tmp_path: Path) -> None:
    pipeline = build_class_pipeline(build_tiny_folder(tmp_path))
    with pytest.raises(ValueError):
        pipeline.draw_class(0)


def test_the_command_draws_a_class(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["draw", "--class", "1", "-n", "2", "--seed", "3", "--model", str(folder), "-o", str(tmp_path / "a.png")]
    assert main(words) == 0
    assert "seed 4" in capsys.readouterr().out
    drawn = build_class_pipeline(folder).draw_class(1, n=2, seed=3)
    assert [Image.open(tmp_path / f"a-{n}.png").tobytes() for n in (1, 2)] == [picture.tobytes() for picture in drawn]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "give a PROMPT or --class N"),
        (["a cat", "--class", "1"], "give a PROMPT or --class N"),
        (["--class", "1", "--size", "32x32"], "drawn in one size"),
        (["--class", "cat"], "invalid int value"),
    ],
)
def test_the_command_wants_either_words_or_a_class(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["draw", *words, "-o", str(tmp_path / "a.png")]) == 2
    assert named in capsys.readouterr().err


def test_chat_dicts_and_the_template_have_classes() -> None:
    assert from_chat([{"role": "user", "content": [{"type": "class", "class": 3}]}]) == asked(3)
    assert "<class_" in chat_template("class")


def test_a_class_model_is_saved_and_loaded_bit_equal(tmp_path: Path) -> None:
    model = class_model(code_embedder="summed")
    model.save_pretrained(tmp_path)
    loaded = MLLMForConditionalGeneration.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (loaded.config.num_classes, loaded.config.code_embedder) == (COUNT, "summed")
