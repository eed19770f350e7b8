"""T2I-CompBench: attributes, relations and compositions (Huang et al. 2023), one run per category.

Question file: the official prompt list of a category, such as color_val.txt, one prompt a line. The runner writes the
official folder: samples/<prompt>_<number>.png, ten of each prompt, numbered through. The official evaluators (BLIP-VQA,
UniDet, CLIPScore, 3-in-1) run in their own environment; their vqa_result.json is what is averaged here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.intervals import mean_of_many
from mllm.evaluation.protocol import Answered, Benchmark, Item, ScoreOptions, Scores
from mllm.files import need_file, read_json

SAMPLES = 10
TOOL = (
    "`git clone https://github.com/Karine-Huang/T2I-CompBench && pip install -r T2I-CompBench/requirements.txt` in its "
    "own environment, the evaluator of this category on the run folder, then give its vqa_result.json as --annotations"
)


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """Ten items for each prompt."""
    lines = need_file(questions).read_text(encoding="utf-8").splitlines()
    prompts = [(number, text.strip()) for number, text in enumerate(lines, start=1) if text.strip()]
    items: list[Item] = []
    for number, prompt in prompts:
        if "/" in prompt:
            raise ValueError(f"{questions}, line {number} cannot name a file: found '/' in {prompt!r}; take it out")
        for _ in range(SAMPLES):
            index = len(items)
            name = f"{prompt}_{index:06d}"
            items.append(Item(str(index), f"{questions}, line {number}", index, prompt, output=f"samples/{name}.png"))
    if not items:
        raise ValueError(f"{questions} holds no prompt: found an empty file; give one prompt a line")
    return items


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """The mean of the official evaluator's answers, 0 to 1."""
    if options.annotations is None:
        raise ValueError(f"T2I-CompBench is scored by its official evaluators: found no results of them; use {TOOL}")
    records = read_json(options.annotations)
    if not isinstance(records, list) or len(records) != len(answered):
        found = len(records) if isinstance(records, list) else type(records).__name__
        raise ValueError(f"{options.annotations} does not fit the pictures: found {found} for {len(answered)}; redo it")
    overall = mean_of_many([float(record["answer"]) for record in records])
    return Scores(BENCHMARK.protocol("official", count=len(answered)), "overall", {"overall": overall})


BENCHMARK = Benchmark(
    name="t2i-compbench",
    summary="T2I-CompBench: a prompt list such as color_val.txt; scored from an official evaluator's vqa_result.json",
    read_items=read_items,
    score=score,
    official_counts=(300 * SAMPLES,),
    mode="image",
    needs_annotations=False,
)
