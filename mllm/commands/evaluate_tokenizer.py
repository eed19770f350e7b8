"""`mllm evaluate tokenizer`: the tokenizer laboratory; a table on the screen, a result, a sheet of reconstructions."""

from __future__ import annotations

import argparse
from pathlib import Path

from mllm.commands.arguments import CommandParser, add_model_arguments, positive_count
from mllm.evaluation.protocol import RESULT_FILE, as_table
from mllm.files import write_json

CROPS = ("zero_shot", "reconstruction", "crop", "visual", "cover", "stretch")


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for."""
    arguments = parse(argv)

    from mllm.evaluation.tokenizer import measure_tokenizer

    result = measure_tokenizer(arguments)
    write_json(arguments.output / RESULT_FILE, result)
    print(as_table(result))
    codes = result["extra"]
    print(f"\ncodes: {codes['tokens']} tokens x {codes['codebooks']} codebooks, {codes['bits_per_picture']:.0f} bits")
    print("codebook  in use %  entropy nats  perplexity")
    rows = zip(codes["usage"], codes["entropy"], codes["perplexity"], strict=True)
    for index, (usage, entropy, perplexity) in enumerate(rows):
        print(f"{index:<8}  {100 * usage:8.1f}  {entropy:12.2f}  {perplexity:10.1f}")
    print(f"\n{arguments.output / 'sheet.png'}: originals above their reconstructions")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The typed words."""
    parser = CommandParser(
        "mllm evaluate tokenizer",
        description="Measure an image tokenizer: reconstruction, codes, and what the codes say about classes.",
        example="mllm evaluate tokenizer --model runs/unitok --images imagenet/val --output runs/lab --fid",
    )
    add_model_arguments(parser, language_model=False)
    parser.add_argument("--codec", metavar="MODULE:FUNCTION", help="another tokenizer, in place of --model")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR|TAR", help="pictures to reconstruct")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where results go")
    parser.add_argument("--crop", choices=CROPS, default="zero_shot", help="preparation of pictures (default: CLIP's)")
    parser.add_argument("--limit", type=positive_count, metavar="N", help="only the first N pictures")
    parser.add_argument("--batch-size", type=positive_count, default=16, help="pictures at once (default: 16)")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="weights of LPIPS (lpips_with_vgg.pth)")
    parser.add_argument("--fid", action="store_true", help="rFID and IS, by torch-fidelity")
    parser.add_argument(
        "--class-images", type=Path, metavar="DIR", help="one folder per class: zero-shot, probe's test"
    )
    parser.add_argument("--classes", metavar="FILE", help="names: JSON of folder to name, or imagenet (open_clip's)")
    parser.add_argument("--templates", type=Path, metavar="FILE", help="sentences with {} (default: CLIP's 80)")
    parser.add_argument("--text-vocabulary", type=Path, metavar="FILE", help="of the text tower; asks for zero-shot")
    parser.add_argument("--probe-images", type=Path, metavar="DIR", help="one folder per class: a linear probe learns")
    arguments = parser.parse_args(argv)
    wants_classes = arguments.text_vocabulary is not None or arguments.probe_images is not None
    if wants_classes and arguments.class_images is None:
        raise ValueError("no pictures with classes to test on: found no --class-images; give a folder of class folders")
    if arguments.class_images is not None and not wants_classes:
        raise ValueError("--class-images alone measures nothing; add --text-vocabulary, --probe-images, or both")
    return arguments
