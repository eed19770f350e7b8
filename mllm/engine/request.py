"""What is asked of the engine, and what comes back: requests, results and events.

A request that no model could answer is refused here; what does not fit into the context, in
mllm/engine/state_machine.py. Knows ids and codes, no strings, no images and no model.

Letters: K codebooks, N positions of one image, T positions of a sequence, V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from mllm.conversation import CodesPart, Message, Mode, check_mode
from mllm.sampling import SamplingConfig
from mllm.sequence import Grid, TokenSequence

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""A logits processor of transformers: ids (1, T) so far and text logits (1, V) to changed logits."""
FinishReason = Literal["eos", "length", "image"]

NUM_SEEDS = 2**63  # seeds are 0 to one less
PLAN_BUDGET = 64  # tokens of a plan at most; then the image begins


@dataclass(frozen=True, slots=True)
class ForcedCodes:
    """Codes that are given and not sampled: a prefix, or everything outside a hole (inpainting)."""

    codes_KN: np.ndarray  # read only where forced
    is_forced_N: np.ndarray  # bool


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One sequence to generate; its result depends on these fields alone, not on what is decoded next to it."""

    prompt: TokenSequence
    mode: Mode
    unconditional: TokenSequence | None = None
    """The prompt to guide away from; needed where image guidance is above 1, unused otherwise."""
    grid: Grid | None = None
    """(rows, columns) of the images; None is the layout's default."""
    seed: int = 0
    max_new_tokens: int | None = None
    """Positions that may be added, those of images and their markers included; None is what the context leaves."""
    text: SamplingConfig = field(default_factory=SamplingConfig)
    image: SamplingConfig = field(default_factory=SamplingConfig)
    plan: SamplingConfig = field(default_factory=SamplingConfig)
    """Of the plan before an image, where the model writes one."""
    end_id: int | None = None
    """For mode "text": another token than end-of-sequence that ends it."""
    given_plan: tuple[int, ...] | None = None
    """For mode "image": the tokens of its plan, in place of the model's own."""
    resamples: int = 0
    """How often an image that fails the check is sampled again at most (mllm/engine/rejection.py)."""
    goal: Any = None
    """What was asked for, for the caller's check of images; nothing here reads it."""
    forced_codes: ForcedCodes | None = None
    """For mode "image"."""
    window: int | None = None
    """Positions guessed and checked in one pass (mllm/engine/loop.py); 1 guesses nothing, None is what pays. Changes no
    result."""
    preview_every: int | None = None
    """Tell what an image looks like so far each time that so many more of its positions stand."""
    expected_text: tuple[int, ...] = ()
    """A guess of the answer's text."""
    logits_processors: tuple[LogitsProcessor, ...] = ()
    """Change the logits of text tokens before they are sampled, in this order; they do not act inside an image."""

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.text.guidance != 1:
            raise ValueError(
                f"text guidance must be 1, got {self.text.guidance}; set guidance in the image settings only"
            )
        if self.is_guided and self.unconditional is None:
            raise ValueError(
                f"guidance must come with an unconditional prompt, got guidance {self.image.guidance} without one; "
                "give one (model.generate: the negative_prompt_ids that the processor returns for "
                f"generation_mode={self.mode!r}) or use guidance 1"
            )
        for name in ("forced_codes", "given_plan"):
            if getattr(self, name) is not None and self.mode != "image":
                raise ValueError(f"{name} must belong to one image, got mode {self.mode!r}; use mode 'image'")
        if len(self.given_plan or ()) > PLAN_BUDGET:
            raise ValueError(
                f"a plan must have at most {PLAN_BUDGET} tokens, got {len(self.given_plan or ())}; shorten it"
            )
        if not 0 <= self.seed < NUM_SEEDS:
            raise ValueError(f"seed must be an integer from 0 to 2^63 - 1, got {self.seed}")
        if isinstance(self.resamples, bool) or not isinstance(self.resamples, int) or self.resamples < 0:
            raise ValueError(f"resamples must be an integer >= 0, got {self.resamples!r}")
        for name in ("window", "preview_every", "max_new_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}; leave it out for the default")

    @property
    def is_guided(self) -> bool:
        """Whether a second, unconditional sequence is decoded along with it."""
        return self.mode != "text" and self.image.guidance > 1

    @property
    def prompts(self) -> tuple[TokenSequence, ...]:
        """The prompt, and the unconditional one if the request is guided."""
        guides = (self.unconditional,) if self.is_guided and self.unconditional is not None else ()
        return self.prompt, *guides


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What one request became."""

    token_ids: list[int]  # all that was added, markers and image positions included
    parts: list[list[int] | CodesPart]  # runs of text ids and images, in order; no markers, no end-of-sequence
    finish_reason: FinishReason  # end-of-sequence, budget used up, or the one image of mode "image" is complete
    seed: int
    image_refused: bool  # the model wanted to begin an image for which the budget had no room left
    plans: list[list[int]]  # what was written before each image; empty where nothing was

    @property
    def text_ids(self) -> list[int]:
        return [token_id for part in self.parts if isinstance(part, list) for token_id in part]

    @property
    def images(self) -> list[CodesPart]:
        return [part for part in self.parts if isinstance(part, CodesPart)]


def append_text(parts: list[list[int] | CodesPart], token_id: int) -> None:
    """Put a token at the end of an answer: to its last run of text, or into a new one after an image."""
    if parts and isinstance(parts[-1], list):
        parts[-1].append(token_id)
    else:
        parts.append([token_id])


# ---- events ----
# The engine fills in ids and codes; the pipeline passes the same events on with text, images and messages filled in.


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to a request."""

    index: int = 0  # which one of the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta(Event):
    """More text of the answer."""

    token_id: int | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageProgress(Event):
    """One more position of an image is decoded."""

    done: int  # positions so far
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreview(Event):
    """An image so far; positions that do not stand yet are guessed."""

    done: int  # positions that stand
    codes: CodesPart
    image: Any = None  # the decoded PIL image


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDone(Event):
    """An image of the answer is complete."""

    codes: CodesPart
    plan: tuple[int, ...] = ()  # the tokens that were written before it
    image: Any = None  # the decoded PIL image


@dataclass(frozen=True, kw_only=True, slots=True)
class Done(Event):
    """The answer is complete; its finish reason is "length" where the budget or the context cut it off."""

    result: GenerationResult
    message: Message = Message("assistant", ())
    """All of the answer, to be put into the history; images are codes, so that nothing is lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(Event):
    """The request could not be answered; others are not concerned."""

    error: Exception
