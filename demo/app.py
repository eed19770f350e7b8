"""`mllm demo`: load a model, build the page, serve it."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.answer import Defaults, Settings, stream_answer
from demo.history import Entry
from demo.page import ASSETS, STYLE_SHEET, Example, build_page, theme
from mllm.cli.main import load_pipeline
from mllm.pipeline import Pipeline
from mllm.sampling import SamplingConfig, pick

TITLE = "mllm"
SUBTITLE = "One model that draws, answers and edits"

CIRCLE_AND_SQUARE = str(ASSETS / "circle-and-square.png")
STAR_HEART_TRIANGLE = str(ASSETS / "star-heart-triangle.png")
EXAMPLES = [
    Example(
        label="A red circle left of a blue square",
        text="a large red circle to the left of a small blue square on a white background",
    ),
    Example(label="Three yellow stars on black", text="three small yellow stars on a black background"),
    Example(label="What color is the circle?", text="What color is the circle?", files=(CIRCLE_AND_SQUARE,)),
    Example(label="Describe this picture", text="Describe the picture.", files=(STAR_HEART_TRIANGLE,)),
    Example(label="Make the circle green", text="Make the circle green.", files=(CIRCLE_AND_SQUARE,)),
    Example(label="Estimate its depth", text="Depth estimation.", files=(STAR_HEART_TRIANGLE,)),
]


def serve(arguments: Namespace) -> None:
    """Serve until interrupted."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    pipeline = load_pipeline(arguments)
    page = build_demo(pipeline)
    page.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        theme=theme(),
        css_paths=STYLE_SHEET,
        footer_links=[],
        ssr_mode=False,
    )


def build_demo(pipeline: Pipeline) -> Any:
    """The page of this pipeline, not yet served."""
    folder = Path(tempfile.mkdtemp(prefix="mllm-demo-"))
    defaults = defaults_of(pipeline.image_settings("chat"))

    def answer(
        history: list[Entry], seed: str | None, guidance: float, temperature: float, top_k: str | None
    ) -> Iterator[list[Entry]]:
        settings = Settings(seed=seed, guidance=guidance, temperature=temperature, top_k=top_k, defaults=defaults)
        yield from stream_answer(pipeline, history, settings, folder=folder)

    return build_page(
        answer,
        title=TITLE,
        subtitle=SUBTITLE,
        examples=EXAMPLES,
        defaults=defaults,
    )


def defaults_of(sampling: SamplingConfig) -> Defaults:
    """What the settings show at first; a setting that differs by codebook is shown by its first value."""
    top_k = None if sampling.top_k is None else pick(sampling.top_k, 0)
    return Defaults(guidance=sampling.guidance, temperature=pick(sampling.temperature, 0), top_k=top_k)
