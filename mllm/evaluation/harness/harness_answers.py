"""What a harness asks, as our messages; what the model answers, as a harness takes it. Knows no harness's classes.

In: chats of dicts ({"type": "text", "text"} and {"type": "image", "url": picture or file}), generation settings by the
names of transformers. Out: texts, or where pictures were asked for JSON with `text` and `images` (file names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image

from mllm.conversation import ImagePart, Message, TextPart
from mllm.generation.row_builder import Overrides
from mllm.modes import Mode
from mllm.pictures import load_picture
from mllm.pipeline import Pipeline

SETTINGS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "max_new_tokens"}


def read_messages(chat: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a chat; words of a system stand before those of the first user."""
    messages: list[Message] = []
    pending: tuple[TextPart | ImagePart, ...] = ()
    for turn in chat:
        content = turn["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = pending + tuple(read_item(item) for item in items)
        if turn["role"] == "system":
            pending = parts
        else:
            messages.append(Message(turn["role"], parts))
            pending = ()
    return messages


def read_item(item: Mapping[str, Any]) -> TextPart | ImagePart:
    """One part; what this model cannot see is refused, never left out."""
    match item["type"]:
        case "text":
            return TextPart(item["text"])
        case "image":
            source = next(item[name] for name in ("url", "image", "value") if name in item)
            return ImagePart(load_picture(source))
        case kind:
            raise ValueError(f"this model reads text and pictures: found {kind!r}; choose another task")


def read_settings(given: Mapping[str, Any], mode: Mode) -> Overrides:
    """Our settings; greedy where the harness does not ask for variety."""
    settings: dict[str, Any] = {ours: given[name] for name, ours in SETTINGS.items() if given.get(name) is not None}
    samples = given.get("do_sample", settings.get("temperature", 0) > 0)
    if mode == "text" and (not samples or settings.get("temperature") == 0):
        kept = {name: value for name, value in settings.items() if name == "max_new_tokens"}
        return cast(Overrides, {"greedy": True, **kept})
    if mode != "text":
        return Overrides()  # a harness's settings are for words; pictures are sampled as the checkpoint says
    return cast(Overrides, settings)


def answer_chats(
    pipeline: Pipeline,
    chats: Sequence[Sequence[Message]],
    *,
    mode: Mode,
    settings: Overrides,
    seeds: Sequence[int],
    folder: Path,
) -> list[str]:
    """One answer for each chat; pictures go to the folder, named by their seed."""
    return [
        as_answer(parts, mode=mode, stem=f"{seed:08d}", folder=folder)
        for parts, seed in zip(pipeline.answer(chats, mode, seeds, **settings), seeds, strict=True)
    ]


def as_answer(parts: Sequence[str | Image.Image], *, mode: Mode, stem: str, folder: Path) -> str:
    """Words, or JSON of words and file names."""
    words = " ".join(part for part in parts if isinstance(part, str))
    if mode == "text":
        return words
    names = []
    for number, picture in enumerate(part for part in parts if not isinstance(part, str)):
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / f"{stem}-{number}.png").resolve()
        picture.save(path)
        names.append(str(path))
    return json.dumps({"text": words, "images": names})


def until(text: str, ends: Sequence[str] | str | None) -> str:
    """The text before the first of these ends."""
    for end in [ends] if isinstance(ends, str) else ends or []:
        text = text.split(end)[0] if end else text
    return text.strip()
