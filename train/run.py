"""`mllm train RECIPE.yaml [--key value ...]`: read the recipe, start the trainer that its kind names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from train.recipe import RECIPES, find_recipe, read_yaml, resolve

USAGE = "usage: mllm train RECIPE.yaml [--key value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the recipe describes; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = [word for word in words if not word.startswith("--local_rank=")]  # deepspeed's launcher puts it first
    if words[:1] in (["-h"], ["--help"]):
        print(explanation())
        return 0
    if not words or words[0].startswith("-"):
        raise ValueError(f"no recipe was given; {USAGE}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    values = read_yaml(find_recipe(words[0]))
    match values.get("kind"):
        case "text_tokenizer":
            from train.text_recipe import TextTokenizerRecipe
            from train.text_tokenizer import train_world_tokenizer

            train_world_tokenizer(resolve(TextTokenizerRecipe, values, words[1:]))
        case "image_tokenizer":
            from train.image_tokenizer.recipe import TokenizerRecipe
            from train.image_tokenizer.trainer import TokenizerTrainer

            TokenizerTrainer(resolve(TokenizerRecipe, values, words[1:])).train()
        case "mllm":
            from train.mllm_recipe import MLLMRecipe
            from train.mllm_run import train_mllm

            train_mllm(resolve(MLLMRecipe, values, words[1:]))
        case kind:
            raise ValueError(f"the recipe's kind is {kind!r}; it must be text_tokenizer, image_tokenizer or mllm")
    leave_other_processes()
    return 0


def leave_other_processes() -> None:
    """End the exchange with the other processes: one that ends while it still waits for them may be aborted."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def explanation() -> str:
    """What `mllm train --help` prints."""
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    return (
        f"{USAGE}\n\n"
        "Train what a recipe describes, or go on from the newest checkpoint in its output folder. RECIPE is a YAML\n"
        f"file or the name of a recipe of the toolkit: {shipped}. Every key can be set by --key value.\n\n"
        "example: mllm train tiny_tokenizer --output runs/tokenizer --steps 200"
    )


if __name__ == "__main__":
    from mllm.__main__ import main as toolkit  # says what is wrong in one sentence, as `mllm train` does

    sys.exit(toolkit(["train", *sys.argv[1:]]))
