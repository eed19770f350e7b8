"""`mllm evaluate report`: the tables of the paper, with our results beside the published ones."""

from __future__ import annotations

from pathlib import Path

from mllm.commands.arguments import CommandParser


def main(argv: list[str] | None = None) -> int:
    """Print the tables, or write them to a file."""
    parser = CommandParser(
        "mllm evaluate report",
        description="Compare results with published ones, as Markdown.",
        example="mllm evaluate report runs/pope runs/gqa -o report.md",
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="DIR", help="folders of scored runs, or result files")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it (default: the screen)")
    parser.add_argument("--name", help="what to call our model (default: its fingerprint)")
    arguments = parser.parse_args(argv)

    from mllm.evaluation.protocol import read_result
    from mllm.evaluation.report import make_report, model_of
    from mllm.files import write_text

    results = [(str(path), read_result(path)) for path in arguments.results]
    models = {model_of(result) for _, result in results}
    if arguments.name and len(models) > 1:
        raise ValueError(f"one name for {len(models)} models: found {', '.join(sorted(models))}; leave --name out")
    text = make_report(results, names={model: arguments.name for model in models} if arguments.name else {})
    if arguments.output is None:
        print(text, end="")
    else:
        write_text(arguments.output, text)
    return 0
