"""Messages, and every fixed string that frames them: the one home of the prompt.

In: a dialogue as messages of parts (text, images, codes). Out: segments in order, each a text, an image or a marker,
with a flag whether it is learned. Training and inference render with the same function, so they cannot disagree. Also
says which kinds of answer a checkpoint gives. Knows no tokenizer, no ids and no tensors.

    native           <s>USER: text <image> ASSISTANT: text <image></s>USER: ...      any dialogue
    unitok           one of the next three, by what is asked and answered
    unitok_t2i       <s>text Generate an image based on this description.<image></s>
    unitok_caption   <s><image>text</s>
    vicuna_v1        <s>system USER: <image>\ntext ASSISTANT: text</s>USER: ...     bare images
    plain            <s><image>text\n        LLaVA's first stage: bare images, the text of the user is left out
    class            <class><image>           LlamaGen's: no text at all, not even <s> (see image layout "bare")
    any style        <s> text<image> text</s>        a document: one message of the assistant without a question

What the assistant says is learned, up to and including </s>; of a document that is everything.

In the native style an image may have a plan, text that says what is where: before an image of the assistant what will
be drawn (after the size of the image, where sizes differ), after one of the user, between two markers, what is seen.
The model writes both itself, a chain of thought for drawing and understanding, as in GoT (arXiv:2503.10639).
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from mllm.config import CHOICES, MLLMConfig
from mllm.vocabulary import IMAGE
from tokenizer.images import read_image

UNCONDITIONAL = "<unconditional>"
"""Stands for a dropped instruction, in training and as the other branch of guidance."""
DRAW_SUFFIX = " Generate an image based on this description."
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
USER, ASSISTANT = "USER:", "ASSISTANT:"

Role = Literal["user", "assistant"]
IMAGE_KEYS = ("image", "base64", "bytes", "url", "image_url", "path")
"""Where an item of type image or image_url holds its image; the first of them that is there counts."""
AnswerKind = Literal["text", "image"]
Mode = Literal["text", "image", "interleaved"]

TEMPLATES = Path(__file__).parent / "assets" / "chat_templates"
"""The text form of the prompts as Jinja, a file for each style, for tools that render chats with a template; `<image>`
stands for an image. What the model is trained on and asked with is built by `render`; a test holds the two together."""


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class UnconditionalPart:
    """In place of a text that was dropped. Not a text, so that no user can type it."""


@dataclass(frozen=True, slots=True)
class ImagePart:
    image: Image.Image


@dataclass(frozen=True, slots=True, eq=False)
class CodesPart:
    codes_KN: np.ndarray  # uint16, N = grid positions row by row
    grid: tuple[int, int]  # rows, columns
    plan: str | None = None  # what the model wrote before it drew this, or when it looked at it
    image: Image.Image | None = field(default=None, repr=False)  # what the codes are decoded to, if known

    def __post_init__(self) -> None:
        if self.codes_KN.ndim != 2 or self.codes_KN.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"codes of {self.grid[0]} rows x {self.grid[1]} columns must have shape (K, rows * columns), got "
                f"{self.codes_KN.shape}; give codes that fill the grid"
            )


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size of the next image, told before its plan; takes no tokens where all images have one size."""

    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ClassPart:
    index: int | None  # None: no class


Part = TextPart | UnconditionalPart | ImagePart | CodesPart | ClassPart


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]


class Marker(Enum):
    BOS = "begin of sequence"
    EOS = "end of sequence"
    PLAN = "begin of a plan, and end of that of an image that is described"


@dataclass(frozen=True, slots=True)
class Segment:
    content: str | CodesPart | ImageSize | ClassPart | Marker
    supervised: bool = False
    bare: bool = False  # an image without its begin and end tokens


