"""The processor: chats to inputs and back, its files, its text form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.conversation import CodesPart, ImagePart, Marker, Message, TextPart, chat_template, render
from mllm.processor import MLLMProcessor
from mllm.sequence import build_sequence


@pytest.fixture(scope="module")
def processor(folder: Path) -> MLLMProcessor:
    return MLLMProcessor.from_pretrained(folder)


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


CHAT = [
    {"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "a red circle"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And this? <image></s>"}, {"type": "image", "image": picture(1)}],
    },
]


def test_inputs_equal_the_sequence_that_training_builds(processor: MLLMProcessor) -> None:
    inputs = processor(messages=CHAT)
    codes = processor.encode_images([picture(0), picture(1)])
    messages = [
        Message("user", (codes[0], TextPart("What is it?"))),
        Message("assistant", (TextPart("a red circle"),)),
        Message("user", (TextPart("And this? <image></s>"), codes[1])),
    ]
    expected = build_sequence(
        messages, tokenizer=processor.tokenizer, config=processor.config, add_generation_prompt=True
    )
    assert inputs["input_ids"][0].tolist() == expected.token_ids_T.tolist()
    assert inputs["codes"].tolist() == expected.codes_PK.tolist()
    assert inputs["image_lengths"].tolist() == [4, 4]
    by_template = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert by_template["input_ids"].tolist() == inputs["input_ids"].tolist()


def test_codes_of_pictures_are_those_of_the_image_tokenizer(processor: MLLMProcessor) -> None:
    pictures = [picture(0), picture(1, (48, 48)), picture(2)]
    together = processor.encode_images(pictures)
    for part, image in zip(together, pictures, strict=True):
        assert part.grid == (2, 2)
        assert part.codes_KN.dtype == np.uint16
        assert (part.codes_KN == processor.encode_images([image])[0].codes_KN).all()
    decoded = processor.decode_images(together)
    assert [image.size for image in decoded] == [(32, 32)] * 3
    assert processor.encode_images([]) == processor.decode_images([]) == []


def test_texts_and_pictures_alone_are_inputs_too(processor: MLLMProcessor) -> None:
    inputs = processor(text=["a red circle", "a"])
    assert inputs["attention_mask"][1, 0] == 0, "the shorter one is padded on the left"
    assert inputs["input_ids"][1, 0] == processor.config.pad_token_id
    assert "codes" not in inputs
    assert processor(picture(0), "What is it?")["image_lengths"].tolist() == [4]
    with pytest.raises(ValueError):
        processor([picture(0)], ["a", "b"])


def test_a_folder_saved_again_is_the_same(processor: MLLMProcessor, tmp_path: Path, folder: Path) -> None:
    processor.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MLLMProcessor.from_pretrained(tmp_path)
    assert again(messages=CHAT)["input_ids"].tolist() == processor(messages=CHAT)["input_ids"].tolist()
    assert again.image_tokenizer.fingerprint() == processor.image_tokenizer.fingerprint()
    assert again.chat_template == processor.chat_template
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer.model", "image_tokenizer/config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_auto_processor_finds_ours(folder: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, MLLMProcessor)
    assert processor.apply_chat_template(CHAT, add_generation_prompt=True).startswith("<s>USER:<image> What is it?")


def as_text(messages: list[Message], style: str, processor: MLLMProcessor) -> str:
    """The segments that the model reads, as one string."""
    names = {Marker.BOS: processor.tokenizer.bos_token, Marker.EOS: processor.tokenizer.eos_token}
    return "".join(
        "<image>" if isinstance(segment.content, CodesPart) else names.get(segment.content, segment.content)
        for segment in render(messages, style)
    )


def test_the_template_writes_what_the_model_reads(processor: MLLMProcessor) -> None:
    codes = CodesPart(np.zeros((3, 4), dtype=np.uint16), (2, 2))
    turns = [(codes, " What is it? "), ("a red circle",), ("And this?", codes), ("the same",)]
    roles = ["user", "assistant"] * 2
    parts = [tuple(TextPart(part) if isinstance(part, str) else part for part in turn) for turn in turns]
    messages = list(map(Message, roles, parts))
    item = {str: lambda text: {"type": "text", "text": text}, CodesPart: lambda part: {"type": "image", "image": part}}
    chat = [
        {"role": role, "content": [item[type(part)](part) for part in turn]}
        for role, turn in zip(roles, turns, strict=True)
    ]
    for style, template in (("native", "native"), ("vicuna_v1", "unitok")):
        text = processor.apply_chat_template(chat, chat_template(template))
        assert text == as_text(messages, style, processor)


def test_text_has_no_special_tokens(processor: MLLMProcessor) -> None:
    ids = processor(picture(0), "a red circle")["input_ids"][0].tolist()
    assert "<" not in processor.decode(ids)
    assert "<" not in processor.batch_decode([ids])[0]
    assert "<" not in processor.to_text(ids)
    assert "<image>" in processor.decode(ids, skip_special_tokens=False)


def test_a_processor_without_its_parts_says_what_is_missing(processor: MLLMProcessor) -> None:
    with pytest.raises(ValueError):
        MLLMProcessor(processor.tokenizer)(text="a")
    with pytest.raises(ValueError):
        MLLMProcessor(processor.tokenizer, None, processor.config)(picture(0), "a")


def test_what_the_model_reads_is_an_input_of_its_forward(processor: MLLMProcessor, folder: Path) -> None:
    from mllm.model import MLLMForConditionalGeneration

    model = MLLMForConditionalGeneration.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(**processor(messages=[Message("user", (ImagePart(picture(0)), TextPart("a")))])).logits
        other = model(**processor(messages=[Message("user", (ImagePart(picture(1)), TextPart("a")))])).logits
    assert logits.shape[-1] == model.config.vocab_size
    assert not torch.allclose(logits[:, -1], other[:, -1]), "the picture changes the answer"


def test_a_processor_can_be_printed(processor: MLLMProcessor) -> None:
    assert repr(processor).startswith("MLLMProcessor(")
