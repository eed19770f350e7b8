"""What a question of the solver asks for: its words, recognised by the fixed sentences of Lumina-mGPT's tasks.

In: the last question as typed, with its placeholders. Out: a task, the kind of answer, the words that go to the model
and the size that they name. Every other question is one for the model to answer as it likes. Knows no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mllm.modes import Mode
from mllm.sizes import Size

PLACEHOLDER = "<|image|>"
ESCAPED = "\\" + PLACEHOLDER
"""How a user writes the placeholder itself."""


@dataclass(frozen=True, slots=True)
class SolverTask:
    """A kind of question."""

    name: str
    pattern: re.Pattern[str]
    """Of the words without placeholders; the groups `width`, `height` and `words` mean what they say."""
    mode: Mode
    capabilities: tuple[str, ...]
    """Tasks of a checkpoint, any of which will do (see `MLLMConfig.tasks`)."""
    num_images: int


@dataclass(frozen=True, slots=True)
class Question:
    """The last question, understood."""

    mode: Mode
    capabilities: tuple[str, ...]
    size: Size | None = None
    words: str | None = None  # in place of the whole text; None: as typed


def _task(name: str, pattern: str, mode: Mode, *capabilities: str, num_images: int = 1) -> SolverTask:
    return SolverTask(name, re.compile(pattern, re.DOTALL), mode, capabilities, num_images)


TASKS = (
    _task(
        "text to image",
        r"Generate an image of (?P<width>\d+) ?x ?(?P<height>\d+) according to the following prompt:\s*(?P<words>.*)",
        "image",
        "draw",
        num_images=0,
    ),
    _task("description", r"Describe the image in detail\.?", "text", "describe", "ask"),
    _task("depth", r"Depth estimation\.?", "image", "depth"),
    # "Segmentic" is how the published task is spelled
    _task("segmentation", r"(Segmentic|Semantic) segmentation\.?", "image", "segment"),
    _task("surface normals", r"Surface normal estimation\.?", "image", "normal"),
    _task("pose", r"Human pose estimation\.?", "image", "pose"),
    _task("detection", r"Detect: .+", "image", "detect"),
    _task(
        "condition to image",
        r"Generate an image according to the provided image, and according to the following caption:\s*.+",
        "image",
        "condition",
    ),
)
REWORDED = {"segmentation": "Semantic segmentation."}
"""Words of a task as models are trained on them here, where the published ones differ."""
DEFAULT_TASKS: dict[Mode, tuple[str, ...]] = {
    "text": ("ask", "describe"),
    "image": ("draw", "edit"),
    "interleaved": ("chat",),
}


def understand(text: str, mode: Mode | None) -> Question:
    """What a question asks for; a mode that is given goes before what its words suggest."""
    words, num_images = split_placeholders(text)
    bare = " ".join(word.strip() for word in words if word.strip())
    for task in TASKS:
        found = task.pattern.fullmatch(bare)
        if not found or task.num_images != num_images or mode not in (None, task.mode):
            continue
        groups = found.groupdict()
        size = (int(groups["width"]), int(groups["height"])) if groups.get("width") else None
        return Question(task.mode, task.capabilities, size, groups.get("words") or REWORDED.get(task.name))
    mode = mode or "interleaved"
    if mode == "image":
        return Question(mode, ("edit",) if num_images else ("draw",))
    return Question(mode, DEFAULT_TASKS[mode])


def split_placeholders(text: str) -> tuple[list[str], int]:
    """The words around the placeholders (one more piece than there are placeholders), escapes resolved."""
    pieces = re.split(r"(?<!\\)" + re.escape(PLACEHOLDER), text)
    return [piece.replace(ESCAPED, PLACEHOLDER) for piece in pieces], len(pieces) - 1
