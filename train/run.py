"""`mllm train RECIPE.yaml [--key value ...]`: read the recipe and run the training that its kind names.

The trainers are imported only then: a wrong recipe is refused at once.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mllm.files import only_writer
from train.recipe import MLLMRecipe, TextTokenizerRecipe, TokenizerRecipe, find_recipe, read_yaml, resolve


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    args = [word for word in args if not word.startswith("--local_rank=")]  # deepspeed's launcher puts it first
    if not args or args[0].startswith("-"):
        raise ValueError("a recipe must be given, got none; usage: mllm train RECIPE.yaml [--key value ...]")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    path = find_recipe(args[0])
    values = read_yaml(path)
    match values.get("kind"):
        case "text_tokenizer":
            text = resolve(TextTokenizerRecipe, values, args[1:], path=path)
            from train.text_tokenizer import train_from_recipe

            train_from_recipe(text)
        case "image_tokenizer":
            image = resolve(TokenizerRecipe, values, args[1:], path=path)
            with alone_in(image.output):
                from train.tokenizer_trainer import TokenizerTrainer

                TokenizerTrainer(image).train()
        case "mllm":
            mllm = resolve(MLLMRecipe, values, args[1:], path=path)
            with alone_in(mllm.output):
                from train.trainer import train_mllm

                train_mllm(mllm)
        case kind:
            raise ValueError(f"kind must be text_tokenizer, image_tokenizer or mllm, got {kind!r}; change the recipe")
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # together: a process that ends while others wait may be aborted
    return 0


@contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Within, no other training may write this folder; an interruption says how to resume."""
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        with only_writer(output) if is_first else nullcontext():
            yield
    except KeyboardInterrupt:
        from train.checkpoints import newest_checkpoint

        if is_first:
            newest = newest_checkpoint(output)
            found = f"resumes from {newest}" if newest else f"starts again: {output} has no checkpoint yet"
            print(f"\nmllm: interrupted; the same command {found}", file=sys.stderr)
        raise


if __name__ == "__main__":
    from mllm.cli.main import main as toolkit  # prints errors as `mllm train` does

    sys.exit(toolkit(["train", *sys.argv[1:]]))
