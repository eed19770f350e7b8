"""How the page looks and which event does what. Knows gradio and nothing of models.

The page loads nothing from elsewhere: system fonts, no analytics.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.components.chatbot import ExampleMessage

from demo.answer import Entry, Settings, stopped, user_entry

TITLE, SUBTITLE = "mllm", "One model that draws, answers and edits"
ASSETS = Path(__file__).parent / "assets"
STYLE_SHEET = ASSETS / "style.css"
FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]

LOADING: dict[str, Any] = {"concurrency_id": "loading", "concurrency_limit": None}
"""Of events that may load a model: answers of the others need not wait for them."""
Answer = Callable[..., Iterator[list[Entry]]]
"""answer(history, model, seed, guidance, temperature, top_k) yields the history with the answer growing."""


class Welcome(NamedTuple):
    """What an empty conversation shows."""

    knows: str  # what the model knows
    examples: Sequence[ExampleMessage]  # requests to click


def example(label: str, text: str, file: str | None = None) -> ExampleMessage:
    files, icon = [file] if file else [], file or str(ASSETS / "draw.svg")
    return {"text": text, "display_text": label, "files": files, "icon": icon}


def theme() -> gr.themes.Base:
    """Quiet grays, one blue, fonts of the system."""
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=MONO_FONTS
    ).set(
        body_background_fill="*neutral_50",
        block_border_width="0px",
        block_shadow="none",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        border_color_primary="*neutral_200",
    )


def build_page(
    answer: Answer,
    *,
    models: Mapping[str, Welcome],
    settings_of: Callable[[str], Settings],
    functions: Mapping[str, Callable[..., Any]],
) -> gr.Blocks:
    """`models`: those to choose among, by name; the page begins with the first."""
    first, *others = models
    defaults = settings_of(first)
    with gr.Blocks(analytics_enabled=False, title=TITLE, fill_height=True) as page:
        gr.HTML(f"<header><h1>{TITLE}</h1><p>{SUBTITLE}</p></header>", elem_id="masthead")
        chatbot = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            scale=1,
            height="auto",
            layout="bubble",
            buttons=[],
            **welcome(models[first]),
            group_consecutive_messages=False,
            latex_delimiters=[],
        )
        box = gr.MultimodalTextbox(
            elem_id="request",
            show_label=False,
            container=False,
            placeholder="Describe an image, or add one",
            file_types=["image"],
            file_count="multiple",
            max_lines=8,
            autofocus=True,
        )
        with gr.Accordion("Model and settings" if others else "Settings", open=False, elem_id="settings"), gr.Row():
            model = gr.Dropdown([first, *others], elem_id="model", label="Model", visible=bool(others))
            settings = [
                gr.Textbox(elem_id="seed", label="Seed", placeholder="random", max_lines=1),
                gr.Slider(1, 12, value=defaults.guidance, step=0.5, label="Guidance"),
                gr.Slider(0.1, 2, value=defaults.temperature, step=0.05, label="Temperature"),
                gr.Textbox(elem_id="top-k", label="Top-k", value=defaults.top_k, placeholder="all", max_lines=1),
            ]
        connect(answer, models, settings_of, chatbot, box, [model, *settings])
        add_api(functions)
    return page


def welcome(model: Welcome) -> dict[str, Any]:
    """Arguments of a chat; it gets examples of its own, since it replaces their files."""
    placeholder = f"{model.knows}\n\nTry one of these examples, or type your own request."
    return {"placeholder": placeholder, "examples": [copy.copy(each) for each in model.examples]}


def shown(settings: Settings) -> tuple[float, float, str | None]:
    return settings.guidance, settings.temperature, settings.top_k


def connect(
    answer: Answer,
    models: Mapping[str, Welcome],
    settings_of: Callable[[str], Settings],
    chatbot: gr.Chatbot,
    box: gr.MultimodalTextbox,
    settings: Sequence[Any],  # components, the model first
) -> None:
    """Sending, clicking an example, trying again, taking back, stopping, beginning anew, and choosing another model."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    is_busy = gr.State(False)
    inputs, outputs = [chatbot, is_busy], [box, chatbot, is_busy]
    asked = [
        box.submit(add_request, [box, *inputs], outputs, **quiet),
        chatbot.example_select(add_example, inputs, outputs, **quiet),
        chatbot.retry(back_to_request, inputs, outputs, **quiet),
    ]

    def load(name: str) -> None:
        """Outside the queue of answers; why a model cannot be loaded is said where it is to answer."""
        with suppress(gr.Error):
            settings_of(name)

    loading = [event.success(load, settings[0], None, **LOADING, **quiet) for event in asked]
    answering = [
        event.success(answer, [chatbot, *settings], chatbot, concurrency_id="model", **quiet) for event in loading
    ]
    for event in answering:
        event.then(lambda: (ready(), False), None, [box, is_busy], **quiet)
    chatbot.undo(take_back, chatbot, [box, chatbot], **quiet)
    running = asked + loading + answering
    stop = box.stop(None, None, None, cancels=running)
    stop.then(lambda history: (ready(), stopped(history), False), chatbot, outputs, **quiet)

    def begin(name: str, history: list[Any]) -> tuple[Any, Any, bool]:
        return ready(), gr.Chatbot(history, **welcome(models[name])), False

    def change(name: str, history: list[Entry], left: str, kept: dict[str, list[Entry]]) -> tuple[Any, ...]:
        """Each model has a conversation of its own, which is kept while another model is chosen."""
        if name == left:  # gradio reports every choice twice
            return (gr.skip(),) * 5
        kept = {**kept, left: stopped(history)}
        return *begin(name, kept.get(name, [])), name, kept

    model, _, *others = settings
    kept = [gr.State(model.value), gr.State({})]
    # an answer that still comes belongs to the conversation before
    cleared, chosen = (event(None, None, None, cancels=running) for event in (chatbot.clear, model.input))
    cleared.then(lambda name: begin(name, []), model, outputs, **quiet)
    chosen = chosen.then(change, [model, chatbot, *kept], [*outputs, *kept], **quiet)
    chosen.then(lambda name: shown(settings_of(name)), model, others, **LOADING, **quiet)


