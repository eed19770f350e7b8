"""What is asked of the engine, and what comes back: requests, their settings and budgets, results and events.

In: encoded prompts and the settings of a checkpoint and of a caller. Out: a `GenerationRequest`, refused here as far as
no model is needed to see that it cannot be answered. Knows ids and codes, no strings, no images and no model.

Letters: K codebooks, N positions of one image, T positions of a sequence, V text vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, Mode, check_mode
from mllm.files import read_json
from mllm.sampling import PerCodebook, SamplingConfig
from mllm.sequence import Grid, ImageLayout, TokenSequence

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""A logits processor of transformers: ids (1, T) so far and text logits (1, V) to changed logits."""
FinishReason = Literal["eos", "length", "image"]

NUM_SEEDS = 2**63
"""Seeds are 0 to one less."""
PLAN_BUDGET = 64
"""Tokens of a plan at most; then the image begins."""
TEXT_BUDGET = 256
"""New text tokens of an answer, unless the caller or the context says otherwise."""
SAMPLING_NAMES = ("guidance", "temperature", "top_k", "top_p", "greedy")


# ---- requests and results ----


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
    """Places that may be added, those of images and their markers included; None is what the context leaves."""
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
    forced_codes: ForcedCodes | None = None
    """For mode "image"."""
    window: int | None = None
    """Places guessed and checked in one pass (mllm/engine/loop.py); 1 guesses nothing, None is what pays. Changes no
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
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be >= 1, got {self.window}; 1 guesses nothing")
        if self.preview_every is not None and self.preview_every < 1:
            raise ValueError(f"preview_every must be >= 1, got {self.preview_every}; leave it out for no previews")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")

    @property
    def is_guided(self) -> bool:
        """Whether a second, unconditional sequence is decoded along with it."""
        return self.mode != "text" and self.image.guidance > 1

    @property
    def prompts(self) -> tuple[TokenSequence, ...]:
        """The prompt, and the unconditional one if the request is guided."""
        return (self.prompt, self.unconditional) if self.is_guided else (self.prompt,)


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
        """All text in one run."""
        return [token_id for part in self.parts if isinstance(part, list) for token_id in part]

    @property
    def images(self) -> list[CodesPart]:
        """The images, in order."""
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
class TextDelta:
    """More text of the answer."""

    index: int = 0  # which request of the batch
    token_id: int | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageProgress:
    """One more position of an image is decoded."""

    index: int = 0
    done: int  # positions so far
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreview:
    """An image so far; positions that do not stand yet are guessed."""

    index: int = 0
    done: int  # positions that stand
    codes: CodesPart
    image: Any = None  # the decoded PIL image


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDone:
    """An image of the answer is complete."""

    index: int = 0
    codes: CodesPart
    plan: tuple[int, ...] = ()  # the tokens that were written before it
    image: Any = None  # the decoded PIL image


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The answer is complete."""

    index: int = 0
    result: GenerationResult
    message: Message = Message("assistant", ())
    """All of the answer, to be put into the history; images are codes, so that nothing is lost."""

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended; "length": it was cut off by the budget or the context."""
        return self.result.finish_reason

    @property
    def seed(self) -> int:
        return self.result.seed

    @property
    def image_refused(self) -> bool:
        """Whether the model wanted to draw (again), and no room was left for a complete image."""
        return self.result.image_refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The request could not be answered; others are not concerned."""

    index: int = 0
    error: Exception


Event = TextDelta | ImageProgress | ImagePreview | ImageDone | Done | Failed


# ---- budgets ----


class NoRoomError(ValueError):
    """A prompt, or the image that is asked for, does not fit into the context."""


def count_budget(request: GenerationRequest, *, layout: ImageLayout, context: int) -> int:
    """Places a request may add.

    Raises:
        NoRoomError: a prompt or an image does not fit.
    """
    used = max(len(prompt) for prompt in request.prompts)
    if used >= context:
        raise NoRoomError(
            f"the prompt must be shorter than the context of {context} tokens, got {used} tokens, images included; "
            "shorten it"
        )
    budget = min(context - used, request.max_new_tokens or context)
    grid = request.grid or layout.default_grid
    needed = layout.num_tokens(grid) + len(given_opening(request, layout))
    needed += len(layout.plan_opening(grid)) if may_plan(request, layout) else 0
    if request.mode == "image" and budget < needed:
        raise NoRoomError(
            f"an image must have room for its {needed} tokens, got {budget} left (prompt {used}, context {context}, "
            f"max_new_tokens {request.max_new_tokens}); shorten the prompt or raise the budget"
        )
    return budget


def may_plan(request: GenerationRequest, layout: ImageLayout) -> bool:
    """Whether the model chooses if the image that is asked for begins with a plan; some kinds of image have none."""
    is_free = request.forced_codes is None and request.given_plan is None
    return request.mode == "image" and layout.begin_plan_id is not None and is_free


def given_opening(request: GenerationRequest, layout: ImageLayout) -> list[int]:
    """The given plan of an image with what begins it."""
    if request.given_plan is None:
        return []
    if layout.begin_plan_id is None:
        raise ValueError("a plan must be for a model that plans, got one for a model that does not; leave it out")
    return [*layout.plan_opening(request.grid or layout.default_grid), *request.given_plan]


def token_budget(config: MLLMConfig, mode: Mode) -> int | None:
    """New tokens of an answer by default; an image takes what it takes."""
    images = 2 * (config.positions_per_image + config.grid_side + 4)
    return {"text": TEXT_BUDGET, "image": None, "interleaved": TEXT_BUDGET + images}[mode]


