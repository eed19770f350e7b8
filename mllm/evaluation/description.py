"""What decides the answers of a run, in plain values: it goes into run.json and from there into every result.

In: a pipeline, a benchmark, the settings. Out: a dictionary. Two runs with equal descriptions give equal answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mllm.evaluation.benchmark import Benchmark
from mllm.evaluation.fingerprint import model_fingerprint
from mllm.generation.settings import image_settings, text_settings
from mllm.json_files import fingerprint_of
from mllm.pipeline import Pipeline
from mllm.versions import tool_versions


def describe_run(
    pipeline: Pipeline,
    benchmark: Benchmark,
    questions: Path,
    *,
    counts: tuple[int, int],
    seed: int,
    sampling: Mapping[str, Any],
    prompts: str = "raw",
) -> dict[str, Any]:
    """The description of a run.

    Args:
        counts: items of this run, and items in the question file.
        sampling: settings that were asked for; those of the checkpoint hold for the rest.
        prompts: "raw", or "rewritten" where somebody changed the words of the benchmark.
    """
    config = pipeline.config
    return {
        "benchmark": benchmark.name,
        "questions": {"file": questions.name, "fingerprint": fingerprint_of(questions)},
        "items": counts[0],
        "items_in_file": counts[1],
        "seed": seed,
        "model": {
            "fingerprint": model_fingerprint(pipeline.model),
            "image_tokenizer": pipeline.processor.need_image_tokenizer().fingerprint(),
            "dtype": str(pipeline.model.dtype).removeprefix("torch."),
        },
        "prompts": prompts,
        "prompt_style": config.prompt_style,
        "decoding": describe_decoding(pipeline, benchmark, sampling),
        "image_format": describe_images(pipeline, benchmark),
        "versions": tool_versions(),
    }


def describe_decoding(pipeline: Pipeline, benchmark: Benchmark, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that hold in the end; of greedy texts only that they are."""
    chosen = {name: value for name, value in sampling.items() if name != "max_new_tokens"}
    stored = pipeline.rows.stored_settings
    if benchmark.mode == "image":
        return asdict(image_settings(pipeline.config, stored.get("draw", {}), chosen))
    settings = text_settings(pipeline.model.generation_config, stored.get("ask_text", {}), chosen)
    named = {"greedy": True} if settings.greedy else asdict(settings)
    return {**named, "max_new_tokens": sampling.get("max_new_tokens")}


def describe_images(pipeline: Pipeline, benchmark: Benchmark) -> dict[str, Any]:
    """How pictures get to the model, or which files it writes."""
    size = pipeline.sizes[0]
    if benchmark.mode == "text":
        return {"size": list(size), "preparation": pipeline.processor.preparation}
    return {"size": list(size), "file": "png"}