def add_api(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Named endpoints for programs: text, an image and a seed in, an image or a text out."""
    with gr.Row(visible=False):
        text, image = gr.Textbox(label="text"), gr.Image(label="image", type="filepath", image_mode=None)
        seed, button = gr.Number(label="seed", value=None, precision=0), gr.Button()
        answer, drawn = gr.Textbox(label="answer"), gr.Image(label="drawn", type="filepath", format="png")
        messages, reply = gr.JSON(label="messages"), gr.JSON(label="reply")
    for name, inputs, output in (
        ("draw", [text, seed], drawn),
        ("ask", [image, text], answer),
        ("edit", [image, text, seed], drawn),
        ("chat", [messages, seed], reply),
    ):
        button.click(functions[name], inputs, output, api_name=name, concurrency_id="model")


def ready() -> gr.MultimodalTextbox:
    """The box as it waits for a request."""
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)


def busy() -> gr.MultimodalTextbox:
    """The box, empty, while an answer comes."""
    return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)


def wait(is_busy: bool, *, is_empty: bool = False) -> None:
    """Leave the page as it is, what was typed included, where there is nothing to answer or an answer still comes."""
    if is_busy or is_empty:
        raise gr.Error("nothing to do", visible=False, print_exception=False)


def add_request(value: dict[str, Any], history: list[Entry], is_busy: bool) -> tuple[Any, list[Entry], bool]:
    wait(is_busy, is_empty=not (value["text"].strip() or value["files"]))
    return busy(), [*history, user_entry(value["text"].strip(), value["files"])], True


def add_example(selected: gr.SelectData, history: list[Entry], is_busy: bool) -> tuple[Any, list[Entry], bool]:
    wait(is_busy)
    files = [file["path"] if isinstance(file, dict) else file for file in selected.value.get("files") or []]
    return busy(), [*history, user_entry(selected.value["text"], files)], True


def back_to_request(clicked: gr.RetryData, history: list[Entry], is_busy: bool) -> tuple[Any, list[Entry], bool]:
    """The history up to the request whose answer is to be tried again."""
    wait(is_busy)
    return busy(), history[: last_request(history, clicked.index) + 1], True


def take_back(clicked: gr.UndoData, history: list[Entry]) -> tuple[Any, list[Entry]]:
    """Remove the last request and its answer, and put the request back into the box."""
    index = last_request(history, clicked.index)
    text = " ".join(html.unescape(part["text"]) for part in history[index]["content"] if part["type"] == "text")
    files = [part["file"]["path"] for part in history[index]["content"] if part["type"] == "file"]
    return gr.MultimodalTextbox(value={"text": text, "files": files}), history[:index]


def last_request(history: list[Entry], index: Any) -> int:
    """Where the request at or before an entry is."""
    at = index if isinstance(index, int) else index[0]
    while at > 0 and history[at]["role"] != "user":
        at -= 1
    return at