# ---- settings ----


class Overrides(TypedDict, total=False):
    """Settings that a call may change; None, or leaving one out, keeps the checkpoint's."""

    seed: int | None
    guidance: float | None
    temperature: PerCodebook[float] | None
    top_k: PerCodebook[int] | None
    top_p: PerCodebook[float] | None
    greedy: bool | None
    max_new_tokens: int | None
    resamples: int | None
    speculate: bool | int | None
    preview_every: int | None


@dataclass(frozen=True, slots=True)
class RequestBuilder:
    """Builds requests with the settings of one checkpoint: its config, then its settings per task, then the caller's.

    In `task_settings`, `ask_text` is how the text of task `ask` is sampled, and `plan` how plans are.
    """

    config: MLLMConfig
    generation_config: GenerationConfig
    task_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def build(
        self, prompt: TokenSequence, mode: Mode, *, task: str, given: Mapping[str, Any], **fields: Any
    ) -> GenerationRequest:
        """The request that answers a prompt.

        Args:
            task: whose stored settings hold, such as "draw".
            given: `Overrides` without those that are None.
            fields: further fields of `GenerationRequest`.
        """
        if mode == "text" and "guidance" in given:
            raise ValueError(f"guidance must be for images, got guidance {given['guidance']} for text; leave it out")
        for_text, for_image = (given, {}) if mode == "text" else ({}, given)
        request = GenerationRequest(
            prompt=prompt,
            mode=mode,
            max_new_tokens=given.get("max_new_tokens", token_budget(self.config, mode)),
            text=self.text_settings(task, for_text),
            image=self.image_settings(task, for_image),
            plan=self.plan_settings(given),
            **fields,
        )
        context = self.config.text_config.max_position_embeddings
        count_budget(request, layout=ImageLayout.from_config(self.config), context=context)  # refuses what has no room
        return request

    def image_settings(self, task: str, given: Mapping[str, Any]) -> SamplingConfig:
        """How the codes of images are sampled in a task."""
        settings = {name: getattr(self.config, f"image_{name}") for name in SAMPLING_NAMES[:4]}
        return merge_settings(settings, self.task_settings.get(task, {}), given)

    def text_settings(self, task: str, given: Mapping[str, Any]) -> SamplingConfig:
        """How text is sampled in a task: the most probable token, unless somebody asks for more variety."""
        settings: dict[str, Any] = {"greedy": True}
        if self.generation_config.do_sample:
            stored = {
                "temperature": self.generation_config.temperature,
                "top_k": self.generation_config.top_k or None,
                "top_p": self.generation_config.top_p,
            }
            settings = {name: value for name, value in stored.items() if value is not None}
        return merge_settings(settings, self.task_settings.get(f"{task}_text", {}), given)

    def plan_settings(self, given: Mapping[str, Any]) -> SamplingConfig:
        """How plans are sampled: with variety, so that every seed has its own arrangement, or greedily."""
        greedy = {"greedy": given["greedy"]} if "greedy" in given else {}
        stored = self.task_settings.get("plan", self.task_settings.get("outline", {}))  # its name before
        return merge_settings({"top_p": 0.5}, stored, greedy)

    def resamples(self, task: str, given: Mapping[str, Any]) -> int:
        """How often an image may be sampled again: the caller's number, else the task's, else the checkpoint's."""
        if self.image_settings(task, given).greedy:
            return 0
        stored = self.task_settings.get(task, {})
        return given.get("resamples", stored.get("resamples", stored.get("redraws", self.config.image_resamples)))

    def window(self, given: Mapping[str, Any]) -> int | None:
        """Places guessed in one pass: the caller's number or word, else the checkpoint's, else what pays."""
        speculate = given.get("speculate", getattr(self.generation_config, "speculate", True))
        if isinstance(speculate, bool):
            return None if speculate else 1
        if not isinstance(speculate, int) or speculate < 1:
            raise ValueError(f"speculate must be False, True or a number of places >= 1, got {speculate!r}")
        return speculate


def given_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that are not None; an unknown name is an error."""
    if unknown := sorted(set(overrides) - set(Overrides.__annotations__)):
        raise ValueError(f"a setting must be one of {', '.join(Overrides.__annotations__)}, got {unknown[0]!r}")
    settings = {name: value for name, value in overrides.items() if value is not None}
    for name in {"seed", "max_new_tokens", "resamples"} & settings.keys():
        settings[name] = as_integer(settings[name], name=name)
    return settings


def as_integer(value: Any, *, name: str) -> int:
    """A whole number of any type, such as numpy's."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be an integer, got {value!r}; give a whole number")


def merge_settings(*layers: Mapping[str, Any]) -> SamplingConfig:
    """Settings laid over each other, the last one on top; one that asks for variety ends the greed below it."""
    settings: dict[str, Any] = {}
    for layer in layers:
        if layer.keys() & {"temperature", "top_k", "top_p"}:
            settings["greedy"] = False
        settings |= {name: layer[name] for name in SAMPLING_NAMES if name in layer}
    # JSON has lists for what is per codebook
    return SamplingConfig(**{n: tuple(value) if isinstance(value, list) else value for n, value in settings.items()})


def read_task_settings(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`task_settings` of generation_config.json; transformers may drop unknown fields."""
    path = Path(folder) / GENERATION_CONFIG_NAME
    return read_json(path).get("task_settings", {}) if path.is_file() else {}