def render(
    messages: Sequence[Message],
    style: str,
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    answer: AnswerKind | None = None,
) -> list[Segment]:
    """Segments of a dialogue, in order.

    Args:
        add_generation_prompt: the assistant is to speak next; the last message must be the user's.
        continue_final_message: the assistant is to go on; the last message must be its own.
        answer: what it is to say (style "unitok" has one prompt for each); default: an image if only text was given.
    """
    if continue_final_message:
        if add_generation_prompt or not messages or messages[-1].role != "assistant":
            raise ValueError(
                "continue_final_message must come with a last message of the assistant and no add_generation_prompt, "
                "got another; drop one"
            )
        segments = render(messages, style, answer=answer)
        return segments[:-1] if segments[-1].content is Marker.EOS else segments
    check_dialogue(messages, add_generation_prompt=add_generation_prompt)
    if messages[0].role == "assistant":  # a document
        return [Segment(Marker.BOS), *_render_native([without_plans(messages[0])])]
    if style == "unitok":
        style = unitok_style(messages, answer if add_generation_prompt else None)
    renderers = {
        "native": _render_native,
        "unitok_t2i": _render_unitok_t2i,
        "unitok_caption": _render_unitok_caption,
        "vicuna_v1": _render_vicuna,
        "plain": _render_plain,
        "class": _render_class,
    }
    if style not in renderers:
        raise ValueError(
            f"prompt style must be one of {', '.join(CHOICES['prompt_style'])}, got {style!r}; use one of them"
        )
    if style == "plain" and add_generation_prompt and not all(isinstance(p, CodesPart) for p in messages[-1].parts):
        raise ValueError("the request must be an image alone, got text; leave it out, or train stage 2")
    segments = list(renderers[style](messages))
    return segments if style == "class" else [Segment(Marker.BOS), *segments]


def unitok_style(messages: Sequence[Message], answer: AnswerKind | None) -> str:
    """Which of the released model's three prompts a dialogue needs."""
    asked, spoken = messages[0], messages[-1]
    if spoken.role == "assistant" and answer is None:
        answer = "image" if has_image(spoken) else "text"
    if answer is None:
        answer = "text" if has_image(asked) else "image"
    if answer == "image":
        return "unitok_t2i"
    has_text = any(not isinstance(part, CodesPart) for part in asked.parts)
    return "vicuna_v1" if has_text else "unitok_caption"


def check_dialogue(messages: Sequence[Message], *, add_generation_prompt: bool) -> None:
    """Roles alternate from the user on; a single assistant message is a document without a question."""
    roles = [message.role for message in messages]
    alternating = [("user", "assistant")[turn % 2] for turn in range(len(roles))]
    if not roles or (roles != alternating and roles != ["assistant"]):
        raise ValueError(f"roles must alternate from 'user' on, got {roles}; merge or drop messages")
    if add_generation_prompt and roles[-1] != "user":
        raise ValueError("the last message must be the user's, got the assistant's; end with the user's message")
    for message in messages:
        if not message.parts:
            raise ValueError(f"messages must have parts, got none in one of {message.role!r}; give text or an image")
        if any(isinstance(part, ImagePart) for part in message.parts):
            raise ValueError("images must be encoded, got an ImagePart; turn it into a CodesPart first")


def has_image(message: Message) -> bool:
    return any(isinstance(part, CodesPart) for part in message.parts)


def _render_native(messages: Sequence[Message]) -> Iterator[Segment]:
    for message in messages:
        is_assistant = message.role == "assistant"
        if not is_assistant:
            yield Segment(USER)
        for part in message.parts:
            plan = part.plan if isinstance(part, CodesPart) else None
            marker, words = Segment(Marker.PLAN, supervised=True), Segment(f" {plan}" if plan else "", supervised=True)
            if is_assistant and isinstance(part, CodesPart) and plan is not None:
                yield from (marker, Segment(ImageSize(part.grid)), words)
            if isinstance(part, CodesPart | ClassPart):
                yield Segment(part, supervised=is_assistant)
                if not is_assistant and plan is not None:
                    yield from (Segment(Marker.PLAN), words, marker)  # the first is always there
            elif text := text_of(part):
                yield Segment(" " + text, supervised=is_assistant)
        yield Segment(Marker.EOS, supervised=True) if is_assistant else Segment(" " + ASSISTANT)


def _render_unitok_t2i(messages: Sequence[Message]) -> Iterator[Segment]:
    description = " ".join(text_of(part) for part in messages[0].parts if not isinstance(part, CodesPart))
    is_dropped = any(isinstance(part, UnconditionalPart) for part in messages[0].parts)
    yield Segment(description if is_dropped else description + DRAW_SUFFIX)
    yield from _render_unitok_caption(messages[1:2])


def _render_unitok_caption(messages: Sequence[Message]) -> Iterator[Segment]:
    for message in messages:
        is_assistant = message.role == "assistant"
        for part in message.parts:
            yield Segment(part if isinstance(part, CodesPart) else text_of(part), supervised=is_assistant)
        if is_assistant:
            yield Segment(Marker.EOS, supervised=True)


def _render_vicuna(messages: Sequence[Message]) -> Iterator[Segment]:
    pending = VICUNA_SYSTEM
    for message in messages:
        if message.role == "assistant":
            yield Segment(" " + " ".join(text_of(part) for part in message.parts), supervised=True)
            yield Segment(Marker.EOS, supervised=True)
            continue
        pending += USER + " "
        for index, part in enumerate(message.parts):
            if isinstance(part, CodesPart):
                yield Segment(pending)
                yield Segment(part, bare=True)
                pending = "\n"
            else:
                pending += text_of(part) if index == 0 or pending == "\n" else " " + text_of(part)
        yield Segment(pending + " " + ASSISTANT)
        pending = ""


