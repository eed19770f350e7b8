"""The conversation of the page, and one answer to it, growing: the page's history in, the history to show out.

The history is the only state of a conversation: a list of {role, content, metadata} dicts whose content is a list of
texts and files. It is turned into messages for the pipeline, and the pipeline's events into entries to show: text as it
comes, an image as previews and the share that is done, an error as its message. Knows neither gradio nor the model.
"""

from __future__ import annotations

import base64
import html
import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.conversation import ImagePart, Message, TextPart
from mllm.files import write_image
from mllm.pipeline import Done, Event, ImageDone, ImagePreview, ImageProgress, Pipeline, TextDelta
from mllm.processor import save_image
from mllm.sampling import pick
from tokenizer.images import read_image

NO_ANSWER = "The model returned an empty answer. Try to reword your request."
NO_ROOM = "This conversation has no room left for another image. Start a new conversation."
STOPPED = "Stopped."
FAILED = "The answer failed because of an internal error; see the log for details. Try again, or reword your request."
NOTE = '<div class="note">'
LEFT_OUT = NOTE + "The oldest {} messages no longer fit into the model's context and were left out.</div>"
MAX_SIDE = 2048  # longer side of an upload that is kept as it is, in pixels
SHOWN_BY_BROWSERS = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"}
BAR = '<div class="drawing">'
NUM_PREVIEWS = 4  # of an image while it is drawn, at most; one that is not decoded before the next is left out
PREVIEW = re.compile("<img [^>]*>")
ALL_CODES = 2**16  # the top-k of an empty field: as many as a codebook can have
FAILURE = "failure"
"""Marks an error shown as an answer. It and the request before it are not part of the conversation that is answered."""

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
Content = list[dict[str, Any]]


# ---- settings ----


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The values of the fields under "Settings"; seed and top-k are texts, as typed, or nothing."""

    seed: str | None = None
    guidance: float
    temperature: float
    top_k: str | None

    def overrides(self, defaults: Settings) -> dict[str, Any]:
        """Keyword arguments of the pipeline; what does not differ from the model's own is left to it."""
        changed: dict[str, Any] = {"seed": read_count(self.seed, name="Seed")}
        for name in ("guidance", "temperature"):
            if getattr(self, name) != getattr(defaults, name):
                changed[name] = getattr(self, name)
        if (self.top_k or "") != (defaults.top_k or ""):
            top_k = read_count(self.top_k, name="Top-k")
            changed["top_k"] = ALL_CODES if top_k is None else top_k
        return changed


def settings_of(pipeline: Pipeline) -> Settings:
    """A checkpoint's settings; one that differs by codebook is shown by its first value."""
    sampling = pipeline.requests.image_settings("chat", {})
    top_k = "" if sampling.top_k is None else str(pick(sampling.top_k, 0))
    return Settings(guidance=sampling.guidance, temperature=pick(sampling.temperature, 0), top_k=top_k)


def read_count(text: str | None, *, name: str) -> int | None:
    if not text or not text.strip():
        return None
    if not text.strip().isdecimal():
        raise ValueError(f"{name} must be an integer, got {text!r}; type digits, or leave it empty")
    return int(text)


# ---- the history ----


def user_entry(text: str, files: list[str]) -> Entry:
    """A request to show: the images, then the text."""
    texts = [{"type": "text", "text": literal(text)}] if text else []
    return {"role": "user", "content": [{"path": reduced(file)} for file in files] + texts}


def literal(text: str) -> str:
    """Markdown that shows what was typed: characters that are entities have no meaning of their own."""
    text = re.sub(r"[#$&()*+/:<=>@\[\\\]_`{|}~-]|(?<=\d)\.|(?<=www)\.", lambda mark: f"&#{ord(mark[0])};", text)
    return re.sub(r"^ +", lambda spaces: "&#32;" * len(spaces[0]), text, flags=re.MULTILINE)


def reduced(file: str) -> str:
    """The file of an upload, or of a copy that browsers show and later turns need not read at full size again."""
    try:
        image = read_image(file)
    except (ValueError, FileNotFoundError):
        return file  # refused with a sentence when it is to be answered
    if max(image.size) <= MAX_SIDE and Path(file).suffix.lower() in SHOWN_BY_BROWSERS:
        return file
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    small = Path(f"{file}.reduced.png")
    write_image(small, image)
    return str(small)


def answer_entry(content: Content) -> Entry:
    return {"role": "assistant", "content": content}


def error_entry(sentence: str) -> Entry:
    text = f'<div class="failure">{html.escape(sentence)}</div>'
    return answer_entry([{"type": "text", "text": text}]) | {"metadata": {"id": FAILURE}}


