"""Between the chat that the page shows and the messages that the pipeline reads.

In: the page's history, a list of {role, content, metadata} dicts whose content is a list of texts and files. Out:
messages; and the other way, entries to show. The history is the only state of a conversation. Knows neither gradio nor
the model.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from mllm.conversation import ImagePart, Message, TextPart
from tokenizer.images import open_image

Entry = dict[str, Any]

FAILURE = "failure"
"""Marks an error shown as an answer. It and the request before it are no part of the conversation that is answered."""


def user_entry(text: str, files: list[str]) -> Entry:
    """A request to show: the pictures, then the words."""
    texts = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [file_part(file) for file in files] + texts}


def answer_entry(content: list[dict[str, Any]]) -> Entry:
    """An answer to show."""
    return {"role": "assistant", "content": content}


def error_entry(sentence: str) -> Entry:
    """An error to show in place of an answer."""
    text = f'<div class="failure">{html.escape(sentence)}</div>'
    return answer_entry([{"type": "text", "text": text}]) | {"metadata": {"id": FAILURE}}


def file_part(path: str | Path) -> dict[str, Any]:
    """A picture to show; the page finds out its kind and keeps a copy of its own."""
    return {"path": str(path)}


def is_error(entry: Entry) -> bool:
    return (entry.get("metadata") or {}).get("id") == FAILURE


def without_failures(history: list[Entry]) -> list[Entry]:
    """The history less every request that was answered by an error."""
    kept: list[Entry] = []
    for entry in history:
        if not is_error(entry):
            kept.append(entry)
        elif kept and kept[-1]["role"] == "user":
            kept.pop()
    return kept


def to_messages(history: list[Entry]) -> list[Message]:
    """What the pipeline reads."""
    return [
        Message(role=entry["role"], parts=tuple(to_part(part) for part in entry["content"]))
        for entry in without_failures(history)
    ]


def to_part(part: dict[str, Any]) -> TextPart | ImagePart:
    match part["type"]:
        case "text":
            return TextPart(part["text"])
        case "file":
            return ImagePart(open_image(part["file"]["path"]))
        case kind:
            raise ValueError(f"a message holds {kind!r}; send text and pictures only")
