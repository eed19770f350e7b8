"""Hugging Face chat messages.

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A cat."}]}

`content` is a string or a list of items. A picture is named in its item, or items are bare and the record has a list
`images`. A system message is put before the first user message. A single assistant message is a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.conversation import TextPart
from train.data.importers.pictures import find_picture
from train.data.records import BadRecord, Record, RecordPart, Turn, chat_record, document_record


def read_chat(fields: dict[str, Any], folder: Path) -> Record:
    """The record of one line."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRecord(f"messages must be a list of objects: found {type(messages).__name__}; mend the record")
    listed = iter(fields.get("images") or [])
    turns: list[Turn] = []
    before: tuple[RecordPart, ...] = ()
    for message in messages:
        parts = tuple(_parts(message.get("content"), listed, folder))
        match message.get("role"):
            case "system":
                before = (*before, *parts)
            case "user":
                turns.append(Turn("user", (*before, *parts)))
                before = ()
            case "assistant":
                turns.append(Turn("assistant", parts))
            case role:
                raise BadRecord(f"unknown role: found {role!r}; use system, user or assistant")
    if (left := len(list(listed))) > 0:
        raise BadRecord(f"images and messages disagree: found {left} images that no message shows; add their items")
    if [turn.role for turn in turns] == ["assistant"]:
        return document_record(turns[0].parts)
    return chat_record(turns)


def _parts(content: Any, listed: Iterator[Any], folder: Path) -> Iterator[RecordPart]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    if not isinstance(content, list):
        raise BadRecord(f"content must be a string or a list: found {type(content).__name__}; mend the message")
    for item in content:
        match item:
            case {"type": "text", "text": str(text)}:
                yield TextPart(text)
            case {"type": "image" | "image_url", **rest}:
                yield find_picture(_named(rest, listed), folder)
            case _:
                raise BadRecord(f"unknown item in a message: found {str(item)[:80]}; use text and image items")


def _named(item: dict[str, Any], listed: Iterator[Any]) -> Any:
    """The picture of an item; Parquet files hold every key in every item, mostly empty."""
    for key in ("image", "path", "url", "image_url", "bytes"):
        if item.get(key):
            return item if key == "bytes" else item[key]
    picture = next(listed, None)
    if picture is None:
        raise BadRecord("an image item has no picture: found no path and no image left in `images`; add it")
    return picture
