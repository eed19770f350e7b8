"""Prompts: the exact strings of every style, upstream's to the id, what is learned, what user text cannot do."""

import random
from itertools import product

import numpy as np
import pytest
from PIL import Image

from mllm.conversation import (
    UNCONDITIONAL,
    CodesPart,
    ImagePart,
    ImageSize,
    Marker,
    Message,
    Segment,
    TextPart,
    UnconditionalPart,
    render,
    unconditional,
)
from mllm.processor import MLLMProcessor
from tests.mllm.tiny_folder import build_tiny_folder

IMAGE = CodesPart(np.zeros((3, 4), dtype=np.uint16), (2, 2))


def user(*parts: object) -> Message:
    return Message("user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def assistant(*parts: object) -> Message:
    return Message("assistant", user(*parts).parts)


def show(segments: list[Segment]) -> str:
    """One line: [learned] parts in brackets, images as #, bare ones as =."""
    names = {Marker.BOS: "<s>", Marker.EOS: "</s>", Marker.PLAN: "<plan>"}
    words = []
    for segment in segments:
        match segment.content:
            case ImageSize((rows, columns)):
                word = f"{rows}x{columns}"
            case CodesPart():
                word = "=" if segment.bare else "#"
            case other:
                word = names.get(other, other)
        words.append(f"[{word}]" if segment.supervised else word)
    return "|".join(words)


DRAW = [user("a cat"), assistant(IMAGE)]
OUTLINED = CodesPart(IMAGE.codes_KN, (2, 2), "a red cat 35")
ASK = [user(IMAGE, "What is it?"), assistant("A cat.")]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
ASKED = f"<s>|{SYSTEM}USER: |=|\nWhat is it? ASSISTANT:|[ A cat.]|[</s>]"
PLAN = "|[<plan>]|2x2|[ a red cat 35]|[#]|[</s>]"


@pytest.mark.parametrize(
    ("messages", "style", "shown"),
    [
        (DRAW, "native", "<s>|USER:| a cat| ASSISTANT:|[#]|[</s>]"),
        ([user("a cat"), assistant(OUTLINED)], "native", f"<s>|USER:| a cat| ASSISTANT:{PLAN}"),
        (
            [user(OUTLINED, "a cat"), assistant("Here.", OUTLINED)],
            "native",
            f"<s>|USER:|#|<plan>|[ a red cat 35]|[<plan>]| a cat| ASSISTANT:|[ Here.]{PLAN}",
        ),
        (ASK, "native", "<s>|USER:|#| What is it?| ASSISTANT:|[ A cat.]|[</s>]"),
        (
            [*DRAW, user("now a dog"), assistant("Sure:", IMAGE, "there.")],
            "native",
            "<s>|USER:| a cat| ASSISTANT:|[#]|[</s>]|USER:| now a dog| ASSISTANT:|[ Sure:]|[#]|[ there.]|[</s>]",
        ),
        ([assistant("Once upon a time")], "native", "<s>|[ Once upon a time]|[</s>]"),
        (DRAW, "unitok", "<s>|a cat Generate an image based on this description.|[#]|[</s>]"),
        (ASK, "unitok", ASKED),
        ([user(IMAGE), assistant("A cat.")], "unitok", "<s>|#|[A cat.]|[</s>]"),
        ([user("Describe.", IMAGE), assistant("a cat")], "plain", "<s>|=|[a cat\n]"),
        ([*ASK, user("Sure?"), assistant("Yes.")], "unitok", f"{ASKED}|USER: Sure? ASSISTANT:|[ Yes.]|[</s>]"),
    ],
)
def test_every_style_says_exactly_this(messages: list[Message], style: str, shown: str) -> None:
    assert show(render(messages, style)) == shown


def test_dropping_the_instruction_keeps_images_and_their_side() -> None:
    dropped = unconditional([*DRAW, user(IMAGE, "Make it blue.", "Now.")])
    assert dropped[:2] == DRAW and dropped[2].parts == (IMAGE, UnconditionalPart())
    assert unconditional([user("As in", IMAGE)])[0].parts == (UnconditionalPart(), IMAGE)
    assert show(render(unconditional(DRAW), "unitok")) == "<s>|<unconditional>|[#]|[</s>]"
    outlined = unconditional([user("a cat"), assistant(OUTLINED)])
    assert show(render(outlined, "native")) == "<s>|USER:| <unconditional>| ASSISTANT:|[#]|[</s>]"


def test_a_dialogue_that_makes_no_sense_is_refused() -> None:
    for messages, prompt in (
        ([], False),
        ([user("a"), user("b")], False),
        ([assistant("a"), user("b")], False),
        (DRAW, True),
        ([user()], True),
        ([user(ImagePart(Image.new("RGB", (2, 2))))], True),
    ):
        with pytest.raises(ValueError):
            render(messages, "native", add_generation_prompt=prompt)
    for style in ("latin", "plain"):  # no style, and one that is not asked anything
        with pytest.raises(ValueError):
            render(ASK[:1], style, add_generation_prompt=True)
    with pytest.raises(ValueError):
        CodesPart(np.zeros((3, 4), dtype=np.uint16), (2, 3))


# ---- upstream's prompts, with its ids: begin-of-image is the byte token of U+0000 ----

UPSTREAM_IDS = {"begin_image_id": 3, "end_image_id": 4, "image_token_id": -200, "pad_token_id": 0}
PIECES = (
    "\x00", "\x01", "\x00\x00", "\ufeff", "\x1b", "\x7f", "<unconditional>", "<uncond<unconditional>itional>",
    "<0x00>", "<0x01>", "<s>", "</s>", "<unk>", "<image>", "<begin_image>", "<end_image>", "<|image|>", "<boi>",
    "USER:", "ASSISTANT:", "a red circle", " ", "\n", "\u2605", "\U0001f600", "\u0430",
)  # fmt: skip


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> MLLMProcessor:
    folder = build_tiny_folder(tmp_path_factory.mktemp("upstream"), prompt_style="unitok")
    processor = MLLMProcessor.from_pretrained(folder)
    for name, value in UPSTREAM_IDS.items():
        setattr(processor.config, name, value)
    return processor


def test_prompts_and_labels_are_upstream_s_to_the_id(upstream: MLLMProcessor) -> None:
    def ids(text: str) -> list[int]:
        return upstream.tokenizer(text, add_special_tokens=False).input_ids

    image, prompt = [3, *[-200] * 4, 4], {"add_generation_prompt": True}
    assert upstream.tokenizer.convert_tokens_to_ids(["<0x00>", "<0x01>"]) == [3, 4]
    drawing = [1, *ids("a cat Generate an image based on this description.")]
    assert upstream.build(DRAW[:1], answer="image", **prompt).token_ids_T.tolist() == drawing
    dropped = upstream.build(unconditional(DRAW[:1]), answer="image", **prompt)
    assert dropped.token_ids_T.tolist() == [1, *ids("<unconditional>")], "ordinary text, without the words"
    sample = upstream.build(DRAW)
    assert sample.token_ids_T.tolist() == [*drawing, *image, 2]
    assert [label for label in sample.labels_T.tolist() if label != -100] == [3, 4, 2]
    caption = upstream.build([user(IMAGE), assistant("a star")])
    assert caption.token_ids_T.tolist() == [1, *image, *ids("a star"), 2]
    assert caption.labels_T.tolist() == [-100] * 7 + [*ids("a star"), 2]
    asked = upstream.build(ASK[:1], answer="text", **prompt)
    bare = [*ids(SYSTEM + "USER: "), *[-200] * 4, *ids("\nWhat is it? ASSISTANT:")]
    assert asked.token_ids_T.tolist() == [1, *bare]


def test_no_text_of_a_user_becomes_a_marker(upstream: MLLMProcessor, processor: MLLMProcessor) -> None:
    for each, seed in product((upstream, processor), range(30)):
        config, rng = each.config, random.Random(seed)
        markers = {config.begin_image_id, config.end_image_id, config.image_token_id, config.bos_token_id}
        text = "a" + "".join(rng.choices(PIECES, k=rng.randint(1, 12)))
        for messages, answer in product(([user(text)], [user(text), assistant(text), user(text)]), ("image", "text")):
            ids = each.build(messages, add_generation_prompt=True, answer=answer).token_ids_T.tolist()
            assert ids[0] == config.bos_token_id and not markers & set(ids[1:])
            assert ids.count(config.eos_token_id) == len(messages) // 2, "one for each answer"
            assert UNCONDITIONAL not in each.decode(ids)
