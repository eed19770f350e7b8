"""Models of other kinds: class-conditional drawing in the LlamaGen manner (the sequence, the facade), and understanding
in the LLaVA manner (the tokenizer's quantised features, frozen; words out, never images)."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, ImagePart, Message, TextPart, render, unconditional
from mllm.engine.state_machine import never_text_ids
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.sequence import IGNORED, ImageLayout, TokenSequence, build_sequence, pack
from tests.mllm.engine_helpers import NUM_CODEBOOKS, build_model, learned_sample
from tests.mllm.test_embedding import random_codes
from tests.mllm.tiny_folder import build_tiny_folder, random_image
from tokenizer.unitok import UniTok

# ---- classes ----

FIRST, COUNT = 50, 7  # classes of the random models
IMAGE = CodesPart(np.ones((NUM_CODEBOOKS, 9), dtype=np.uint16), (3, 3))


def build(messages: list[Message], config: MLLMConfig, *, is_prompt: bool = True) -> TokenSequence:
    """No text, so no tokenizer."""
    return build_sequence(messages, tokenizer=None, config=config, add_generation_prompt=is_prompt)


def asked(part: ClassPart | TextPart | ImagePart) -> list[Message]:
    return [Message("user", (part,))]


def test_a_sample_is_a_class_and_the_positions_of_the_image_and_nothing_else() -> None:
    model = build_model(layout="bare", prompt_style="class", first_class_id=FIRST, num_classes=COUNT)
    config, prompt = model.config, asked(ClassPart(2))
    sample = build([*prompt, Message("assistant", (IMAGE,))], config, is_prompt=False)
    assert sample.token_ids_T.tolist() == [FIRST + 2, *[config.image_token_id] * 9]
    assert (sample.labels_T == IGNORED).all() and sample.code_targets_P.all()
    assert build(prompt, config).token_ids_T.tolist() == [FIRST + 2]
    assert build(unconditional(prompt), config).token_ids_T.tolist() == [FIRST + COUNT]
    assert [segment.content for segment in render(prompt, "native")[1:3]] == ["USER:", ClassPart(2)]
    assert set(range(FIRST, FIRST + COUNT + 1)) <= set(never_text_ids(ImageLayout.from_config(config), config))
    for call in (
        lambda: render(asked(TextPart("a cat")), "class", add_generation_prompt=True),
        lambda: render(prompt, "vicuna_v1", add_generation_prompt=True),
        lambda: build(asked(ClassPart(COUNT)), config),
        lambda: config.class_token_id(-1),
        lambda: build_model().config.class_token_id(0),
    ):
        with pytest.raises(ValueError):
            call()


def test_pipeline_and_command_draw_classes_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"code_embedder": "summed", "num_classes": 5, "prompt_style": "class", "tasks": ["draw_class"]}
    folder = build_tiny_folder(tmp_path / "model", layout="bare", **fields)
    pipeline = Pipeline.load(folder, device="cpu")
    images = pipeline.draw_class(3, n=2, seed=4)
    assert [image.info["seed"] for image in images] == [4, 5] and images[0].size == (32, 32)
    assert images[1].tobytes() == pipeline.draw_class(3, seed=5)[0].tobytes()
    others = (pipeline.draw_class(2, seed=4), pipeline.draw_class(3, seed=4, guidance=5.0))
    assert all(images[0].tobytes() != other[0].tobytes() for other in others)
    for refused in (lambda: pipeline.draw("a cat"), *(partial(pipeline.draw_class, wrong) for wrong in (5, 1.5, "x"))):
        with pytest.raises(ValueError):
            refused()
    out = tmp_path / "a.png"
    assert main(["draw", "--class", "cat", "--model", str(folder), "-o", str(out)]) == 2
    assert main(["draw", "--class", "3", "-n", "1", "--seed", "4", "--model", str(folder), "-o", str(out)]) == 0
    assert "seed 4" in capsys.readouterr().out and Image.open(out).tobytes() == images[0].tobytes()


# ---- understanding only ----

WHOLE = {"embedding_context": "bidirectional", "head_type": "none"}
FIELDS = {**WHOLE, "embedder_width": 12, "embedder_heads": 2, "prompt_style": "vicuna_v1", "tasks": ["ask", "chat"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_folder(tmp_path_factory.mktemp("understanding"), context=400, **FIELDS)


@torch.no_grad()
def test_the_projector_sees_the_tokenizer_s_quantised_features(folder: Path) -> None:
    """What LLaVA with UniTok reads: encoder, quantizer, codebook entries, the projection behind them."""
    model = MLLMForConditionalGeneration.from_pretrained(folder)
    tokenizer = UniTok.from_pretrained(folder / "image_tokenizer")
    for each in (model, MLLMForConditionalGeneration(MLLMConfig.from_pretrained(folder))):
        assert {name.split(".")[0] for name, _ in each.code_embedding.named_parameters()} == {"projector"}, "learned"
    codes_BKN = tokenizer.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    features_BND = tokenizer.post_quant_proj(tokenizer.quantizer.lookup(codes_BKN))
    expected = model.code_embedding.projector(features_BND).flatten(0, 1)
    codes_PK = codes_BKN.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(model.code_embedding(codes_PK, torch.tensor([4, 4])), expected)
    wider = {**model.config.to_dict(), "embedder_width": 24, "embedder_heads": 3}
    with pytest.raises(ValueError):  # a tokenizer of other sizes
        MLLMForConditionalGeneration(MLLMConfig(**wider)).code_embedding.adopt(tokenizer)
    tokenizer.post_quant_proj.attn.causal = True
    with pytest.raises(ValueError):
        model.code_embedding.adopt(tokenizer)


def test_the_loss_is_that_of_the_words_alone_and_unfinished_images_are_refused() -> None:
    model, whole = build_model(**WHOLE).train(), build_model(embedding_context="bidirectional")
    samples = [learned_sample(seed=1, plan=["image", "TEXT"]), learned_sample(seed=2, plan=["text", "TEXT"])]
    output = model(**pack(samples, length=40, pad_token_id=0))
    assert output.loss_parts.num_image == 0 and output.loss.item() == pytest.approx(output.loss_parts.text.item())
    output.loss.backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    for each in (whole, build_model(head_type="none")):
        with pytest.raises(ValueError):
            each(**pack([learned_sample(seed=1, plan=["text", "IMAGE"])], length=40, pad_token_id=0))
    with pytest.raises(ValueError):
        whole.code_embedding.step(random_codes(1)[None], torch.tensor([[0]]), torch.tensor([3]), None, torch.arange(1))
    with pytest.raises(ValueError):
        build_model(head_type="none", tasks=["ask", "draw"])


def test_it_answers_and_chats_in_words_and_refuses_to_draw(folder: Path) -> None:
    image, pipeline = random_image(), Pipeline.load(folder, device="cpu")
    *_, done = pipeline.chat([Message("user", (ImagePart(image), TextPart("What?")))], max_new_tokens=5)
    assert pipeline.ask(image, "What?", max_new_tokens=5) == "".join(part.text for part in done.message.parts)
    with pytest.raises(ValueError):
        pipeline.draw("a cat")
    with pytest.raises(ValueError):  # asked below the capabilities
        pipeline.answer([asked(TextPart("a cat"))], "image", [0])
