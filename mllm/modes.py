"""What kind of answer is asked for: words, one image, or both as the model likes; and which a checkpoint gives.

In: a mode, a dialogue with encoded pictures, a config. Out: the mode to decode in, or a ValueError. Knows no ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from mllm.config import MLLMConfig
from mllm.conversation import Message, has_image

Mode = Literal["text", "image", "interleaved"]


def check_mode(mode: str) -> None:
    """Refuse what is no generation mode."""
    if mode not in get_args(Mode):
        raise ValueError(f"unknown generation mode: found {mode!r}; use {', '.join(get_args(Mode))}")


def check_mode_of(config: MLLMConfig, mode: Mode) -> None:
    """Refuse a mode that this checkpoint does not have."""
    if mode == "image" and not config.can_draw:
        raise ValueError("this model cannot draw: it only looks at pictures and answers; use a model that draws")
    if mode == "interleaved" and (config.prompt_style == "unitok" or not config.can_draw):
        raise ValueError("this model answers in one kind: found mode 'interleaved'; use 'text' or 'image'")


def possible_mode(messages: Sequence[Message], mode: Mode, config: MLLMConfig) -> Mode:
    """The mode asked for, as far as this checkpoint has it; a chat without pictures is one in words."""
    if config.prompt_style == "unitok":
        mode = unitok_mode(messages, mode)
    if mode == "interleaved" and not config.can_draw:
        return "text"
    check_mode_of(config, mode)
    return mode


def unitok_mode(messages: Sequence[Message], mode: Mode) -> Mode:
    """Upstream's prompts are for one kind of answer each: a picture from words, or words about pictures."""
    if mode == "interleaved":
        return "text" if has_image(messages[0]) else "image"
    if mode == "image" and any(has_image(message) for message in messages):
        raise ValueError("this model draws from words alone: found a picture in the request; leave the picture out")
    return mode
