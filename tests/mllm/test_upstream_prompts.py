"""Upstream's prompts to the id, and by property: no text of a user becomes a marker of an image."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from mllm.conversation import UNCONDITIONAL, CodesPart, Message, TextPart, unconditional
from mllm.processor import MLLMProcessor
from tests.mllm.tiny_folder import build_tiny_folder

DRAW_WORDS = " Generate an image based on this description."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
UPSTREAM_IDS = {"begin_image_id": 3, "end_image_id": 4, "image_token_id": -200, "pad_token_id": 0}
IMAGE_PART = CodesPart(np.arange(12, dtype=np.uint16).reshape(3, 4), (2, 2))
PIECES = (
    "\x00", "\x01", "\x00\x00", "\ufeff", "\x1b", "\x7f", "<unconditional>", "<uncond<unconditional>itional>",
    "<0x00>", "<0x01>", "<s>", "</s>", "<unk>", "<image>", "<begin_image>", "<end_image>", "<|image|>", "<boi>",
    "USER:", "ASSISTANT:", "a red circle", " ", "\n", "\u2605", "\U0001f600", "\u0430",
)  # fmt: skip


@pytest.fixture(scope="module", params=["unitok", "native"])
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MLLMProcessor:
    """With upstream's ids: begin-of-image is the byte token of U+0000."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    processor = MLLMProcessor.from_pretrained(build_tiny_folder(folder, prompt_style=request.param))
    return with_upstream_ids(processor) if request.param == "unitok" else processor


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> MLLMProcessor:
    folder = build_tiny_folder(tmp_path_factory.mktemp("upstream"), prompt_style="unitok")
    return with_upstream_ids(MLLMProcessor.from_pretrained(folder))


def with_upstream_ids(processor: MLLMProcessor) -> MLLMProcessor:
    for name, value in UPSTREAM_IDS.items():
        setattr(processor.config, name, value)
    return processor


def ids_of(processor: MLLMProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False).input_ids


def user(*parts: object) -> list[Message]:
    return [Message("user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts))]


def test_drawing_asks_as_upstream_does_with_the_byte_token_as_begin_of_image(upstream: MLLMProcessor) -> None:
    tokenizer = upstream.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<0x00>", "<0x01>"]) == [3, 4]
    prompt = upstream.build(user("a red circle"), add_generation_prompt=True, answer="image")
    assert prompt.token_ids_T.tolist() == [1, *ids_of(upstream, "a red circle" + DRAW_WORDS)]
    dropped = upstream.build(unconditional(user("a red circle")), add_generation_prompt=True, answer="image")
    assert dropped.token_ids_T.tolist() == [1, *ids_of(upstream, "<unconditional>")], "ordinary text, without the words"
    sample = upstream.build([*user("a red circle"), Message("assistant", (IMAGE_PART,))])
    added = [3, *[-200] * 4, 4, 2]
    assert sample.token_ids_T.tolist() == [*prompt.token_ids_T.tolist(), *added]
    # begin, end and end-of-sequence are learned; the prompt is not
    assert [label for label in sample.labels_T.tolist() if label != -100] == [3, 4, 2]


def test_captions_and_questions_are_framed_as_upstream_does(upstream: MLLMProcessor) -> None:
    caption = upstream.build([*user(IMAGE_PART), Message("assistant", (TextPart("a star"),))])
    assert caption.token_ids_T.tolist() == [1, 3, *[-200] * 4, 4, *ids_of(upstream, "a star"), 2]
    assert caption.labels_T.tolist() == [-100] * 7 + [*ids_of(upstream, "a star"), 2]
    asked = upstream.build(user(IMAGE_PART, "What is it?"), add_generation_prompt=True, answer="text")
    before, after = SYSTEM + " USER: ", "\nWhat is it? ASSISTANT:"
    assert asked.token_ids_T.tolist() == [1, *ids_of(upstream, before), *[-200] * 4, *ids_of(upstream, after)]


def test_no_text_of_a_user_becomes_a_marker(processor: MLLMProcessor) -> None:
    config = processor.config
    markers = {config.begin_image_id, config.end_image_id, config.image_token_id, config.bos_token_id}
    for seed in range(30):
        rng = random.Random(seed)
        text = "a" + "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        for answer in ("image", "text"):
            for messages in (user(text), [*user(text), Message("assistant", (TextPart(text),)), *user(text)]):
                ids = processor.build(messages, add_generation_prompt=True, answer=answer).token_ids_T.tolist()
                assert ids[0] == config.bos_token_id and not markers & set(ids[1:])
                num_answers = sum(message.role == "assistant" for message in messages)
                assert ids.count(config.eos_token_id) == num_answers
                assert UNCONDITIONAL not in processor.decode(ids)