def _render_plain(messages: Sequence[Message]) -> Iterator[Segment]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, CodesPart):
                yield Segment(part, bare=True)
            elif message.role == "assistant":
                yield Segment(text_of(part) + "\n", supervised=True)


def _render_class(messages: Sequence[Message]) -> Iterator[Segment]:
    for message in messages:
        for part in message.parts:
            match part:
                case ClassPart():
                    yield Segment(part)
                case UnconditionalPart():
                    yield Segment(ClassPart(None))
                case CodesPart():
                    yield Segment(part, supervised=message.role == "assistant")
                case _:
                    raise ValueError("the request must be a class by number, got text; give a class, no text")


def text_of(part: Part) -> str:
    """The text as it enters the prompt."""
    match part:
        case UnconditionalPart():
            return UNCONDITIONAL
        case TextPart(text):
            return neutralise(text).strip()
        case _:
            raise ValueError(f"this part of the prompt must be text, got a {type(part).__name__}; use text there")


def neutralise(text: str) -> str:
    """Take out what is not text: control characters (U+0000 and U+0001 are image markers upstream) and our marker.
    Names of special tokens need no care here: pieces are encoded as plain text (mllm/vocabulary.py)."""
    text = "".join(char for char in text if char >= " " or char in "\n\t")
    while UNCONDITIONAL in text:
        text = text.replace(UNCONDITIONAL, "")
    return text


def unconditional(messages: Sequence[Message]) -> list[Message]:
    """The same dialogue without its last instruction and the plans that repeat it: for guidance, and for dropout."""
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise ValueError("a dialogue must have a user message, got none; give one")
    kept = [part for part in messages[last].parts if not isinstance(part, TextPart | UnconditionalPart | ClassPart)]
    # where the first text stood, so that images keep their side of it
    before = next((i for i, part in enumerate(messages[last].parts) if isinstance(part, TextPart)), len(kept))
    parts = (*kept[:before], UnconditionalPart(), *kept[before:])
    return [*messages[:last], replace(messages[last], parts=parts), *map(without_plans, messages[last + 1 :])]


def without_plans(turn: Message) -> Message:
    return replace(turn, parts=tuple(replace(p, plan=None) if isinstance(p, CodesPart) else p for p in turn.parts))


def from_chat(chat: Sequence[dict[str, Any] | Message]) -> list[Message]:
    """Messages from Hugging Face chat dicts: {"role", "content"}, content a string or a list of typed items. A system
    message is put before the next user message, as in training."""
    messages: list[Message] = []
    before: tuple[Part, ...] = ()
    if isinstance(chat, str | Mapping) or not isinstance(chat, Iterable):
        raise ValueError(f"a chat must be a list of messages, got {chat!r:.200}; give [{{'role', 'content'}}, ...]")
    for turn in chat:
        match turn:
            case Message(role, parts):
                pass
            case {"role": role, "content": str(text)}:
                parts = (TextPart(text),)
            case {"role": role, "content": list() | tuple() as items}:
                parts = tuple(map(_part_from_item, items))
            case _:
                raise ValueError(f"a message must have role and content (text or items), got {turn!r:.200}; fix it")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"roles must be system, user or assistant, got {role!r}; use one of them")
        if role != "assistant":
            parts = before = before + parts
        if role == "user":
            before = ()
        if role != "system":
            messages.append(Message(role, parts))
    if before:
        raise ValueError("a system message must stand before a user message, got it at the end; move or drop it")
    return messages


def image_of(item: dict[str, Any]) -> Any:
    """What an image item holds: an image, codes, or where the image is. Absent keys may be None, as in Parquet."""
    name, value = next(((name, item[name]) for name in IMAGE_KEYS if item.get(name) is not None), (None, None))
    if value is None:
        raise ValueError(f"an image item must have one of {', '.join(IMAGE_KEYS)}, got none of them; give one")
    if isinstance(value, dict):  # OpenAI's {"url": ...}; {"bytes": ..., "path": ...} of `datasets`
        return image_of(value)
    return base64.b64decode(value) if name == "base64" and not value.startswith("data:") else value


