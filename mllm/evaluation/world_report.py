"""The whole measurement of a model on the synthetic world: scores, what they were made with, and a table to read.

In: a pipeline, how many items, a seed. Out: one dictionary for JSON, and its table.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mllm.conversation import Message, TextPart
from mllm.evaluation.fingerprint import model_fingerprint
from mllm.evaluation.rate import Rate
from mllm.evaluation.world import Answer, choose_groups, evaluate_world
from mllm.evaluation.world_best_of import as_lines, measure_best_of
from mllm.evaluation.world_items import Group
from mllm.evaluation.world_tokenizer import score_round_trip
from mllm.generation.row_builder import Overrides
from mllm.generation.settings import outline_settings
from mllm.modes import Mode
from mllm.pipeline import Pipeline
from mllm.sizes import Size, default_size, grid_of
from mllm.versions import tool_versions
from mllm.world.measure import measure_checker

PROTOCOL = "world-3"
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
    size: Size | None = None,
    best_of: Sequence[int] = (),
) -> dict:
    """Every score of the world's specification, with the settings they were measured with.

    Args:
        count: items per group of the table.
        sampling: settings (guidance, temperature, top_k, top_p, redraws) of pictures that differ from the checkpoint's.
        size: (width, height) of the pictures that are shown and drawn; default: the checkpoint's default size.
        best_of: numbers of candidates among which the model chooses itself, measured in addition.
    """
    groups = choose_groups(jobs)
    config = pipeline.config
    size = size or default_size(config)
    grid_of(size, config)  # refuses a size that the model does not have

    def answer(
        dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
    ) -> list[list[str | Image.Image]]:
        chosen: Overrides = {} if mode == "text" or sampling is None else sampling
        return pipeline.answer(dialogues, mode, seeds, size=size, **chosen)

    scores = evaluate_world(answer, count=count, seed=seed, batch_size=batch_size, size=size, groups=groups)
    chosen = measure_choices(answer, pipeline, groups, best_of=best_of, count=count, seed=seed, batch_size=batch_size)
    checker = measure_checker(CHECKER_COUNT, seed=seed, size=size)
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
            **({} if config.begin_outline_id is None else {"redraws": config.image_redraws}),
            **{name: value for name, value in (sampling or {}).items() if value is not None},
            "text": "greedy",
            **({} if config.begin_outline_id is None else {"outline": describe_outlines(pipeline, sampling)}),
            "image_size": size[0] if size[0] == size[1] else list(size),
        },
        "versions": tool_versions(),
        "checker_error": {"rate": checker.rate, "count": checker.count},
        "tokenizer": score_round_trip(tokenizer, count=count, seed=seed, size=size),
        "scores": scores,
        **({"self_judged": chosen} if best_of else {}),
    }


def describe_outlines(pipeline: Pipeline, sampling: Overrides | None) -> str:
    """How the words before a picture are sampled."""
    chosen = outline_settings(pipeline.rows.stored_settings.get("outline", {}), sampling or {})
    return "greedy" if chosen.greedy else f"temperature {chosen.temperature} top_p {chosen.top_p}"


def measure_choices(
    answer: Answer,
    pipeline: Pipeline,
    groups: Sequence[Group],
    *,
    best_of: Sequence[int],
    count: int,
    seed: int,
    batch_size: int,
) -> dict[str, dict]:
    """Best of N on the groups that draw, asked in the words of the world."""
    drawing = [group for group in groups if group.job == "draw"]
    if best_of and not drawing:
        raise ValueError("best of N is for drawing: found no job 'draw' among those asked for; add it to --jobs")

    def draw(requests: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        parts = answer([[Message("user", (TextPart(request),))] for request in requests], "image", seeds)
        return [picture for (picture,) in parts if isinstance(picture, Image.Image)]

    def score(pictures: Sequence[Image.Image], requests: Sequence[str]) -> list[float]:
        return pipeline.judge(pictures, requests, form="world")

    return {
        group.name: measure_best_of(draw, score, group, best_of=best_of, count=count, seed=seed, batch_size=batch_size)
        for group in drawing
        if best_of
    }


def as_table(report: dict) -> str:
    """The report for the eye."""
    lines = [f"Synthetic world, protocol {report['protocol']}, seed {report['seed']}, model {report['model']}"]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    lines += [f"Settings: {settings}", "", f"{'job':<28} pass rate (95 % interval, items)"]
    for name, scores in report["scores"].items():
        lines.append(f"{name:<28} {Rate(scores['passed'], scores['total'])}")
        if "left_open" in scores:
            lines.append(f"{'  of these partly left open':<28} {scores['left_open']}")
        if "mean_iou" in scores:
            lines.append(f"{'  mean IoU, pixel accuracy':<28} {scores['mean_iou']:.3f}, {scores['pixel_accuracy']:.3f}")
        for skill, values in scores["skills"].items():
            lines.append(f"  {skill:<26} {Rate(values['passed'], values['total'])}")
    lines += as_lines(report.get("self_judged", {}))
    tokenizer, checker = report["tokenizer"], report["checker_error"]
    highest = tokenizer["highest_perplexity"]
    limit = "" if highest is None else f" (of {highest:.0f} that are possible)"
    lines += [
        "",
        f"Image tokenizer: {100 * tokenizer['scenes_read_right']:.1f} % of scenes read right after a round trip, "
        f"PSNR {tokenizer['psnr']:.1f} dB, SSIM {tokenizer['ssim']:.3f},",
        f"  perplexity per codebook {rounded(tokenizer['perplexity'])}{limit},",
        f"  over patches with a border alone {rounded(tokenizer['perplexity_of_borders'])}",
        f"Checker's own error: {100 * checker['rate']:.2f} % of {checker['count']} rendered scenes",
    ]
    return "\n".join(lines)


def rounded(values: list[float]) -> str:
    """Whole numbers side by side."""
    return " ".join(f"{value:.0f}" for value in values)
