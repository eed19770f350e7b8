"""One answer, growing: the pipeline's events in, the history to show out, again and again while the answer comes.

Text is shown as it comes and a picture as the share of it that is done. An error becomes an entry of the history, in
words. Knows neither gradio nor the model, only events.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from demo.history import Entry, answer_entry, error_entry, file_part, to_messages
from mllm.pipeline import Done, Event, ImageDone, ImageProgress, Pipeline, TextDelta
from mllm.processor import save_image

NO_ANSWER = "The model answered nothing; ask in other words."
NO_ROOM = "There is no room left for another picture in this conversation; begin a new one."
STOPPED = "Stopped."
BAR = '<div class="drawing">'


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What the settings show at first."""

    guidance: float
    temperature: float
    top_k: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What stands in the fields under "Settings", and what stood there at first."""

    seed: str | None
    """Digits, or nothing for a new one each time."""
    guidance: float
    temperature: float
    top_k: str | None
    """Digits, or nothing for all."""
    defaults: Defaults

    def overrides(self) -> dict[str, Any]:
        """As keyword arguments of the pipeline. What was left alone is left to the model."""
        chosen = {
            "guidance": self.guidance,
            "temperature": self.temperature,
            "top_k": read_count(self.top_k, name="Top-k"),
        }
        changed = {name: value for name, value in chosen.items() if value != getattr(self.defaults, name)}
        return {"seed": read_count(self.seed, name="Seed"), **changed}


def read_count(text: str | None, *, name: str) -> int | None:
    """The whole number in a field that may be left empty."""
    if not text or not text.strip():
        return None
    if not text.strip().isdecimal():
        raise ValueError(f"{name} is not a whole number: found {text!r}; type digits, or leave it empty")
    return int(text)


def stream_answer(
    pipeline: Pipeline, history: list[Entry], settings: Settings, *, folder: Path
) -> Iterator[list[Entry]]:
    """Answer the last request of `history`; pictures are written to `folder`."""
    content: list[dict[str, Any]] = []
    try:
        # closed even if the page stops listening: the pipeline answers nobody else until then
        with closing(pipeline.chat(to_messages(history), **settings.overrides())) as events:
            for event in events:
                show(event, content, folder)
                if content:
                    yield [*history, answer_entry(list(content))]
                if isinstance(event, Done) and event.image_refused:
                    yield [*history, answer_entry(content), error_entry(NO_ROOM)]
        if not content:
            yield [*history, error_entry(NO_ANSWER)]
    except ValueError as error:
        yield [*history, error_entry(sentence(error))]


def show(event: Event, content: list[dict[str, Any]], folder: Path) -> None:
    """Put an event into the content of the answer."""
    match event:
        case TextDelta(text=text) if text:
            add_text(content, text)
        case ImageProgress(done=done, total=total):
            drop_progress(content)
            content.append(progress_part(done / total))
        case ImageDone(image=image):
            drop_progress(content)
            content.append(file_part(write_picture(image, folder)))
        case _:
            pass


def stopped(history: list[Entry]) -> list[Entry]:
    """The history after its last answer was cut off: without a picture that was being drawn."""
    if not history or history[-1]["role"] == "user":
        return [*history, error_entry(STOPPED)] if history else []
    content = list(history[-1]["content"])
    drop_progress(content)
    return [*history[:-1], answer_entry(content) if content else error_entry(STOPPED)]


def add_text(content: list[dict[str, Any]], text: str) -> None:
    """Lengthen the last text, or begin one after a picture."""
    if content and content[-1].get("type") == "text":
        content[-1] = {"type": "text", "text": content[-1]["text"] + text}
    else:
        content.append({"type": "text", "text": text})


def progress_part(share: float) -> dict[str, Any]:
    """A bar in place of the picture that is being drawn."""
    percent = round(100 * share)
    bar = f'<progress value="{percent}" max="100"></progress><span>Drawing {percent} %</span>'
    return {"type": "text", "text": f"{BAR}{bar}</div>"}


def drop_progress(content: list[dict[str, Any]]) -> None:
    """Remove the bar, if one is last."""
    if content and content[-1].get("text", "").startswith(BAR):
        content.pop()


def write_picture(image: Image.Image, folder: Path) -> Path:
    """A new file in `folder`."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="picture-", suffix=".png", delete=False) as file:
        save_image(image, file.name)
    return Path(file.name)


def sentence(error: ValueError) -> str:
    """The error's message as a sentence."""
    text = " ".join(str(error).split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
