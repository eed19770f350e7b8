"""`mllm evaluate submit`: write answers in the form that an official tool or server takes."""

from __future__ import annotations

from pathlib import Path

from mllm.commands.arguments import CommandParser
from mllm.commands.evaluate_inputs import add_input_arguments, read_inputs
from mllm.evaluation.protocol import ScoreOptions


def main(argv: list[str] | None = None) -> int:
    """Write the files and name them."""
    parser = CommandParser(
        "mllm evaluate submit",
        description="Write the files that official tools and servers take: EvalAI (VQAv2), GQA, MME, MM-Vet.",
        example="mllm evaluate submit runs/vqav2 --questions test-dev.jsonl --split llava_vqav2_mscoco_test2015.jsonl",
    )
    add_input_arguments(parser)
    parser.add_argument(
        "--annotations", type=Path, metavar="PATH", help="the published files, where the format has them"
    )
    parser.add_argument("--split", type=Path, metavar="FILE", help="question file of the whole split (VQAv2)")
    arguments = parser.parse_args(argv)
    inputs = read_inputs(arguments)
    if inputs.benchmark.submit is None:
        raise ValueError(f"{inputs.benchmark.name} has no submission: it is scored here; use mllm evaluate score")
    options = ScoreOptions(annotations=arguments.annotations, split=arguments.split, folder=inputs.folder)
    part = (
        "" if len(inputs.answered) == inputs.num_items else f"  PARTIAL: {len(inputs.answered)} of {inputs.num_items}"
    )
    for path in inputs.benchmark.submit(inputs.answered, options):
        print(f"{path}{part}")
    return 0
