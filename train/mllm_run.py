"""From an `MLLMRecipe` to a trained model folder: put tokenizers, model, data and trainer together."""

from __future__ import annotations

import logging

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import load_text_tokenizer
from tokenizer.model import UniTok
from train.batch_source import Tokenizers, training_batches, validation_batches
from train.build_model import build_model
from train.checkpoint.checkpoints import newest_checkpoint, remove_unfinished
from train.checkpoint.resharding import check_sharding_is, join_parts, needs_joining
from train.checkpoint.save_model import save_model_folder
from train.cpu_speed import speed_up
from train.mllm_recipe import MLLMRecipe
from train.mllm_trainer import MLLMTrainer
from train.observing.observers import Observer, Observers
from train.observing.sample_sheet import SampleSheet
from train.observing.throughput import size_of
from train.observing.validation import check_best_metric
from train.parts import choose_parts
from train.recipe import as_yaml
from train.training_arguments import sharding_of_run, training_arguments

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
        from train.observing.benchmarks_in_loop import BenchmarksInLoop

        found.append(BenchmarksInLoop(recipe.validation.benchmarks, folder=recipe.output / "benchmarks"))
    if recipe.validation and recipe.validation.world:
        from train.observing.world_in_loop import WorldScores

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
    from train.adapters import add_adapters

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
