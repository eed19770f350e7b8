"""What a person asks for, checked and turned into a row for the decoding loop.

In: a dialogue, a task, overrides of the sampling settings. Out: a `Row`, or a ValueError that a person understands.
Settings come from the checkpoint (its config, then its settings per task), then from the overrides.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from transformers import GenerationConfig

from mllm.config import MLLMConfig
from mllm.conversation import AnswerKind, CodesPart, ImagePart, Message, TextPart, neutralise, unconditional
from mllm.generation.request import Row, count_budget
from mllm.generation.settings import TaskSettings, image_settings, outline_settings, text_settings, token_budget
from mllm.layout import ImageLayout
from mllm.modes import Mode, possible_mode
from mllm.pictures import Picture, load_picture
from mllm.processor import MLLMProcessor
from mllm.sampling import PerCodebook
from mllm.sizes import Size, grid_of
from mllm.vocabulary import encode_text

NUM_SEEDS = 2**31


class Overrides(TypedDict, total=False):
    """Settings that a call may change; None, or leaving one out, keeps the checkpoint's."""

    seed: int | None
    guidance: float | None
    temperature: PerCodebook[float] | None
    top_k: PerCodebook[int] | None
    top_p: PerCodebook[float] | None
    greedy: bool | None
    max_new_tokens: int | None
    redraws: int | None


@dataclass(frozen=True, slots=True)
class RowBuilder:
    """Builds rows for one model."""

    processor: MLLMProcessor
    config: MLLMConfig
    generation_config: GenerationConfig
    stored_settings: TaskSettings

    def build(
        self,
        messages: Sequence[Message],
        mode: Mode,
        *,
        task: str,
        size: Size | None = None,
        outline: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Row:
        """The row that answers a dialogue."""
        given = check_overrides(overrides or {})
        if mode == "text" and "guidance" in given:
            raise ValueError(f"guidance is for pictures: found {given['guidance']} for a text; leave it out")
        check_messages(messages)
        messages = self.processor.encode_pictures(messages)
        mode = possible_mode(messages, mode, self.config)
        image = image_settings(self.config, self.stored_settings.get(task, {}), given)
        answer: AnswerKind | None = {"text": "text", "image": "image"}.get(mode)
        is_guided = mode != "text" and image.guidance > 1
        row = Row(
            prompt=self.processor.build(messages, add_generation_prompt=True, answer=answer),
            unconditional=(
                self.processor.build(unconditional(messages), add_generation_prompt=True, answer=answer)
                if is_guided
                else None
            ),
            mode=mode,
            grid=self.choose_grid(messages, size),
            seed=given.get("seed", secrets.randbelow(NUM_SEEDS)),
            max_new_tokens=given.get("max_new_tokens", token_budget(self.config, mode)),
            text=text_settings(
                self.generation_config,
                self.stored_settings.get(f"{task}_text", {}),
                given if mode == "text" else {},
            ),
            image=image,
            outline=outline_settings(self.stored_settings.get("outline", {}), given),
            redraws=0 if image.greedy else self.choose_redraws(task, given),
            given_outline=None if outline is None else encode_outline(outline, self.processor),
        )
        context = self.config.text_config.max_position_embeddings
        count_budget(row, layout=ImageLayout.from_config(self.config), context=context)  # refuses what does not fit
        return row

    def choose_redraws(self, task: str, given: Mapping[str, Any]) -> int:
        """How often a picture may be drawn again: the caller's number, else the task's, else the checkpoint's."""
        stored = self.stored_settings.get(task, {})
        return given.get("redraws", stored.get("redraws", self.config.image_redraws))

    def choose_grid(self, messages: Sequence[Message], size: Size | None) -> tuple[int, int] | None:
        """The size asked for, else that of the last picture of the dialogue, else the default."""
        if size is not None:
            return grid_of(size, self.config)
        grids = [part.grid for message in messages for part in message.parts if isinstance(part, CodesPart)]
        return grids[-1] if grids else None


def encode_outline(outline: str, processor: MLLMProcessor) -> tuple[int, ...]:
    """The tokens of an outline as the assistant would write it."""
    words = neutralise(check_words(outline, name="outline", hint="say what is where, or leave it out"))
    return tuple(encode_text(processor.tokenizer, " " + words.strip()))


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are given; an unknown name is an error."""
    if unknown := set(overrides) - set(Overrides.__annotations__):
        raise ValueError(f"unknown setting {sorted(unknown)[0]!r}; use one of {', '.join(Overrides.__annotations__)}")
    return {name: value for name, value in overrides.items() if value is not None}


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what says nothing: no message, or a last message without words and pictures."""
    if not messages:
        raise ValueError("the chat is empty: found no message; say something")
    if messages[-1].role != "user":
        raise ValueError("nothing to answer: found an assistant's message last; end with the user's message")
    last = messages[-1].parts
    if not any(not isinstance(part, TextPart) or part.text.strip() for part in last):
        raise ValueError("the message is empty: found no words and no picture; say something")


def check_words(text: str, *, name: str, hint: str) -> str:
    """A text that says something."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the {name} is empty: found {text!r}; {hint}")
    return text


def read_pictures(pictures: Picture | Sequence[Picture]) -> list[ImagePart]:
    """Parts of a message from pictures or their files."""
    listed = [pictures] if isinstance(pictures, Picture) else list(pictures)
    return [ImagePart(load_picture(picture)) for picture in listed]


def check_task(tasks: Sequence[str] | None, *wanted: str) -> str:
    """The first of the wanted tasks that this checkpoint was trained for (its capabilities; None: all)."""
    for task in wanted:
        if tasks is None or task in tasks:
            return task
    known = ", ".join(tasks or ()) or "nothing"
    raise ValueError(f"this model cannot {wanted[0]}: it was trained to {known}; use a model that was trained for it")