def _part_from_item(item: dict[str, Any]) -> Part:
    match item:
        case {"type": "text", "text": str(text)}:
            return TextPart(text)
        case {"type": "image" | "image_url"}:
            image = image_of(item)
            return image if isinstance(image, CodesPart) else ImagePart(read_image(image))
        case {"type": "class", "class": int(index)}:
            return ClassPart(index)
    found = sorted(k for k, v in item.items() if v is not None) if isinstance(item, dict) else repr(item)
    raise ValueError(
        f"items of a chat message must be of type text or image, got {found}; use {{'type': 'text', 'text': ...}} or "
        "{'type': 'image', 'image': a PIL image}"
    )


def chat_template(style: str) -> str:
    """The template of a prompt style; "unitok" is its question and answer form (vicuna_v1)."""
    if style not in CHOICES["prompt_style"]:
        raise ValueError(f"prompt style must be one of {', '.join(CHOICES['prompt_style'])}, got {style!r}; use one")
    return (TEMPLATES / f"{'vicuna_v1' if style == 'unitok' else style}.jinja").read_text(encoding="utf-8")


def is_outdated(template: str) -> bool:
    """Whether an earlier version wrote this template, which knew no system messages."""
    return template.startswith('{%- set user = "USER:" -%}') and "generation" not in template


def is_framed(text: str, bos: str) -> bool:
    """Whether a text is a prompt that the template wrote (or somebody in its manner), not what a user says."""
    return text.startswith((bos, USER, VICUNA_SYSTEM))


def parts_of(text: str, images: Iterator[ImagePart]) -> tuple[Part, ...]:
    """The pieces of a text, with images at its markers."""
    first, *others = text.split(IMAGE)
    found = [TextPart(first), *(part for other in others for part in (next(images), TextPart(other)))]
    return tuple(part for part in found if not isinstance(part, TextPart) or part.text.strip())


def from_text(text: str, images: Iterator[ImagePart], *, bos: str, eos: str) -> list[Message]:
    """The messages of a text that the template of style native or vicuna_v1 wrote, with images at its markers. The last
    message is unfinished if the text does not end with `eos`: empty, where the assistant is to begin."""
    messages: list[Message] = []
    *finished, last = text.removeprefix(bos).removeprefix(VICUNA_SYSTEM).split(eos)
    for turn in (*finished, last):
        asked, found, answer = turn.rpartition(f" {ASSISTANT}") if turn.startswith(USER) else ("", "document", turn)
        if not found:
            raise ValueError(f"a user's turn must end with ' {ASSISTANT}', got {turn[-20:]!r}; use apply_chat_template")
        if asked:
            messages.append(Message("user", parts_of(asked.removeprefix(USER), images) or (TextPart(""),)))
        if answer.strip() or (asked and turn is last):
            messages.append(Message("assistant", parts_of(answer, images)))
    return messages


def from_fragment(text: str, images: Iterator[CodesPart], *, bos: str, eos: str, style: str) -> Iterator[Segment]:
    """Segments of a piece of a prompt as it stands: nothing is framed, images stand at its markers."""
    frames = {bos: Marker.BOS, eos: Marker.EOS}
    for piece in re.split(f"({re.escape(bos)}|{re.escape(eos)}|{IMAGE}|<class_[0-9]+>)", text):
        if piece in frames:
            yield Segment(frames[piece])
        elif piece == IMAGE:
            yield Segment(next(images), bare=style in ("plain", "vicuna_v1", "unitok"))
        elif style == "class" and piece.startswith("<class_"):
            yield Segment(ClassPart(int(piece[len("<class_") : -1])))
        elif piece:
            yield Segment(neutralise(piece))


def check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"generation mode must be one of {', '.join(get_args(Mode))}, got {mode!r}; use one of them")


def check_mode_of(config: MLLMConfig, mode: Mode) -> None:
    check_mode(mode)
    if mode == "image" and not config.can_draw:
        raise ValueError("mode must be 'text' for a model without drawing, got 'image'; use one that draws")
    if mode == "interleaved" and (config.prompt_style == "unitok" or not config.can_draw):
        raise ValueError("mode must be 'text' or 'image' for this model, got 'interleaved'; use one of them")


def possible_mode(messages: Sequence[Message], mode: Mode, config: MLLMConfig) -> Mode:
    """The mode asked for, as far as this checkpoint has it; without drawing an interleaved answer is text. Upstream's
    prompts are for one kind of answer each: an image from text, or text about images."""
    if config.prompt_style == "unitok" and mode == "interleaved":
        mode = "text" if has_image(messages[0]) else "image"
    elif config.prompt_style == "unitok" and mode == "image" and any(map(has_image, messages)):
        raise ValueError("the request must be text alone to draw with this model, got an image; leave it out")
    if mode == "interleaved" and not config.can_draw:
        return "text"
    check_mode_of(config, mode)
    return mode
