"""What is asked of one row of a decoding batch, and what comes out.

A request is checked as far as it can be without a model: contradictions here, room for its answer in `count_budget`.

Letters: K codebooks, N positions of one image, T places of a sequence, V text vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Mode, check_mode
from mllm.sampling import SamplingConfig
from mllm.sequence import Grid, ImageLayout, TokenSequence

TextProcessor = Callable[[Tensor, Tensor], Tensor]
"""A logits processor of transformers: ids (1, T) so far and text logits (1, V) to changed logits."""
FinishReason = Literal["eos", "length", "image"]

OUTLINE_BUDGET = 64
"""Tokens of an outline at most; then the image begins."""


NUM_SEEDS = 2**63
"""Seeds are 0 to one less."""


@dataclass(frozen=True, slots=True)
class KnownCodes:
    """Codes that are given and not drawn: a prefix, or everything outside a hole."""

    codes_KN: np.ndarray  # read only where known
    is_known_N: np.ndarray  # bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One request of a batch; its result depends on these fields alone."""

    prompt: TokenSequence
    mode: Mode
    unconditional: TokenSequence | None = None
    """The prompt to guide away from; needed where image guidance is above 1, unused otherwise."""
    grid: Grid | None = None
    """(rows, columns) of the images; None is the layout's default."""
    seed: int = 0
    max_new_tokens: int | None = None
    """Places that may be added, those of images and their markers included; None is what the context leaves."""
    text: SamplingConfig = field(default_factory=SamplingConfig)
    image: SamplingConfig = field(default_factory=SamplingConfig)
    outline: SamplingConfig = field(default_factory=SamplingConfig)
    """Of the words before an image, where the model writes any."""
    end_id: int | None = None
    """For mode "text": another token than end-of-sequence that ends it."""
    given_outline: tuple[int, ...] | None = None
    """For mode "image": these words, in place of the model's own."""
    redraws: int = 0
    """How often a picture is drawn again at most when it does not show what its outline says (mllm/pipeline.py)."""
    known_codes: KnownCodes | None = None
    """For mode "image"."""
    text_processors: tuple[TextProcessor, ...] = ()
    """Change the logits of text tokens before they are sampled, in this order; they have no say inside an image."""

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.text.guidance != 1:
            raise ValueError(
                f"text has no guidance: found {self.text.guidance}; set guidance in the image settings only"
            )
        if self.is_guided and self.unconditional is None:
            raise ValueError(
                f"guidance {self.image.guidance} needs an unconditional prompt: found none; give one or use guidance 1"
            )
        if self.known_codes is not None and self.mode != "image":
            raise ValueError(f"known codes belong to one image: found mode {self.mode!r}; use mode 'image'")
        if self.given_outline is not None and self.mode != "image":
            raise ValueError(f"an outline belongs to one image: found mode {self.mode!r}; use mode 'image'")
        if len(self.given_outline or ()) > OUTLINE_BUDGET:
            raise ValueError(
                f"the outline is too long: found {len(self.given_outline or ())} tokens; use {OUTLINE_BUDGET} or fewer"
            )
        if not 0 <= self.seed < NUM_SEEDS:
            raise ValueError(f"seed is out of range: found {self.seed}; use a whole number from 0 to 2^63 - 1")
        if isinstance(self.redraws, bool) or not isinstance(self.redraws, int) or self.redraws < 0:
            raise ValueError(f"redraws is no number of tries: found {self.redraws!r}; use a whole number, 0 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens leaves no room: found {self.max_new_tokens}; use 1 or more")

    @property
    def is_guided(self) -> bool:
        """Whether a second, unconditional row of the decoder is computed."""
        return self.mode != "text" and self.image.guidance > 1

    @property
    def prompts(self) -> tuple[TokenSequence, ...]:
        """The prompt, and the unconditional one if the row is guided."""
        return (self.prompt, self.unconditional) if self.is_guided else (self.prompt,)


@dataclass(frozen=True, slots=True)
class Generated:
    """What one row became."""

    token_ids: list[int]  # all that was added, markers and image positions included
    parts: list[list[int] | CodesPart]  # runs of text ids and images, in order; no markers, no end-of-sequence
    finish_reason: FinishReason  # end-of-sequence, budget used up, or the one image of mode "image" is complete
    seed: int
    image_refused: bool  # the model wanted to begin an image for which the budget had no room left
    outlines: list[list[int]]  # what was written before each image; empty where nothing was

    @property
    def text_ids(self) -> list[int]:
        """All text in one run."""
        return [token_id for part in self.parts if isinstance(part, list) for token_id in part]

    @property
    def images(self) -> list[CodesPart]:
        """The images, in order."""
        return [part for part in self.parts if isinstance(part, CodesPart)]


