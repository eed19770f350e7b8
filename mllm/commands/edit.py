"""`mllm edit`: a picture and an instruction to a picture file."""

from __future__ import annotations

from mllm.commands.arguments import (
    CommandParser,
    add_model_arguments,
    add_outline_argument,
    add_sampling_arguments,
    add_seed_argument,
    picture_path,
    picture_size,
    sampling_overrides,
)


def main(argv: list[str] | None = None) -> int:
    """Edit, write the file and print its name and seed."""
    parser = CommandParser(
        "mllm edit",
        description='Change a picture as told, or turn it into another kind of picture ("Depth estimation.").',
        example='mllm edit a.png "Make the circle green." -o b.png',
    )
    parser.add_argument("image", metavar="IMAGE", help="picture file to change")
    parser.add_argument("instruction", metavar="INSTRUCTION", help="what to change")
    parser.add_argument("-o", "--output", type=picture_path, required=True, metavar="FILE", help="picture to write")
    parser.add_argument("--size", type=picture_size, metavar="WxH", help="in pixels (default: that of IMAGE)")
    add_outline_argument(parser)
    add_seed_argument(parser)
    add_sampling_arguments(parser)
    add_model_arguments(parser)
    arguments = parser.parse_args(argv)

    from mllm.commands.loading import load_pipeline
    from mllm.commands.progress import Progress
    from mllm.processor import save_image
    from tokenizer.images import open_image

    image = open_image(arguments.image)
    pipeline = load_pipeline(arguments)
    picture = pipeline.edit(
        image,
        arguments.instruction,
        size=arguments.size,
        outline=arguments.outline,
        on_event=Progress().show,
        **sampling_overrides(arguments),
    )
    save_image(picture, arguments.output)
    print(f"{arguments.output}  seed {picture.info['seed']}")
    return 0
