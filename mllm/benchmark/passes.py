"""How many passes of the network an image takes: `mllm benchmark passes`.

Without speculation there are as many passes as positions are sampled: every word of a plan, every position of an image.
Each drawing has another prompt and seed, and each edit changes the drawing before it. Counts do not depend on the
machine but for rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from mllm.benchmark.work import COLORS, PROMPTS
from mllm.pipeline import Event, ImageProgress, Pipeline


class Passes(NamedTuple):
    """Of one image."""

    words: int  # its plan and, where an image is edited, the description of that
    codes: int


def count_passes(pipeline: Pipeline, *, count: int) -> dict[str, dict[str, Any]]:
    """Passes of `count` drawings and of as many edits."""
    drawings, edits = [], []
    for seed in range(count):
        settings = {"seed": seed, "resamples": 0}
        prompt, color = PROMPTS[seed % len(PROMPTS)], COLORS[seed // len(PROMPTS) % len(COLORS)]
        (image,), passes = passes_of(pipeline, partial(pipeline.draw, prompt, **settings))
        drawings.append(passes)
        _, passes = passes_of(pipeline, partial(pipeline.edit, image, f"Make the circle {color}.", **settings))
        edits.append(passes)
    return {"drawing": summary(drawings), "edit": summary(edits)}


def passes_of(pipeline: Pipeline, make: Callable[..., Any]) -> tuple[Any, Passes]:
    """What a call of the pipeline makes, and the passes that it took."""
    turns_of_codes: set[int] = set()
    engine, first = pipeline.engine, pipeline.engine.turn

    def note(event: Event) -> None:
        if isinstance(event, ImageProgress):
            turns_of_codes.add(engine.turn)

    made = make(on_event=note)
    codes = len(turns_of_codes)
    return made, Passes(engine.turn - first - codes, codes)


def summary(passes: list[Passes]) -> dict[str, Any]:
    return {
        name: {"mean": sum(values) / len(values), "most": max(values), "counts": values}
        for name, values in zip(Passes._fields, zip(*passes, strict=True), strict=True)
    }


def as_table(report: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':<12}{'':<8}{'mean':>8}{'most':>6}"]
    for image, parts in report.items():
        for name, found in parts.items():
            lines.append(f"{image:<12}{name:<8}{found['mean']:>8.2f}{found['most']:>6}")
    return "\n".join(lines)
