"""`mllm evaluate world`: the synthetic world with its exact checker; a table on the screen, and all of it in a file."""

from __future__ import annotations

from typing import cast

from mllm.commands.arguments import (
    CommandParser,
    add_json_argument,
    add_model_arguments,
    add_sampling_arguments,
    picture_size,
    positive_count,
    sampling_overrides,
)


def main(argv: list[str] | None = None) -> int:
    """Run a benchmark and print its scores."""
    parser = CommandParser(
        "mllm evaluate world",
        description="Measure a model on the synthetic world with its exact checker.",
        example="mllm evaluate world --count 500 --json scores.json",
    )
    parser.add_argument("--count", type=positive_count, default=500, help="items of each kind (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the items and of the sampling (default: 0)")
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help="such as draw ask edit (default: all)")
    parser.add_argument("--batch-size", type=positive_count, default=32, help="items at once (default: 32)")
    parser.add_argument(
        "--best-of",
        type=positive_count,
        nargs="+",
        default=[],
        metavar="N",
        help="also let the model choose among N of its pictures, such as 1 4 16, and measure its judgement",
    )
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="of the pictures (default: the model's)")
    add_json_argument(parser, what="scores")
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)

    from mllm.commands.loading import load_pipeline
    from mllm.evaluation.world import as_table, measure_world
    from mllm.files import write_json
    from mllm.processor import Overrides

    sampling = cast(Overrides, sampling_overrides(arguments))
    report = measure_world(
        load_pipeline(arguments),
        count=arguments.count,
        seed=arguments.seed,
        jobs=arguments.jobs,
        batch_size=arguments.batch_size,
        sampling=sampling,
        size=arguments.size,
        best_of=arguments.best_of,
    )
    print(as_table(report))
    if arguments.json:
        write_json(arguments.json, report)
    return 0
