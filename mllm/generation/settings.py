"""How a checkpoint samples: its config, then its settings per task, then what the caller asks for.

In: the model's configs and layers of overrides. Out: a `SamplingConfig`, or a budget of new tokens. Knows no prompts,
no rows and no pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from mllm.config import MLLMConfig
from mllm.modes import Mode
from mllm.sampling import SamplingConfig

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
