"""`mllm train RECIPE.yaml [--key value ...]`: read the recipe, start the trainer that its kind names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import load_text_tokenizer
from tokenizer.unitok import UniTok
from train.build_model import build_model
from train.callbacks import Observer, Observers, SampleSheet, check_best_metric
from train.checkpoints import (
    check_sharding_is,
    join_parts,
    needs_joining,
    newest_checkpoint,
    remove_unfinished,
    save_model_folder,
)
from train.data.batches import training_batches, validation_batches
from train.data.packing import Tokenizers
from train.hardware import speed_up
from train.metrics import size_of
from train.recipe import MLLMRecipe, as_yaml, choose_parts, find_recipe, read_yaml, resolve
from train.trainer import MLLMTrainer, sharding_of_run, training_arguments

USAGE = "usage: mllm train RECIPE.yaml [--key value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the recipe describes; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = [word for word in words if not word.startswith("--local_rank=")]  # deepspeed's launcher puts it first
    if not words or words[0].startswith("-"):
        raise ValueError(f"no recipe was given; {USAGE}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    values = read_yaml(find_recipe(words[0]))
    match values.get("kind"):
        case "text_tokenizer":
            from train.recipe import TextTokenizerRecipe
            from train.text_tokenizer import train_world_tokenizer

            train_world_tokenizer(resolve(TextTokenizerRecipe, values, words[1:]))
        case "image_tokenizer":
            from train.recipe import TokenizerRecipe
            from train.tokenizer_trainer import TokenizerTrainer

            TokenizerTrainer(resolve(TokenizerRecipe, values, words[1:])).train()
        case "mllm":
            from train.recipe import MLLMRecipe

            pass  # MERGED

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


if __name__ == "__main__":
    from mllm.cli.main import main as toolkit  # says what is wrong in one sentence, as `mllm train` does

    sys.exit(toolkit(["train", *sys.argv[1:]]))


# From an `MLLMRecipe` to a trained model folder: put tokenizers, model, data and trainer together.


logger = logging.getLogger(__name__)

FINAL = "final"
"""Folder of the finished model below a run's output."""


def train_mllm(recipe: MLLMRecipe) -> None:
    """Train, going on from the newest checkpoint in the output folder, and write the finished model to `final/`."""
    arguments = training_arguments(recipe)
    prepare_output(recipe, arguments)
    image_tokenizer = UniTok.from_pretrained(recipe.image_tokenizer)
    text_tokenizer = load_text_tokenizer(recipe.text_tokenizer)
    base = build_model(recipe, text_tokenizer, image_tokenizer, dtype=load_dtype(recipe, arguments))
    logger.info("the model has %.2f M parameters", size_of(base) / 1e6)
    if arguments.use_cpu:
        speed_up(base.backbone, compiles=recipe.compile_backbone)
    elif recipe.compile_backbone:
        base.backbone.compile(dynamic=False)
    model = learner(recipe, base)
    tokenizers = Tokenizers(
        text=text_tokenizer,
        image=image_tokenizer,
        config=base.config,
    )
    steps = arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size
    watching, validation = observers(recipe, base, tokenizers), validation_batches(recipe, tokenizers)
    check_best_metric(arguments.metric_for_best_model, validation, others=watching.names)
    trainer = MLLMTrainer(
        model,
        recipe=recipe,
        arguments=arguments,
        batches=training_batches(recipe, tokenizers, num_batches=steps),
        validation=validation,
        observers=watching,
    )
    trainer.go_on_from(newest_checkpoint(recipe.output))
    finish(trainer, tokenizers)


def observers(recipe: MLLMRecipe, model: MLLMForConditionalGeneration, tokenizers: Tokenizers) -> Observers:
    """Those that the recipe asks for."""
    found: list[Observer] = []
    if recipe.validation and recipe.validation.prompts:
        found.append(SampleSheet(recipe.validation.prompts, folder=recipe.output / "samples"))
    if recipe.validation and recipe.validation.benchmarks:
        from train.callbacks import BenchmarksInLoop

        found.append(BenchmarksInLoop(recipe.validation.benchmarks, folder=recipe.output / "benchmarks"))
    if recipe.validation and recipe.validation.world:
        from train.callbacks import WorldScores

        found.append(WorldScores(recipe.validation.world, image_size=tokenizers.config.image_size))
    return Observers(model, tokenizers, found)


def prepare_output(recipe: MLLMRecipe, arguments: TrainingArguments) -> None:
    """The output folder with the resolved recipe, and a checkpoint that can be read; made by the first process."""
    state = PartialState()
    newest = newest_checkpoint(recipe.output)
    if newest is not None:
        check_sharding_is(sharding_of_run(arguments), newest)
    if state.is_main_process:
        recipe.output.mkdir(parents=True, exist_ok=True)
        (recipe.output / "recipe.yaml").write_text(as_yaml(recipe))
        remove_unfinished(recipe.output)
        if newest is not None and needs_joining(newest, arguments.world_size):
            join_parts(newest)
    state.wait_for_everyone()


def learner(recipe: MLLMRecipe, base: MLLMForConditionalGeneration) -> torch.nn.Module:
    """The model as it is trained: some parts frozen, or with adapters."""
    if recipe.adapter is None:
        choose_parts(base, recipe.trains)
        return base
    from train.lora import add_adapters

    assert recipe.start_from is not None, "a recipe with an adapter starts from a model"
    torch.manual_seed(recipe.trainer.get("seed", 0))  # adapters start random, alike on every process
    return add_adapters(base, recipe.adapter, trains=recipe.trains, base=recipe.start_from)


def load_dtype(recipe: MLLMRecipe, arguments: TrainingArguments) -> torch.dtype:
    """In which precision weights are loaded: bfloat16 where another copy or nothing of them is trained.

    DeepSpeed keeps its own float32 weights, and below adapters the weights are frozen (what learns beside them is made
    float32 there); else training needs float32.
    """
    has_float32_elsewhere = bool(arguments.deepspeed) or recipe.adapter is not None
    return torch.bfloat16 if arguments.bf16 and has_float32_elsewhere else torch.float32


def finish(trainer: MLLMTrainer, tokenizers: Tokenizers) -> None:
    """Write the finished model, or the finished adapter, from the first process."""
    model = trainer.model
    if trainer.average:
        trainer.average.copy_into(model)
    weights = trainer.whole_weights()
    folder = trainer.recipe.output / FINAL
    if trainer.is_world_process_zero():
        if trainer.recipe.adapter is not None:
            model.save_pretrained(folder, state_dict=weights)
        else:
            save_model_folder(
                folder,
                model=model,
                text_tokenizer=tokenizers.text,
                image_tokenizer=tokenizers.image,
                state_dict=weights,
            )
    trainer.accelerator.wait_for_everyone()