def to_messages(history: list[Entry]) -> list[Message]:
    """What the pipeline reads: the history less every request that was answered by an error."""
    kept: list[Entry] = []
    for entry in history:
        if (entry.get("metadata") or {}).get("id") != FAILURE:
            kept.append(entry)
        elif kept and kept[-1]["role"] == "user":
            kept.pop()
    return [Message(entry["role"], tuple(to_parts(entry["content"]))) for entry in kept]


def to_parts(content: Content) -> Iterator[TextPart | ImagePart]:
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                if not text.startswith(NOTE):  # which the page says, not the model
                    yield TextPart(html.unescape(text))
            case {"type": "file", "file": {"path": str(path)}}:
                yield ImagePart(read_image(path, name="the uploaded file"))
            case _:
                raise ValueError(f"a message must hold text and images only, got {part.get('type')!r}")


def stopped(history: list[Entry]) -> list[Entry]:
    """The history after its last answer was cut off: without an image that was being drawn."""
    if not history or history[-1]["role"] == "user":
        return [*history, error_entry(STOPPED)] if history else []
    content = list(history[-1]["content"])
    drop_progress(content)
    return [*history[:-1], answer_entry(content) if content else error_entry(STOPPED)]


# ---- the answer ----


def stream_answer(
    find: Callable[[], Pipeline], history: list[Entry], settings: Settings, *, folder: Path
) -> Iterator[list[Entry]]:
    """Answer the last request of `history` by the pipeline that `find` gives; images are written to `folder`."""
    content: Content = []
    try:
        pipeline, asked = find(), to_messages(history)
        kept = pipeline.shorten(asked)
        if len(kept) < len(asked):
            content.append({"type": "text", "text": LEFT_OUT.format(len(asked) - len(kept))})
        num_notes = len(content)
        # closed even if the page stops listening: what nobody waits for is not decoded further
        every = max(1, pipeline.config.grid_side**2 // (NUM_PREVIEWS + 1))
        overrides = {"preview_every": every, **settings.overrides(settings_of(pipeline))}
        with closing(pipeline.chat(kept, **overrides)) as events:
            for event in events:
                show(event, content, folder)
                if content:
                    yield [*history, answer_entry(list(content))]
                if isinstance(event, Done) and (event.result.image_refused or len(content) == num_notes):
                    answer = [answer_entry(content)] if len(content) > num_notes else []
                    yield [*history, *answer, error_entry(NO_ROOM if event.result.image_refused else NO_ANSWER)]
    except (ValueError, FileNotFoundError) as error:
        yield [*history, error_entry(as_sentence(error))]
    except Exception:  # whatever it is, the page must stay usable
        logger.exception("an answer failed")
        yield [*history, error_entry(FAILED)]


def show(event: Event, content: Content, folder: Path) -> None:
    """Put an event into the content of the answer."""
    match event:
        case TextDelta(text=text) if text:
            text = html.escape(text, quote=False)
            if content and content[-1].get("type") == "text" and not content[-1]["text"].startswith(NOTE):
                text = content.pop()["text"] + text
            content.append({"type": "text", "text": text})
        case ImagePreview(image=image, done=done, codes=codes):
            share, _ = drop_progress(content)
            content.append(progress_part(share, preview_tag(image, done, codes.grid)))
        case ImageProgress(done=done, total=total):
            _, preview = drop_progress(content)
            content.append(progress_part(done / total, preview))
        case ImageDone(image=image):
            drop_progress(content)
            with tempfile.NamedTemporaryFile(dir=folder, prefix="image-", suffix=".png", delete=False) as file:
                save_image(image, file.name)
            content.append({"path": file.name})


def preview_tag(image: Image.Image, done: int, grid: tuple[int, int]) -> str:
    """The image, faint from the first row of positions on that is not all there: what is guessed may be noise."""
    rows, columns = grid
    opacity, file = Image.new("L", (1, rows), 50), io.BytesIO()
    opacity.paste(255, (0, 0, 1, done // columns))
    image = image.convert("RGB")
    image.putalpha(opacity.resize(image.size))
    image.save(file, "WEBP")
    return f'<img alt="preview" src="data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}">'


def progress_part(share: float = 0.0, preview: str = "") -> dict[str, Any]:
    percent = round(100 * share)
    bar = f'<progress value="{percent}" max="100"></progress><span>Drawing {percent} %</span>'
    return {"type": "text", "text": f"{BAR}{preview}{bar}</div>"}


def drop_progress(content: Content) -> tuple[float, str]:
    """Take the progress of an image out; the share that it showed, and the preview."""
    if not (content and content[-1].get("text", "").startswith(BAR)):
        return 0.0, ""
    text = content.pop()["text"]
    preview = PREVIEW.search(text)
    return int(text.split('value="')[1].split('"')[0]) / 100, preview[0] if preview else ""


def as_sentence(error: ValueError | FileNotFoundError) -> str:
    text = " ".join(str(error).split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
