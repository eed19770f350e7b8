"""LLaVA instruction data: a JSON array (or lines) of dialogues with `<image>` where a picture stands.

    {"image": "a.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "A cat."}]}

`image` is one path or a list of them; without it the dialogue is text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm.conversation import CodesPart, TextPart
from train.data.importers.pictures import find_picture
from train.data.records import BadRecord, Picture, Record, RecordPart, Turn, chat_record

MARKER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_llava(fields: dict[str, Any], folder: Path) -> Record:
    """The record of one dialogue."""
    named = fields.get("image", fields.get("images"))
    names = [] if named is None else named if isinstance(named, list) else [named]
    return chat_record(turns_of(fields.get("conversations"), [find_picture(name, folder) for name in names]))


def turns_of(conversation: Any, pictures: list[Picture] | list[CodesPart]) -> list[Turn]:
    """Turns of LLaVA's list, with the pictures at their markers."""
    is_list = isinstance(conversation, list) and all(isinstance(turn, dict) for turn in conversation)
    if not is_list:
        raise BadRecord(f"conversations must be a list of turns: found {type(conversation).__name__}; mend the record")
    values = [str(turn.get("value", "")) for turn in conversation]
    num_markers = sum(value.count(MARKER) for value in values)
    if num_markers != len(pictures):
        raise BadRecord(
            f"the dialogue has {num_markers} image markers but {len(pictures)} images; "
            "add or remove <image> so that they match"
        )
    left = iter(pictures)
    turns: list[Turn] = []
    system = ""
    for turn, value in zip(conversation, values, strict=True):
        match ROLES.get(str(turn.get("from"))):
            case "system":
                system = value.strip() + "\n"
            case "user":
                turns.append(Turn("user", tuple(_parts(system + value, left))))
                system = ""
            case "assistant":
                turns.append(Turn("assistant", tuple(_parts(value, left))))
            case _:
                raise BadRecord(f"unknown speaker: found {turn.get('from')!r}; use human and gpt")
    return turns


def _parts(value: str, pictures: Iterator[Any]) -> Iterator[RecordPart]:
    for index, text in enumerate(value.split(MARKER)):
        if index:
            yield next(pictures)
        if text.strip():
            yield TextPart(text.strip())
