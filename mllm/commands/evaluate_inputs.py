"""What scoring and submitting have in common: find the answers, their questions, and bring both together."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.commands.arguments import CommandParser
from mllm.evaluation.protocol import BENCHMARKS, Answered, Benchmark, Item, find_benchmark, match_answers
from mllm.evaluation.run import ANSWERS_FILE, RunFolder, as_answer
from mllm.files import Line, fingerprint_of, read_lines


@dataclass(frozen=True, slots=True)
class Inputs:
    """Answers with their questions."""

    benchmark: Benchmark
    answered: list[Answered]
    num_items: int  # in the question file
    run: dict[str, Any] | None  # run.json; None where the answers come from elsewhere
    folder: Path  # where files go


def add_input_arguments(parser: CommandParser) -> None:
    """Which answers, and what they answer."""
    parser.add_argument("answers", type=Path, metavar="RUN", help="folder of a run, or an answers file")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="question file of the run")
    names = ", ".join(BENCHMARKS)
    parser.add_argument("--benchmark", metavar="NAME", help=f"only for an answers file: one of {names}")
    parser.add_argument("--partial", action="store_true", help="score what is answered, and say that it is a part")


def read_inputs(arguments: argparse.Namespace) -> Inputs:
    """Everything that the answers are matched with."""
    path = arguments.answers
    if not path.exists():
        raise FileNotFoundError(f"there is no run {path}: found nothing there; give --output of mllm evaluate")
    run = RunFolder(path).describe() if path.is_dir() else None
    benchmark = find_benchmark(benchmark_name(arguments, run))
    items = benchmark.read_items(arguments.questions, None)
    if run is not None:
        check_questions(arguments.questions, run)
    asked = items[: run["items"]] if run else items
    lines = read_folder(RunFolder(path), asked, partial=arguments.partial) if path.is_dir() else read_lines(path)
    answered = match_answers(benchmark, asked, lines, answers=path, partial=arguments.partial)
    return Inputs(benchmark, answered, len(items), run, path if path.is_dir() else path.parent)


def benchmark_name(arguments: argparse.Namespace, run: dict[str, Any] | None) -> str:
    """As the run says, or as typed."""
    typed: str | None = arguments.benchmark
    if run is None and typed is None:
        raise ValueError(f"{arguments.answers} does not say what it answers; give --benchmark")
    if run is not None and typed not in (None, run["benchmark"]):
        raise ValueError(f"{arguments.answers} is a run of {run['benchmark']}: found --benchmark {typed}; leave it out")
    return run["benchmark"] if run is not None else str(typed)


def check_questions(questions: Path, run: dict[str, Any]) -> None:
    """The question file must be the one that was asked."""
    if (found := fingerprint_of(questions)) != run["questions"]["fingerprint"]:
        raise ValueError(
            f"{questions} is not the file that was asked: found fingerprint {found}, the run has "
            f"{run['questions']['fingerprint']} ({run['questions']['file']}); give that file"
        )


def read_folder(folder: RunFolder, items: list[Item], *, partial: bool) -> list[Line]:
    """The answers of a run; of an unfinished one only if a part is enough."""
    if folder.answers_file.is_file():
        return read_lines(folder.answers_file)
    done = folder.read_parts()
    if not partial:
        raise ValueError(
            f"{folder.folder} is not finished: found {len(done)} of {len(items)} answers and no {ANSWERS_FILE}; start "
            "the run again to go on, or score what is there with --partial"
        )
    return [
        Line(f"{folder.folder}, item {index}", as_answer(items[index], done[index], model_id=""))
        for index in sorted(done)
    ]
