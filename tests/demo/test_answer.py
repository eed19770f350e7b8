"""The chat of the page and the messages of the pipeline are the same conversation."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from PIL import Image

from demo.answer import (
    BAR,
    Settings,
    answer_entry,
    error_entry,
    progress_part,
    stopped,
    to_messages,
    user_entry,
)
from mllm.conversation import ImagePart, TextPart

DEFAULTS = Settings(guidance=3.0, temperature=1.0, top_k="")


def as_sent_back(entry: dict) -> dict:
    """An entry as the page returns it: pictures are files with a type."""
    parts = [p if p.get("type") == "text" else {"type": "file", "file": {"path": p["path"]}} for p in entry["content"]]
    return {"metadata": {}, **entry, "content": parts}


def test_texts_and_pictures_become_messages_in_order(tmp_path: Path) -> None:
    Image.new("RGB", (5, 7), "red").save(tmp_path / "a.png")
    request = user_entry("What is <b>this</b>?", [str(tmp_path / "a.png")])
    messages = to_messages([as_sent_back(request), as_sent_back(answer_entry([{"type": "text", "text": "red"}]))])
    assert [message.role for message in messages] == ["user", "assistant"]
    picture, text = messages[0].parts
    assert isinstance(picture, ImagePart) and picture.image.size == (5, 7)
    assert text == TextPart("What is <b>this</b>?")
    markdown = "# 1. *a* [b](c) <img src=x> &amp; $d$\\n    `e`"
    shown = user_entry(markdown, [])["content"][0]["text"]
    assert not re.search(r"[#*\[<$\\`]|&(?!#)|1\.|^ ", shown.replace("&#", ""), re.MULTILINE)
    assert html.unescape(shown) == markdown


def test_a_request_that_failed_is_no_part_of_the_conversation() -> None:
    history = [
        user_entry("one", []),
        error_entry("too <long>"),
        user_entry("two", []),
        answer_entry([{"type": "text", "text": "yes"}]),
        error_entry("no room"),
        user_entry("three", []),
    ]
    texts = [message.parts[0].text for message in to_messages([as_sent_back(entry) for entry in history])]
    assert texts == ["two", "yes", "three"]
    assert "&lt;long&gt;" in history[1]["content"][0]["text"]


def test_an_unreadable_upload_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError):
        to_messages([as_sent_back(user_entry("look", [str(tmp_path / "a.png")]))])


def test_stopping_removes_the_picture_that_was_being_drawn() -> None:
    text = {"type": "text", "text": "Here it is:"}
    half = [user_entry("draw", []), answer_entry([text, progress_part(0.3)])]
    assert stopped(half)[-1]["content"] == [text]
    only_bar = stopped([half[0], answer_entry([progress_part(0.3)])])
    assert len(only_bar) == 2 and BAR not in str(only_bar) and to_messages(only_bar) == []
    assert len(stopped([half[0]])) == 2


def test_settings_left_alone_are_left_to_the_model() -> None:
    untouched = Settings(seed="", guidance=3.0, temperature=1.0, top_k=None)
    assert untouched.overrides(DEFAULTS) == {"seed": None}
    changed = Settings(seed=" 7 ", guidance=5.0, temperature=1.0, top_k="40")
    assert changed.overrides(DEFAULTS) == {"seed": 7, "guidance": 5.0, "top_k": 40}
    with pytest.raises(ValueError):
        Settings(seed="x", guidance=3.0, temperature=1.0, top_k="").overrides(DEFAULTS)
