"""`mllm evaluate score`: score answers; needs no model, no GPU and no network, except for a judge."""

from __future__ import annotations

import argparse
from pathlib import Path

from mllm.commands.arguments import CommandParser, positive_count
from mllm.commands.evaluate_inputs import Inputs, add_input_arguments, read_inputs
from mllm.evaluation.protocol import RESULT_FILE, ScoreOptions, as_table, make_result
from mllm.files import fingerprint_of, write_json


def main(argv: list[str] | None = None) -> int:
    """Score a run, print the table, write result.json."""
    parser = CommandParser(
        "mllm evaluate score",
        description="Score the answers of a run, or an answers file of LLaVA's runner.",
        example="mllm evaluate score runs/pope --questions llava_pope_test.jsonl --annotations pope/coco",
    )
    add_input_arguments(parser)
    parser.add_argument("--annotations", type=Path, metavar="PATH", help="the right answers, as published")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"the result (default: {RESULT_FILE} in the run)")
    parser.add_argument("--judge-model", metavar="NAME", help="model that grades open answers")
    parser.add_argument("--judge-url", metavar="URL", help="OpenAI-compatible server (default: OpenAI's)")
    parser.add_argument("--judge-runs", type=positive_count, default=1, metavar="N", help="how often it grades each")
    parser.add_argument("--scorer", metavar="NAME", help="of pictures: self, hf:MODEL or clip-flant5-xxl")
    parser.add_argument("--scorer-model", metavar="FOLDER", help="model for --scorer self (default: the toolkit's)")
    parser.add_argument("--scorer-device", metavar="DEVICE", help="where the scorer computes")
    parser.add_argument("--scorer-python", type=Path, metavar="FILE", help="python of the scorer's environment")
    arguments = parser.parse_args(argv)
    if arguments.annotations is not None and not arguments.annotations.exists():
        raise FileNotFoundError(f"there is no {arguments.annotations}: found nothing there; give the published files")

    inputs = read_inputs(arguments)
    if arguments.annotations is None and inputs.benchmark.needs_annotations:
        raise ValueError(f"the right answers are missing: {inputs.benchmark.summary}; give --annotations")
    result = score_inputs(inputs, arguments)
    write_json(arguments.json or inputs.folder / RESULT_FILE, result)
    print(as_table(result))
    return 0


def score_inputs(inputs: Inputs, arguments: argparse.Namespace) -> dict:
    """The result of what was read."""
    annotations = arguments.annotations
    options = ScoreOptions(annotations=annotations, folder=inputs.folder, judge=judge_of(arguments))
    files = {} if annotations is None else {"annotations": fingerprint_of(annotations)}
    return make_result(
        inputs.benchmark.name,
        inputs.benchmark.score(inputs.answered, options),
        run=inputs.run,
        expected=inputs.num_items,
        scored=len(inputs.answered),
        files={**files, "questions": fingerprint_of(arguments.questions)},
    )


def judge_of(arguments: argparse.Namespace) -> object:
    """The judge that was named, if one was."""
    if arguments.scorer is not None:
        from mllm.evaluation.scorers import find_scorer

        return find_scorer(
            arguments.scorer,
            model=arguments.scorer_model,
            device=arguments.scorer_device,
            python=arguments.scorer_python,
        )
    if arguments.judge_model is None and arguments.judge_url is None:
        return None
    from mllm.evaluation.understanding.judge import DEFAULT_MODEL, DEFAULT_URL, Judge

    return Judge(
        model=arguments.judge_model or DEFAULT_MODEL, url=arguments.judge_url or DEFAULT_URL, runs=arguments.judge_runs
    )
