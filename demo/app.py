"""`mllm demo`: load a model, build the page, serve it."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.answer import Entry, Settings, stream_answer
from demo.page import ASSETS, STYLE_SHEET, Example, build_page, theme
from mllm.cli.main import load_pipeline
from mllm.pipeline import Pipeline

TITLE = "mllm"
SUBTITLE = "One model that draws, answers and edits"
FIRST, SECOND = str(ASSETS / "circle-and-square.png"), str(ASSETS / "star-heart-triangle.png")
EXAMPLES = [
    Example(
        "A red circle left of a blue square",
        "a large red circle to the left of a small blue square on a white background",
    ),
    Example("Three yellow stars on black", "three small yellow stars on a black background"),
    Example("What color is the circle?", "What color is the circle?", FIRST),
    Example("Describe this picture", "Describe the picture.", SECOND),
    Example("Make the circle green", "Make the circle green.", FIRST),
    Example("Estimate its depth", "Depth estimation.", SECOND),
]


def serve(options: Namespace) -> None:
    """Serve until interrupted."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    build_demo(load_pipeline(options)).launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        theme=theme(),
        css_paths=STYLE_SHEET,
        footer_links=[],
        ssr_mode=False,
    )


def build_demo(pipeline: Pipeline) -> Any:
    """The page of this pipeline, not yet served."""
    folder = Path(tempfile.mkdtemp(prefix="mllm-demo-"))
    defaults = Settings.of(pipeline.image_settings("chat"))

    def answer(
        history: list[Entry], seed: str | None, guidance: float, temperature: float, top_k: str | None
    ) -> Iterator[list[Entry]]:
        settings = Settings(seed=seed, guidance=guidance, temperature=temperature, top_k=top_k)
        yield from stream_answer(pipeline, history, settings, defaults, folder=folder)

    return build_page(answer, title=TITLE, subtitle=SUBTITLE, examples=EXAMPLES, defaults=defaults)
