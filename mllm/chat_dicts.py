"""Hugging Face chat dicts to messages and back: {"role", "content"}, content a string or a list of typed items.

An item is {"type": "text", "text": "..."}, {"type": "image", "image": a PIL image or codes} or
{"type": "class", "class": 3}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from mllm.conversation import UNCONDITIONAL, ClassPart, CodesPart, ImagePart, Message, Part, TextPart, UnconditionalPart


def from_chat(chat: Sequence[dict[str, Any]]) -> list[Message]:
    """Messages from Hugging Face chat dicts: {"role", "content"}, content a string or a list of typed items."""
    messages = []
    for turn in chat:
        content = turn["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        messages.append(Message(turn["role"], tuple(_part_from_item(item) for item in items)))
    return messages


def _part_from_item(item: dict[str, Any]) -> Part:
    match item:
        case {"type": "text", "text": str(text)}:
            return TextPart(text)
        case {"type": "image", "image": Image.Image() as image}:
            return ImagePart(image)
        case {"type": "image", "image": CodesPart() as codes}:
            return codes
        case {"type": "class", "class": int(index)}:
            return ClassPart(index)
        case _:
            raise ValueError(
                f"unknown item in a chat message: found {sorted(item)}; use {{'type': 'text', 'text': ...}} or "
                "{'type': 'image', 'image': a PIL image}"
            )


def to_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Hugging Face chat dicts of messages; the inverse of `from_chat`."""
    return [
        {"role": message.role, "content": [_item_from_part(part) for part in message.parts]} for message in messages
    ]


def _item_from_part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case UnconditionalPart():
            return {"type": "text", "text": UNCONDITIONAL}
        case ImagePart(image):
            return {"type": "image", "image": image}
        case CodesPart():
            return {"type": "image", "image": part}
        case ClassPart(index):
            return {"type": "class", "class": index}
