"""The whole measurement of a model on the synthetic world: scores, what they were made with, and a table to read.

In: a pipeline, how many items, a seed. Out: one dictionary for JSON, and its table.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch
import transformers
from PIL import Image

from mllm.conversation import Message
from mllm.evaluation.fingerprint import model_fingerprint
from mllm.evaluation.rate import Rate
from mllm.evaluation.world import choose_groups, evaluate_world
from mllm.evaluation.world_tokenizer import score_round_trip
from mllm.modes import Mode
from mllm.pipeline import Pipeline
from mllm.row_builder import Overrides
from mllm.world.measure import measure_checker

PROTOCOL = "world-1"
"""Name of the protocol; it changes when numbers are no longer comparable."""
CHECKER_COUNT = 2000
"""Rendered scenes on which the checker's own error is measured each time."""


def measure_world(
    pipeline: Pipeline,
    *,
    count: int,
    seed: int = 0,
    jobs: Sequence[str] | None = None,
    batch_size: int = 32,
    sampling: Overrides | None = None,
) -> dict:
    """Every score of the world's specification, with the settings they were measured with.

    Args:
        count: items per group of the table.
        sampling: settings (guidance, temperature, top_k, top_p) of pictures that differ from the checkpoint's.
    """
    groups = choose_groups(jobs)
    config = pipeline.config

    def answer(
        dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
    ) -> list[list[str | Image.Image]]:
        if mode == "text" or sampling is None:
            return pipeline.answer(dialogues, mode, seeds)
        return pipeline.answer(dialogues, mode, seeds, **sampling)

    scores = evaluate_world(
        answer, count=count, seed=seed, batch_size=batch_size, image_size=config.image_size, groups=groups
    )
    checker = measure_checker(CHECKER_COUNT, seed=seed, size=config.image_size)
    tokenizer = pipeline.processor.need_image_tokenizer()
    return {
        "protocol": PROTOCOL,
        "model": model_fingerprint(pipeline.model),
        "image_tokenizer": tokenizer.fingerprint(),
        "seed": seed,
        "count": count,
        "settings": {
            "guidance": config.image_guidance,
            "temperature": config.image_temperature,
            "top_k": config.image_top_k,
            "top_p": config.image_top_p,
            **{name: value for name, value in (sampling or {}).items() if value is not None},
            "text": "greedy",
            "image_size": config.image_size,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "checker_error": {"rate": checker.rate, "count": checker.count},
        "tokenizer": score_round_trip(tokenizer, count=count, seed=seed),
        "scores": scores,
    }


def as_table(report: dict) -> str:
    """The report for the eye."""
    lines = [f"Synthetic world, protocol {report['protocol']}, seed {report['seed']}, model {report['model']}"]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    lines += [f"Settings: {settings}", "", f"{'job':<28} pass rate (95 % interval, items)"]
    for name, scores in report["scores"].items():
        lines.append(f"{name:<28} {Rate(scores['passed'], scores['total'])}")
        if "mean_iou" in scores:
            lines.append(f"{'  mean IoU, pixel accuracy':<28} {scores['mean_iou']:.3f}, {scores['pixel_accuracy']:.3f}")
        for skill, values in scores["skills"].items():
            lines.append(f"  {skill:<26} {Rate(values['passed'], values['total'])}")
    tokenizer, checker = report["tokenizer"], report["checker_error"]
    lines += [
        "",
        f"Image tokenizer: {100 * tokenizer['scenes_read_right']:.1f} % of scenes read right after a round trip, "
        f"PSNR {tokenizer['psnr']:.1f} dB, SSIM {tokenizer['ssim']:.3f},",
        "  perplexity per codebook " + " ".join(f"{value:.0f}" for value in tokenizer["perplexity"]),
        f"Checker's own error: {100 * checker['rate']:.2f} % of {checker['count']} rendered scenes",
    ]
    return "\n".join(lines)
