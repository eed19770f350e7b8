"""`mllm demo`: load a model, build the page, serve it."""

from __future__ import annotations

import base64
import errno
import io
import logging
import os
import socket
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from pathlib import Path
from threading import Lock
from typing import Any

from demo.answer import FAILED, Entry, Settings, as_sentence, settings_of, stream_answer
from demo.page import ASSETS, STYLE_SHEET, Welcome, build_page, example, theme
from mllm.checkpoint import BUNDLED_MODELS, installed_models
from mllm.cli.main import load_pipeline
from mllm.pipeline import ImageDone, Pipeline, TextDelta
from tokenizer.images import read_image

logger = logging.getLogger(__name__)

FIRST, SECOND = str(ASSETS / "circle-and-square.png"), str(ASSETS / "star-heart-triangle.png")
HONEYBEE, ASTRONAUT, VEIL = (str(ASSETS / f"{name}.png") for name in ("honeybee", "astronaut", "veil"))
SHAPES = Welcome(
    "This small model knows circles, squares, triangles, stars, crosses and hearts in six colors.",
    [
        example(
            "A red circle left of a blue square",
            "a large red circle to the left of a small blue square on a white background",
        ),
        example("Three yellow stars on black", "three small yellow stars on a black background"),
        example("What color is the circle?", "What color is the circle?", FIRST),
        example("Describe this image", "Describe the image.", SECOND),
        example("Make the circle green", "Make the circle green.", FIRST),
        example("Estimate the depth", "Depth estimation.", SECOND),
    ],
)
EMOJI = Welcome(
    "This small model knows about 1,300 emoji in two styles, flat and gradient.",
    [
        example("An octopus, flat", "Draw an octopus, flat style."),
        example("A fox, gradient", "Draw a fox, gradient style."),
        example("What is this?", "What is this?", HONEYBEE),
        example("Which style is it in?", "Which style is this?", HONEYBEE),
        example("Make the skin dark", "Make the skin dark.", ASTRONAUT),
        example("A woman instead", "A woman instead.", VEIL),
    ],
)
BUNDLED = {"tiny": ("Shapes", SHAPES), "emoji": ("Emoji", EMOJI)}
"""What the page calls the bundled models, and how each of them is introduced."""


def serve(options: Namespace) -> None:
    require_free(options.host, options.port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    build_demo(load_models(options)).launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        theme=theme(),
        css_paths=STYLE_SHEET,
        favicon_path=ASSETS / "draw.svg",
        footer_links=[],
        ssr_mode=False,
    )


def require_free(host: str, port: int | None) -> None:
    """Refuse a port that another program listens on."""
    if port is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = f"host must be one of this machine, got {host}"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                what = f"port must be a free port, got {port}"
            raise ValueError(f"--{what} ({error.strerror}); choose another") from error


class Models:
    """The models that a visitor chooses among, by what the page calls them; each is loaded when it is first wanted.

    While one is loaded, the others answer.
    """

    def __init__(self, first: str, pipeline: Pipeline, others: Mapping[str, Callable[[], Pipeline]]) -> None:
        self.first, self.names, self._others = first, [first, *others], others
        self._loaded, self._locks = {first: pipeline}, {name: Lock() for name in self.names}

    def __getitem__(self, name: str) -> Pipeline:
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = self._others[name]()
            return self._loaded[name]


def load_models(options: Namespace) -> Models:
    """The model of --model, and the bundled ones beside it, which the options apply to as well."""
    chosen = options.model or BUNDLED_MODELS[0]
    label = BUNDLED[chosen][0] if chosen in BUNDLED else Path(chosen).name
    others = {
        BUNDLED[name][0]: partial(load_pipeline, Namespace(**{**vars(options), "model": name}))
        for name in installed_models()
        if name != chosen
    }
    return Models(f"{label} (--model)" if label in others else label, load_pipeline(options), others)


def build_demo(models: Models) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="mllm-demo-"))
    bundled = dict(BUNDLED.values())

    def answer(
        history: list[Entry], name: str, seed: str | None, guidance: float, temperature: float, top_k: str | None
    ) -> Iterator[list[Entry]]:
        settings = Settings(seed=seed, guidance=guidance, temperature=temperature, top_k=top_k)
        yield from stream_answer(lambda: models[name], history, settings, folder=folder)

    return build_page(
        answer,
        models={name: bundled.get(name, Welcome("", SHAPES.examples)) for name in models.names},
        settings_of=in_words(lambda name: settings_of(models[name])),
        functions={name: in_words(function) for name, function in api_of(models[models.first]).items()},
    )


def api_of(pipeline: Pipeline) -> dict[str, Callable[..., Any]]:
    read = partial(read_image, name="the image")

    def chat(messages: list[dict[str, Any]], seed: int | None) -> list[dict[str, str]]:
        """Hugging Face chat dicts, their images as `data:` URLs; the answer is a list of such items."""
        for item in (item for turn in messages for item in turn["content"] if isinstance(item, dict)):
            if item.get("type") == "image" and not str(item.get("url")).startswith("data:"):
                raise ValueError(
                    "images of a chat must be data: URLs under the key url, got something else; encode them"
                )
        reply: list[dict[str, str]] = []
        for event in pipeline.chat(pipeline.shorten(messages), seed=seed):
            if isinstance(event, TextDelta):
                if not (reply and reply[-1]["type"] == "text"):
                    reply.append({"type": "text", "text": ""})
                reply[-1]["text"] += event.text
            elif isinstance(event, ImageDone):
                stream = io.BytesIO()
                event.image.save(stream, "PNG")
                data = base64.b64encode(stream.getvalue()).decode()
                reply.append({"type": "image", "url": f"data:image/png;base64,{data}"})
        return reply

    return {
        "draw": lambda text, seed: pipeline.draw(text, seed=seed)[0],
        "ask": lambda image, text: pipeline.ask(read(image), text),
        "edit": lambda image, text, seed: pipeline.edit(read(image), text, seed=seed),
        "chat": chat,
    }


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with errors that gradio passes on to its caller."""

    @wraps(function)
    def call(*values: Any) -> Any:
        import gradio as gr

        try:
            return function(*values)
        except (ValueError, FileNotFoundError) as error:
            raise gr.Error(as_sentence(error), print_exception=False) from error
        except Exception as error:
            logger.exception("a call failed")
            raise gr.Error(FAILED, print_exception=False) from error

    return call
