"""How a request is sampled: a checkpoint's config, then its settings per task, then the caller's, laid over each other.

In: an encoded prompt and what a caller changes. Out: a `GenerationRequest` that has room.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mllm.config import MLLMConfig
from mllm.conversation import Mode
from mllm.engine.request import GenerationRequest
from mllm.engine.state_machine import count_budget
from mllm.files import read_json
from mllm.sampling import PerCodebook, SamplingConfig
from mllm.sequence import ImageLayout, TokenSequence

TEXT_BUDGET = 256  # new text tokens of an answer, unless the caller or the context says otherwise
Method = TypeVar("Method", bound=Callable[..., Any])
SAMPLING_NAMES = ("guidance", "temperature", "top_k", "top_p", "greedy")


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
    """Builds requests with the settings of one checkpoint.

    In `task_settings`, `ask_text` is how the text of task `ask` is sampled, and `plan` how plans are. `given` are
    `Overrides` without those that are None.
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
            fields: further fields of `GenerationRequest`.
        """
        if mode == "text" and "guidance" in given:
            raise ValueError(f"guidance must be for images, got guidance {given['guidance']} for text; leave it out")
        for_text, for_image = (given, {}) if mode == "text" else ({}, given)
        images = 2 * (self.config.positions_per_image + self.config.grid_side + 4)
        budget = {"text": TEXT_BUDGET, "image": None, "interleaved": TEXT_BUDGET + images}[mode]
        request = GenerationRequest(
            prompt=prompt,
            mode=mode,
            max_new_tokens=given.get("max_new_tokens", budget),
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
        if (stored := self.generation_config).do_sample:
            named = {"temperature": stored.temperature, "top_k": stored.top_k or None, "top_p": stored.top_p}
            settings = {name: value for name, value in named.items() if value is not None}
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
        """Positions guessed in one pass: the caller's number or word, else the checkpoint's, else what pays."""
        speculate = given.get("speculate", getattr(self.generation_config, "speculate", True))
        if isinstance(speculate, bool):
            return None if speculate else 1
        if not isinstance(speculate, int) or speculate < 1:
            raise ValueError(f"speculate must be False, True or a number of positions >= 1, got {speculate!r}")
        return speculate


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a function does not have, naming those that it has."""
    names = list(known)
    if unknown := [name for name in given if name not in names]:
        raise TypeError(f"keywords of {function} must be among {', '.join(names)}, got {unknown[0]!r}; correct it")


def takes_overrides(method: Method) -> Method:
    """Let a method with `**overrides` refuse keywords that are neither its own nor those of `Overrides`."""
    _, *own, _ = inspect.signature(method).parameters  # without self and overrides

    @functools.wraps(method)
    def checked(*arguments: Any, **given: Any) -> Any:
        check_keywords(method.__name__, given, [*own, *Overrides.__annotations__])
        return method(*arguments, **given)

    return cast(Method, checked)


def given_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that are not None; an unknown name is an error."""
    check_keywords("a request", overrides, Overrides.__annotations__)
    settings = {name: value for name, value in overrides.items() if value is not None}
    for name in {"seed", "max_new_tokens", "resamples", "preview_every"} & settings.keys():
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
        found = {name: layer[name] for name in SAMPLING_NAMES if name in layer}
        # JSON has lists for what is per codebook
        settings |= {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return SamplingConfig(**settings)


def read_task_settings(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`task_settings` of generation_config.json; transformers may drop unknown fields."""
    path = Path(folder) / GENERATION_CONFIG_NAME
    return read_json(path).get("task_settings", {}) if path.is_file() else {}
