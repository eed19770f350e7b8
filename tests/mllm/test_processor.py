"""The processor: chats to inputs and back, its files, its text form."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mllm.checkpoint import BUNDLED
from mllm.conversation import CodesPart, Marker, Message, TextPart, chat_template, from_chat, render
from mllm.processor import MLLMProcessor
from mllm.sequence import build_sequence
from tests.mllm.tiny_folder import random_image, turn

CHAT = [
    turn("user", random_image(0), "What is it?"),
    {"role": "assistant", "content": "a red circle"},
    turn("user", "And this? <image></s>", random_image(1)),
]


def test_inputs_equal_the_sequence_that_training_builds(processor: MLLMProcessor) -> None:
    inputs = processor(messages=CHAT)
    codes = processor.encode_images([random_image(0), random_image(1)])
    messages = [
        Message("user", (codes[0], TextPart("What is it?"))),
        Message("assistant", (TextPart("a red circle"),)),
        Message("user", (TextPart("And this? <image></s>"), codes[1])),
    ]
    options = {"tokenizer": processor.tokenizer, "config": processor.config, "add_generation_prompt": True}
    expected = build_sequence(messages, **options)
    assert inputs["input_ids"][0].tolist() == expected.token_ids_T.tolist()
    assert inputs["codes"].tolist() == expected.codes_PK.tolist()
    assert inputs["image_lengths"].tolist() == [4, 4]
    by_template = processor.apply_chat_template(CHAT, **WHOLE, add_generation_prompt=True)
    assert by_template["input_ids"].tolist() == inputs["input_ids"].tolist()
    assert processor(random_image(0), "What is it?")["image_lengths"].tolist() == [4]
    with pytest.raises(ValueError):
        processor([random_image(0)], ["a", "b"])


def test_a_folder_saved_again_is_the_same(processor: MLLMProcessor, tmp_path: Path, folder: Path) -> None:
    processor.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is MLLMProcessor
    assert again(messages=CHAT)["input_ids"].tolist() == processor(messages=CHAT)["input_ids"].tolist()
    assert again.image_tokenizer.fingerprint() == processor.image_tokenizer.fingerprint()
    assert again.chat_template == processor.chat_template
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer.model", "image_tokenizer/config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_template_writes_what_the_model_reads(processor: MLLMProcessor) -> None:
    names = {Marker.BOS: processor.tokenizer.bos_token, Marker.EOS: processor.tokenizer.eos_token}
    codes = CodesPart(np.zeros((3, 4), dtype=np.uint16), (2, 2))
    turns = [(codes, " What is it? "), ("a red circle",), ("And this?", codes), ("the same",)]
    chat = [turn(role, *parts) for role, parts in zip(["user", "assistant"] * 2, turns, strict=True)]
    for style, template in (("native", "native"), ("vicuna_v1", "unitok")):
        contents = [segment.content for segment in render(from_chat(chat), style)]
        read = "".join("<image>" if isinstance(each, CodesPart) else names.get(each, each) for each in contents)
        assert processor.apply_chat_template(chat, chat_template(template)) == read


@pytest.fixture(scope="module")
def bundled() -> MLLMProcessor:
    return MLLMProcessor.from_pretrained(BUNDLED)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


RED = Image.new("RGB", (256, 320), "red")
WHOLE = {"tokenize": True, "return_dict": True}


def test_a_prompt_that_the_template_wrote_is_not_framed_again(bundled: MLLMProcessor) -> None:
    chat = [turn("user", RED, "What color is the circle?")]
    one = bundled.apply_chat_template(chat, add_generation_prompt=True, **WHOLE)
    assert one["input_ids"].shape == (1, 106)
    text = bundled.apply_chat_template(chat, add_generation_prompt=True)
    assert equal(bundled(images=RED, text=text, return_tensors="pt"), one)
    assert equal(bundled(images=RED, text="<image> What color is the circle?"), one), "framed, at its marker"
    assert equal(bundled([RED], ["What color is the circle?"]), one)
    drawing = Image.new("RGB", (320, 256))
    drawing.info["plan"] = "a red circle 12"
    system = {"role": "system", "content": "Be brief. The word ASSISTANT: is yours."}
    whole = [system, *chat, turn("assistant", " It is red. "), turn("user", "Draw it, USER: me")]
    whole.append(turn("assistant", "Here:", drawing))
    for length in (3, 5):
        inputs = bundled.apply_chat_template(whole[:length], **WHOLE)
        again = bundled([RED, drawing][: length // 2], bundled.apply_chat_template(whole[:length]))
        for name in inputs.keys() - ({"code_targets"} if length == 5 else set()):
            assert torch.equal(again[name], inputs[name])
    assert inputs["code_targets"].tolist() == [False] * 80 + [True] * 80, "what the assistant drew is learned"
    mode = {"generation_mode": "image"}
    assert equal(
        bundled(text=bundled.apply_chat_template([turn("user", "a cat")]), **mode), bundled(text="a cat", **mode)
    )
    refused = [(RED, text.replace("<image>", "<image><image>")), (None, text), ([RED] * 2, text), (None, "half \ud83d")]
    for images, wrong in refused:
        with pytest.raises(ValueError):
            bundled(images, wrong)


def test_images_come_in_every_form(bundled: MLLMProcessor, tmp_path: Path) -> None:
    image = random_image(5, (256, 256))
    path, array, expected = tmp_path / "a.png", np.asarray(image), bundled(image, "What?")
    image.save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    url = f"data:image/png;base64,{data}"
    for form in (
        *(str(path), path, path.read_bytes(), array, torch.from_numpy(array.copy()).permute(2, 0, 1)),
        *([image], [[image]], [array], array[None], url, bytearray(path.read_bytes())),
    ):
        assert equal(bundled(form, "What?"), expected), type(form)
    nested = bundled([[image], [], [image, image]], ["What?", "Who?", "<image>Why?<image>"])
    assert nested["image_lengths"].tolist() == [64] * 3
    assert equal(bundled([image] * 3, ["<image>What?", "Who?", "<image>Why?<image>"]), nested)
    for item in (
        {"type": "image", "base64": data},
        {"type": "image", "url": url, "path": None, "text": None},
        {"type": "image", "image": None, "path": str(path), "text": None},
        {"type": "image", "image": {"bytes": path.read_bytes(), "path": None}},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": str(path)},
    ):
        chat = [{"role": "user", "content": [item, {"type": "text", "text": "What?", "path": None}]}]
        assert equal(bundled(messages=chat), expected), item
        assert bundled.apply_chat_template(chat) == "<s>USER:<image> What? ASSISTANT:"
    with pytest.raises(ValueError):
        bundled(messages=[{"role": "user", "content": [{"type": "image", "image": None}]}])


def test_options_of_the_tokens_are_obeyed_or_refused(bundled: MLLMProcessor) -> None:
    texts = ["a", "what can you draw"]
    left, right = bundled(text=texts), bundled(text=texts, padding=True, padding_side="right")
    num_pads = int((left["attention_mask"][0] == 0).sum())
    assert num_pads > 0 and left["attention_mask"][0, :num_pads].sum() == 0
    assert right["attention_mask"][0, -num_pads:].sum() == 0
    assert right["input_ids"][0, :-num_pads].tolist() == left["input_ids"][0, num_pads:].tolist()
    assert bundled(text=texts, padding="max_length", max_length=64)["input_ids"].shape == (2, 64)
    by_loading = AutoProcessor.from_pretrained(BUNDLED, padding_side="right", use_fast=True, local_files_only=True)
    assert equal(by_loading(text=texts), right)
    with pytest.raises(ValueError, match="min_pixels"):
        AutoProcessor.from_pretrained(BUNDLED, min_pixels=9)
    assert isinstance(bundled(text=texts, return_tensors="np")["input_ids"], np.ndarray)
    lists = bundled(text=texts, return_tensors=None)["input_ids"]
    assert [len(row) for row in lists] == left["attention_mask"].sum(dim=1).tolist()
    long = [turn("user", RED, "What color is the circle?", RED, "x " * 30)]
    whole = bundled.apply_chat_template(long, **WHOLE)
    for length in (16, 110, 250):  # inside the first image, inside the second, behind it
        cut = bundled.apply_chat_template(long, **WHOLE, processor_kwargs={"truncation": True, "max_length": length})
        num_tokens = cut["input_ids"].shape[1]
        assert num_tokens <= length and cut["input_ids"].tolist() == whole["input_ids"][:, :num_tokens].tolist()
        num_codes = int((cut["input_ids"] == bundled.config.image_token_id).sum())
        assert len(cut.get("codes", ())) == num_codes and num_codes % 80 == 0, "images are whole"
    for wrong in (
        *({"foo": 1}, {"return_tensors": "tf"}, {"padding_side": "top"}, {"images_kwargs": {"do_resize": True}}),
        {"text_kwargs": {"padding": False}, "padding": True},
    ):
        with pytest.raises(ValueError):
            bundled(text="a", **wrong)
    chats = [[turn("user", text)] for text in texts]
    prompts = bundled.apply_chat_template(chats, add_generation_prompt=True, **WHOLE)
    ragged = bundled.apply_chat_template(chats, add_generation_prompt=True, padding=False, **WHOLE)
    assert prompts["input_ids"].equal(left["input_ids"]) and ragged["input_ids"] == lists
    with pytest.raises(ValueError):
        bundled.apply_chat_template(chats[0], tools=[{"name": "a"}])


def test_a_chat_is_continued_and_its_answers_are_masked(bundled: MLLMProcessor) -> None:
    chat = [turn("user", "Which color?"), turn("assistant", "It is")]
    whole = bundled.apply_chat_template(chat, **WHOLE, return_assistant_tokens_mask=True)
    begun = bundled.apply_chat_template(chat, **WHOLE, continue_final_message=True)
    assert begun["input_ids"].tolist() == whole["input_ids"][:, :-1].tolist(), "without the end"
    text = bundled.apply_chat_template(chat, continue_final_message=True)
    assert text == "<s>USER: Which color? ASSISTANT: It is" and equal(bundled(text=text), begun)
    said = whole["input_ids"][whole["assistant_masks"].bool()].tolist()
    assert bundled.tokenizer.decode(said) == " It is</s>"
    for wrong in ({"add_generation_prompt": True}, {"return_assistant_tokens_mask": True}):
        with pytest.raises(ValueError):
            bundled.apply_chat_template(chat, **WHOLE, continue_final_message=True, **wrong)
    with pytest.raises(ValueError):
        bundled.apply_chat_template(chat[:1], **WHOLE, continue_final_message=True)


def test_text_has_no_special_tokens_and_missing_parts_are_named(processor: MLLMProcessor) -> None:
    ids = processor(random_image(0), "a red circle")["input_ids"][0].tolist()
    assert "<" not in processor.decode(ids) + processor.batch_decode([ids])[0] + processor.to_text(ids)
    assert "<image>" in processor.decode(ids, skip_special_tokens=False)
    with pytest.raises(ValueError):
        MLLMProcessor(processor.tokenizer)(text="a")
    with pytest.raises(ValueError):
        MLLMProcessor(processor.tokenizer, None, processor.config)(random_image(0), "a")
