"""The page of a published model: what it can do, how to call it, its settings, and its scores where they are known.

In: a config, and a folder that may hold `SOURCE.json` with scores. Out: README.md with the metadata that the Hugging
Face hub reads. Every number comes from the checkpoint; nothing is claimed that its config does not say.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils.hub import hf_api

from mllm.config import MLLMConfig
from mllm.evaluation.rate import percent
from mllm.sizes import supported_sizes

CARD_FILE, SOURCE_FILE = "README.md", "SOURCE.json"
TAGS = ["text-to-image", "image-to-text", "image-to-image", "unitok"]
MAX_SIZES = 12
RATE_FIELDS = {"rate", "low", "high", "passed", "total"}
"""Of a rate among the scores."""
NAMELESS = ("scores", "skills")
"""Levels of the scores that a reader need not see."""

USE = """```python
import mllm.model, mllm.processor  # make the classes known to transformers
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
inputs = processor(text="a red circle", generation_mode="image", return_tensors="pt").to(model.device)
codes = model.generate(**inputs, generation_mode="image", seed=1)
processor.post_process_multimodal_output(codes, generation_mode="image")[0].save("circle.png")
```"""


def model_card(config: MLLMConfig, *, scores: dict[str, Any] | None = None, note: str | None = None) -> ModelCard:
    """The card of a checkpoint; the note tells how it was made."""
    data = ModelCardData(library_name="transformers", pipeline_tag="any-to-any", tags=list(TAGS))
    sections = [f"---\n{data.to_yaml()}\n---", "# A unified model of text and images", describe(config), "## Use", USE]
    sections += ["## Settings", settings_table(config)]
    if note:
        sections += ["## About this model", note]
    if scores:
        sections += ["## Scores", *score_tables(scores)]
    return ModelCard("\n\n".join(sections) + "\n")


def describe(config: MLLMConfig) -> str:
    """What it is and what it can do, in sentences."""
    sizes = [f"{width}x{height}" for width, height in supported_sizes(config)]
    shown = ", ".join(sizes[:MAX_SIZES]) + (" and more" if len(sizes) > MAX_SIZES else "")
    tasks = "not stated" if config.tasks is None else ", ".join(config.tasks)
    return (
        "One decoder reads and writes text tokens and image positions; an image position holds "
        f"{config.num_codebooks} codes of {config.codebook_size} choices each.\n\n"
        f"- Tasks it was trained for: {tasks}\n- Picture sizes in pixels: {shown}\n"
        f"- Context: {config.text_config.max_position_embeddings} tokens; an image of the default size takes "
        f"{config.positions_per_image} positions"
    )


def settings_table(config: MLLMConfig) -> str:
    """The sampling settings that hold unless a call says otherwise."""
    images = (f"image_{name}" for name in ("guidance", "temperature", "top_k", "top_p", "redraws"))
    names = (*images, "embedding_context", "prompt_style")
    rows = [f"| {name} | {'off' if getattr(config, name) is None else getattr(config, name)} |" for name in names]
    return "| setting | value |\n|---|---|\n" + "\n".join(rows)


def score_tables(scores: dict[str, Any]) -> list[str]:
    """A nested result as a table of rates with their intervals, and one of all other numbers."""
    rates, numbers = score_rows(scores)
    tables = []
    if rates:
        tables.append("| measured | right | 95 % interval | items |\n|---|---:|---:|---:|\n" + "\n".join(rates))
    if numbers:
        tables.append("| number | value |\n|---|---:|\n" + "\n".join(numbers))
    return tables


def score_rows(scores: dict[str, Any], prefix: str = "") -> tuple[list[str], list[str]]:
    """A row for every rate, and one for every number that is no part of a rate."""
    rates: list[str] = []
    numbers: list[str] = []
    is_rate = scores.keys() >= RATE_FIELDS
    if is_rate and scores["rate"] is not None:
        low, high = (f"{100 * scores[name]:.1f}" for name in ("low", "high"))
        rates.append(f"| {prefix} | {percent(scores['rate'])} % | {low} to {high} | {scores['total']} |")
    for name, value in scores.items():
        path = ": ".join(part for part in (prefix, name if name not in NAMELESS else "") if part)
        if isinstance(value, dict):
            below = score_rows(value, path)
            rates, numbers = rates + below[0], numbers + below[1]
        elif isinstance(value, int | float) and not isinstance(value, bool) and not (is_rate and name in RATE_FIELDS):
            numbers.append(f"| {path} | {round(value, 4)} |")
        elif isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
            numbers.append(f"| {path} | {', '.join(f'{item:.4g}' for item in value)} |")
    return rates, numbers


def save_model_card(folder: str | os.PathLike, config: MLLMConfig) -> None:
    """Write the card of a model folder, with the scores and the note of its SOURCE.json if it has one."""
    path = Path(folder) / SOURCE_FILE
    source = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    card = model_card(config, scores=source.get("scores"), note=source.get("note"))
    (Path(folder) / CARD_FILE).write_text(str(card), encoding="utf-8")


class ModelWithCard:
    """Makes a model of transformers save and publish its card; stands before `PreTrainedModel` among the bases."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As transformers has it, with a card; what it does not know of the generation config survives loading."""
        self.generation_config._from_model_config = False  # type: ignore[attr-defined]
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            save_model_card(save_directory, self.config)  # type: ignore[attr-defined]

    def push_to_hub(self, repo_id: str, *, create_pr: bool = False, **kwargs: Any) -> Any:
        """As transformers has it, which puts a card of its own into a new repository; ours then follows."""
        url = super().push_to_hub(repo_id, create_pr=create_pr, **kwargs)  # type: ignore[misc]
        if not create_pr:
            hf_api().upload_file(
                path_or_fileobj=str(model_card(self.config)).encode(),  # type: ignore[attr-defined]
                path_in_repo=CARD_FILE,
                repo_id=repo_id,
                revision=kwargs.get("revision"),
                token=kwargs.get("token"),
            )
        return url
