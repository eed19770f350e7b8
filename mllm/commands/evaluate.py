"""`mllm evaluate WORD ...`: finds what to measure or what to do with what was measured, and hands it the rest."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from mllm.evaluation.protocol import BENCHMARKS


class Job(NamedTuple):
    """A word after `mllm evaluate`."""

    module: str
    summary: str


JOBS = {
    "world": Job("mllm.commands.evaluate_world", "the synthetic world with its exact checker"),
    "tokenizer": Job("mllm.commands.evaluate_tokenizer", "an image tokenizer: reconstruction, codes, classes"),
    "score": Job("mllm.commands.evaluate_score", "score the answers of a run; needs no model"),
    "submit": Job("mllm.commands.evaluate_submit", "write the files that official tools and servers take"),
    "report": Job("mllm.commands.evaluate_report", "tables of results beside published ones"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one job, or put the questions of one benchmark to a model."""
    words = list(argv or [])
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] in JOBS:
        return importlib.import_module(JOBS[words[0]].module).main(words[1:])
    if words[0] not in BENCHMARKS:
        known = ", ".join([*JOBS, *BENCHMARKS])
        raise ValueError(f"there is nothing to evaluate called {words[0]!r}; use one of {known}")
    return importlib.import_module("mllm.commands.evaluate_benchmark").main(words)


def overview() -> str:
    """What `mllm evaluate --help` prints."""
    jobs = "\n".join(f"  {name:<10}{job.summary}" for name, job in JOBS.items())
    return (
        "usage: mllm evaluate WORD ...\n\n"
        "Measure a model: run a benchmark, score its answers, compare the results.\n\n"
        f"jobs:\n{jobs}\n\n"
        f"benchmarks (question file in, answers out): {', '.join(BENCHMARKS)}\n\n"
        "Each word has its own --help.\n\n"
        "example: mllm evaluate pope --questions llava_pope_test.jsonl --images val2014 --output runs/pope"
    )
