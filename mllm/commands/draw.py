"""`mllm draw`: a sentence, or the number of a class, to one or more picture files."""

from __future__ import annotations

from mllm.commands.arguments import (
    CommandParser,
    add_model_arguments,
    add_outline_argument,
    add_sampling_arguments,
    add_seed_argument,
    numbered,
    picture_path,
    picture_size,
    positive_count,
    sampling_overrides,
)


def main(argv: list[str] | None = None) -> int:
    """Draw, write the files and print their names and seeds."""
    parser = CommandParser(
        "mllm draw",
        description="Draw pictures of what a sentence says.",
        example='mllm draw "three small yellow stars on a black background" -o stars.png -n 4 --seed 1',
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to draw")
    parser.add_argument(
        "--class", dest="class_index", type=int, metavar="N", help="draw class N instead (class-conditional models)"
    )
    parser.add_argument("-o", "--output", type=picture_path, required=True, metavar="FILE", help="picture to write")
    parser.add_argument(
        "-n", type=positive_count, default=1, metavar="N", help="how many, as FILE-1, FILE-2 ... with following seeds"
    )
    parser.add_argument(
        "--best-of",
        type=positive_count,
        default=1,
        metavar="N",
        help="draw each picture N times and keep the one that the model itself finds right most probably",
    )
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="in pixels (default: the model's)")
    add_outline_argument(parser)
    add_seed_argument(parser)
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)
    if (arguments.prompt is None) == (arguments.class_index is None):
        raise ValueError("draw what? give a PROMPT or --class N, one of them; see mllm draw --help")
    if arguments.class_index is not None and arguments.size is not None:
        raise ValueError("classes are drawn in one size: found --size; leave it out")
    if arguments.class_index is not None and arguments.outline is not None:
        raise ValueError("a class needs no words: found --outline; leave it out")
    if arguments.class_index is not None and arguments.best_of > 1:
        raise ValueError("a class has no words to judge a picture by: found --best-of; leave it out")

    from mllm.commands.loading import load_pipeline
    from mllm.commands.progress import Progress
    from mllm.processor import save_image

    pipeline = load_pipeline(arguments)
    settings = {"n": arguments.n, "on_event": Progress().show, **sampling_overrides(arguments)}
    if arguments.class_index is not None:
        pictures = pipeline.draw_class(arguments.class_index, **settings)
    else:
        pictures = pipeline.draw(
            arguments.prompt, size=arguments.size, outline=arguments.outline, best_of=arguments.best_of, **settings
        )
    for path, picture in zip(numbered(arguments.output, count=len(pictures)), pictures, strict=True):
        save_image(picture, path)
        score = f"  score {picture.info['score']:.3f}" if "score" in picture.info else ""
        print(f"{path}  seed {picture.info['seed']}{score}")
    return 0