def add_text(parts: list[list[int] | CodesPart], token_id: int) -> None:
    """Put a token at the end of an answer: to its last run of text, or into a new one after an image."""
    if parts and isinstance(parts[-1], list):
        parts[-1].append(token_id)
    else:
        parts.append([token_id])


class NoRoomError(ValueError):
    """A prompt, or the image that is asked for, does not fit into the context."""


def count_budget(row: Row, *, layout: ImageLayout, context: int) -> int:
    """Places a row may add.

    Raises:
        NoRoomError: a prompt or an image does not fit.
    """
    used = max(len(prompt) for prompt in row.prompts)
    if used >= context:
        raise NoRoomError(
            f"the prompt is too long: found {used} tokens, images included; the context of this model holds "
            f"{context}, so use fewer than that"
        )
    budget = min(context - used, row.max_new_tokens or context)
    grid = row.grid or layout.default_grid
    needed = layout.num_tokens(grid) + len(given_opening(row, layout))
    needed += len(layout.plan_opening(grid)) if may_outline(row, layout) else 0
    if row.mode == "image" and budget < needed:
        raise NoRoomError(
            f"no room for the image: it takes {needed} tokens, found {budget} left (prompt {used}, context {context}, "
            f"max_new_tokens {row.max_new_tokens}); shorten the prompt or raise the budget"
        )
    return budget


def may_outline(row: Row, layout: ImageLayout) -> bool:
    """Whether the model chooses if an image that is asked for begins with an outline. Some kinds have none."""
    is_free = row.known_codes is None and row.given_outline is None
    return row.mode == "image" and layout.begin_plan_id is not None and is_free


def given_opening(row: Row, layout: ImageLayout) -> list[int]:
    """The given outline of an image with what begins it."""
    if row.given_outline is None:
        return []
    if layout.begin_plan_id is None:
        raise ValueError("this model knows no outlines: found one for its picture; leave it out")
    return [*layout.plan_opening(row.grid or layout.default_grid), *row.given_outline]


# How a checkpoint samples: its config, then its settings per task, then what the caller asks for.
#
# In: the model's configs and layers of overrides. Out: a `SamplingConfig`, or a budget of new tokens. Knows no prompts,
# no rows and no pictures.


TaskSettings = Mapping[str, Mapping[str, Any]]
"""Sampling settings by task; `ask_text` is how the text of task `ask` is sampled."""

SAMPLING_NAMES = ("guidance", "temperature", "top_k", "top_p", "greedy")
TEXT_BUDGET = 256
"""New text tokens of an answer, unless the caller or the context says otherwise."""


def image_settings(config: MLLMConfig, stored: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingConfig:
    """How the codes of images are sampled, in one task."""
    settings = {
        "guidance": config.image_guidance,
        "temperature": config.image_temperature,
        "top_k": config.image_top_k,
        "top_p": config.image_top_p,
    }
    return sampling_config(settings, stored, given)


def text_settings(
    generation_config: GenerationConfig, stored: Mapping[str, Any], given: Mapping[str, Any]
) -> SamplingConfig:
    """How text is sampled, in one task: the most probable token, unless somebody asks for more variety."""
    settings: dict[str, Any] = {"greedy": True}
    if generation_config.do_sample:
        chosen = {
            "temperature": generation_config.temperature,
            "top_k": generation_config.top_k or None,
            "top_p": generation_config.top_p,
        }
        settings = {name: value for name, value in chosen.items() if value is not None}
    return sampling_config(settings, stored, given)


def outline_settings(stored: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingConfig:
    """How the words before an image are sampled: freely, so that every seed has its own arrangement, or greedily with
    the image."""
    return sampling_config({"top_p": 0.5}, stored, {name: given[name] for name in ("greedy",) if name in given})


def sampling_config(*layers: Mapping[str, Any]) -> SamplingConfig:
    """Settings laid over each other, the last one on top; one that asks for variety ends the greed below it."""
    settings: dict[str, Any] = {}
    for layer in layers:
        if layer.keys() & {"temperature", "top_k", "top_p"}:
            settings["greedy"] = False
        settings |= {name: layer[name] for name in SAMPLING_NAMES if name in layer}
    # JSON has lists for what is per codebook
    return SamplingConfig(**{n: tuple(value) if isinstance(value, list) else value for n, value in settings.items()})


def token_budget(config: MLLMConfig, mode: Mode) -> int | None:
    """New tokens of an answer; an image takes what it takes."""
    images = 2 * (config.positions_per_image + config.grid_side + 4)
    return {"text": TEXT_BUDGET, "image": None, "interleaved": TEXT_BUDGET + images}[mode]


def read_task_settings(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Sampling settings per task, `task_settings` in generation_config.json; transformers may drop unknown fields."""
    path = Path(folder) / GENERATION_CONFIG_NAME
    return json.loads(path.read_text(encoding="utf-8")).get("task_settings", {}) if path.is_file() else {}
