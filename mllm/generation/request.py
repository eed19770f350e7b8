"""What is asked of one row of a decoding batch, and what comes out.

A request is checked as far as it can be without a model: contradictions here, room for its answer in `count_budget`.

Letters: K codebooks, N positions of one image, T places of a sequence, V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from mllm.conversation import CodesPart
from mllm.layout import Grid, ImageLayout
from mllm.modes import Mode, check_mode
from mllm.sampling import SamplingConfig
from mllm.sequence import TokenSequence

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
    """How often a picture is drawn again at most when it does not show what its outline says (mllm/redrawing.py)."""
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
    needed += len(layout.outline_opening(grid)) if may_outline(row, layout) else 0
    if row.mode == "image" and budget < needed:
        raise NoRoomError(
            f"no room for the image: it takes {needed} tokens, found {budget} left (prompt {used}, context {context}, "
            f"max_new_tokens {row.max_new_tokens}); shorten the prompt or raise the budget"
        )
    return budget


def may_outline(row: Row, layout: ImageLayout) -> bool:
    """Whether the model chooses if an image that is asked for begins with an outline. Some kinds have none."""
    is_free = row.known_codes is None and row.given_outline is None
    return row.mode == "image" and layout.begin_outline_id is not None and is_free


def given_opening(row: Row, layout: ImageLayout) -> list[int]:
    """The given outline of an image with what begins it."""
    if row.given_outline is None:
        return []
    if layout.begin_outline_id is None:
        raise ValueError("this model knows no outlines: found one for its picture; leave it out")
    return [*layout.outline_opening(row.grid or layout.default_grid), *row.given_outline]
