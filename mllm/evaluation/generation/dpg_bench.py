"""DPG-Bench: dense prompts, judged by questions (Hu et al. 2024).

Question "file": the official folder of prompts, one <id>.txt each. The runner draws four pictures of each;
`mllm evaluate submit` puts them together to the official 2 x 2 grids, grids/<id>.png, which the official script scores
in its own environment. That script skips the first row of its table and passes over files that fail, so its number may
be about fewer prompts; the result says how many grids there were.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mllm.evaluation.intervals import without_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, ScoreOptions, Scores
from mllm.files import need_file

SAMPLES, PER_SIDE = 4, 2
SCORE_LINE = re.compile(r"DPG-Bench score\D*([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
TOOL = (
    "`git clone https://github.com/TencentQQGYLab/ELLA && pip install -r ELLA/requirements-for-dpg_bench.txt` in its "
    "own environment, its dpg_bench/compute_dpg_bench.py on the folder grids/ of `mllm evaluate submit`, then give its "
    "results file as --annotations"
)


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """Four items for each prompt file."""
    files = sorted(questions.glob("*.txt")) if questions.is_dir() else []
    if not files:
        raise FileNotFoundError(f"there are no prompts in {questions}: found no <id>.txt; give the folder of prompts")
    return [
        Item(
            key=f"{file.stem}/{sample}",
            where=str(file),
            question_id=f"{file.stem}/{sample}",
            prompt=file.read_text(encoding="utf-8").strip(),
            output=f"samples/{file.stem}/{sample}.png",
            fields={"prompt_id": file.stem},
        )
        for file in files
        for sample in range(SAMPLES)
    ]


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """One grid of four pictures for each prompt that has all of them."""
    assert options.folder is not None, "a submission needs a folder"
    pictures: dict[str, list[Path]] = defaultdict(list)
    for one in answered:
        assert one.image is not None, "this benchmark draws"
        pictures[one.item.fields["prompt_id"]].append(one.image)
    written = []
    for name, files in pictures.items():
        if len(files) == SAMPLES:
            path = options.folder / "grids" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            as_grid([Image.open(file) for file in files]).save(path)
            written.append(path)
    return written


def as_grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Four pictures row by row."""
    width, height = pictures[0].size
    grid = Image.new("RGB", (PER_SIDE * width, PER_SIDE * height))
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % PER_SIDE * width, index // PER_SIDE * height))
    return grid


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """The official script's number."""
    if options.annotations is None:
        raise ValueError(f"DPG-Bench is scored by its official script: found no results of it; use {TOOL}")
    found = SCORE_LINE.findall(need_file(options.annotations).read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{options.annotations} has no line 'DPG-Bench score': found none; give the script's results")
    value, prompts = float(found[-1]), len({one.item.fields["prompt_id"] for one in answered})
    extra = {"grids": prompts, "interval": "none: the official script gives one number"}
    protocol = BENCHMARK.protocol("official-mplug", count=len(answered))
    return Scores(protocol, "overall", {"overall": without_interval(value, prompts)}, extra=extra)


BENCHMARK = Benchmark(
    name="dpg-bench",
    summary="DPG-Bench: the folder of prompts; scored from the results of its official script",
    read_items=read_items,
    score=score,
    submit=submit,
    official_counts=(1065 * SAMPLES,),
    mode="image",
    needs_annotations=False,
)
