"""GenEval: are the objects, counts, colors and places of a prompt in the picture (Ghosh et al. 2023).

Question file: `evaluation_metadata.jsonl` of the official repository, one prompt a line. The runner writes the official
folders (00000/samples/0000.png ... four of each), `mllm evaluate submit` adds 00000/metadata.jsonl; the official
tool detects in its own environment, and its results file is what is scored here: the mean over the six tasks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.intervals import mean_of, mean_with_interval, score_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, Score, ScoreOptions, Scores
from mllm.files import need_field, read_lines, write_text

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SAMPLES = 4
METADATA_FILE = "metadata.jsonl"
TOOL = (
    "`git clone https://github.com/djghosh13/geneval && python geneval/evaluation/evaluate_images.py RUN --outfile "
    "results.jsonl --model-path DETECTOR` in its own environment, then give --annotations results.jsonl"
)


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """Four items for each prompt."""
    return [
        Item(
            key=f"{index:05d}/{sample:04d}",
            where=line.where,
            question_id=f"{index:05d}/{sample:04d}",
            prompt=need_field(line, "prompt"),
            output=f"{index:05d}/samples/{sample:04d}.png",
            fields=line.record,
        )
        for index, line in enumerate(read_lines(questions))
        for sample in range(SAMPLES)
    ]


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """The metadata file of every prompt's folder, as the official tool reads it."""
    assert options.folder is not None, "a submission needs a folder"
    records = {options.folder / str(one.item.output).split("/")[0]: one.item.fields for one in answered}
    for folder, record in records.items():
        write_text(folder / METADATA_FILE, json.dumps(dict(record)))
    return [folder / METADATA_FILE for folder in records]


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Accuracy per task, and their mean, from the official tool's verdicts."""
    if options.annotations is None:
        raise ValueError(f"GenEval is scored by its official tool: found no results of it; run {TOOL}")
    verdicts: dict[str, list[bool]] = defaultdict(list)
    wanted = {str(one.item.output): one.item for one in answered}
    seen: set[str] = set()
    for line in read_lines(options.annotations):
        name = "/".join(Path(need_field(line, "filename")).parts[-3:])
        if name not in wanted or name in seen:
            raise ValueError(
                f"{line.where} is about another picture: found {name}, or it twice; give this run's results"
            )
        seen.add(name)
        verdicts[need_field(line, "tag")].append(bool(need_field(line, "correct")))
    if missing := sorted(wanted.keys() - seen):
        raise ValueError(
            f"{options.annotations} has fewer verdicts than there are pictures: found {len(seen)} of {len(wanted)}, "
            f"the first one missing is {missing[0]}; let the official tool finish"
        )
    groups = {task: verdicts[task] for task in TASKS if verdicts[task]}
    scores: dict[str, Score] = {
        "overall": score_with_interval(
            list(groups.values()), lambda counts: 100 * sum(mean_of(count) for count in counts) / len(groups)
        )
    }
    scores |= {task: mean_with_interval(values) for task, values in groups.items()}
    return Scores(BENCHMARK.protocol("official-detector", count=len(answered)), "overall", scores)


BENCHMARK = Benchmark(
    name="geneval",
    summary="GenEval: evaluation_metadata.jsonl; scored from the results of its official tool",
    read_items=read_items,
    score=score,
    submit=submit,
    official_counts=(553 * SAMPLES,),
    mode="image",
    needs_annotations=False,
)
