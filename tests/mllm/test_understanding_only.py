"""Understanding in the LLaVA manner: the tokenizer's quantised features, frozen; words out, never pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mllm.cli.main import main
from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, ImagePart, Message, TextPart, render
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.sequence import pack
from tests.mllm.engine_helpers import build_model, learned_sample
from tests.mllm.test_embedding import random_codes
from tests.mllm.tiny_folder import build_tiny_folder, random_picture
from tokenizer.unitok import UniTok

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
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    codes_BKN = tokenizer.encode(pixels)
    features_BND = tokenizer.post_quant_proj(tokenizer.quantizer.lookup(codes_BKN))
    expected = model.code_embedding.projector(features_BND).flatten(0, 1)
    codes_PK = codes_BKN.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(model.code_embedding(codes_PK, torch.tensor([4, 4])), expected)


@torch.no_grad()
def test_every_position_sees_its_whole_image_and_no_other() -> None:
    embedding = build_model(**WHOLE).code_embedding
    codes_PK = random_codes(11)
    alone = [embedding(codes, torch.tensor([len(codes)])) for codes in codes_PK.split([4, 7])]
    torch.testing.assert_close(embedding(codes_PK, torch.tensor([4, 7])), torch.cat(alone))
    changed_PK = codes_PK.clone()
    changed_PK[3] = (changed_PK[3] + 1) % 11
    difference = (embedding(changed_PK, torch.tensor([4, 7])) - embedding(codes_PK, torch.tensor([4, 7]))).abs()
    assert (difference[:4].amax(dim=1) > 1e-5).all() and not difference[4:].any()


def test_the_loss_is_that_of_the_words_alone() -> None:
    model = build_model(**WHOLE).train()
    samples = [learned_sample(seed=1, plan=["image", "TEXT"]), learned_sample(seed=2, plan=["text", "TEXT"])]
    output = model(**pack(samples, length=40, pad_token_id=0))
    assert output.loss_parts.num_image == 0 and output.loss.item() == pytest.approx(output.loss_parts.text.item())
    output.loss.backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)


def test_it_refuses_to_learn_or_to_embed_unfinished_images() -> None:
    whole, headless = build_model(embedding_context="bidirectional"), build_model(head_type="none")
    for model in (whole, headless):
        with pytest.raises(ValueError):
            model(**pack([learned_sample(seed=1, plan=["text", "IMAGE"])], length=40, pad_token_id=0))
    with pytest.raises(ValueError):
        whole.code_embedding.step(random_codes(1)[None], torch.tensor([[0]]), torch.tensor([3]), None, torch.arange(1))
    with pytest.raises(ValueError):
        build_model(head_type="none", tasks=["ask", "draw"])


def test_it_answers_and_chats_in_words_and_refuses_to_draw(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = random_picture()
    pipeline = Pipeline.load(folder, device="cpu")
    asked = [Message("user", (ImagePart(picture), TextPart("What?")))]
    *_, done = pipeline.chat(asked, max_new_tokens=5)
    assert pipeline.ask(picture, "What?", max_new_tokens=5) == "".join(part.text for part in done.message.parts)
    assert main(["draw", "a cat", "--model", str(folder), "-o", str(tmp_path / "a.png")]) == 2
    assert "this model cannot draw" in capsys.readouterr().err
    with pytest.raises(ValueError):  # asked below the capabilities
        pipeline.answer([[Message("user", (TextPart("a cat"),))]], "image", [0])


def test_the_plain_style_pairs_pictures_with_captions() -> None:
    image = CodesPart(np.zeros((3, 9), dtype=np.uint16), (3, 3))
    told = [Message("user", (TextPart("Describe."), image)), Message("assistant", (TextPart("a cat"),))]
    shown = [(segment.content, segment.supervised, segment.bare) for segment in render(told, "plain")[1:]]
    assert shown == [(image, False, True), ("a cat\n", True, False)]
    prompt = render([Message("user", (image,))], "plain", add_generation_prompt=True)
    assert [segment.content for segment in prompt[1:]] == [image]
    with pytest.raises(ValueError):
        render(told[:1], "plain", add_generation_prompt=True)


def test_a_tokenizer_of_other_sizes_is_refused(folder: Path) -> None:
    tokenizer = UniTok.from_pretrained(folder / "image_tokenizer")
    for sizes in ({"embedder_width": 24, "embedder_heads": 3}, {"embedder_width": 12, "embedder_heads": 3}):
        config = MLLMConfig(**{**MLLMConfig.from_pretrained(folder).to_dict(), **WHOLE, **sizes})
        with pytest.raises(ValueError):
            MLLMForConditionalGeneration(config).code_embedding.adopt(tokenizer)
    tokenizer.post_quant_proj.attn.causal = True
    with pytest.raises(ValueError):
        MLLMForConditionalGeneration.from_pretrained(folder).code_embedding.adopt(tokenizer)
