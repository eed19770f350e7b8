"""From an `MLLMRecipe` to a trained model folder: put tokenizers, model, data and trainer together."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from tokenizer.model import UniTok
from train.cpu_speed import speed_up
from train.data.world_codes import WorldCodes
from train.data.world_sequences import WorldBatches
from train.mllm_recipe import MLLMRecipe
from train.mllm_trainer import MLLMTrainer
from train.precision import prefers_bfloat16
from train.recipe import as_yaml
from train.save_model import save_model_folder

logger = logging.getLogger(__name__)


def train_mllm(recipe: MLLMRecipe) -> None:
    """Train, going on from the newest checkpoint in the output folder, and write the finished model to `final/`."""
    arguments = training_arguments(recipe)
    recipe.output.mkdir(parents=True, exist_ok=True)
    (recipe.output / "recipe.yaml").write_text(as_yaml(recipe))
    image_tokenizer = UniTok.from_pretrained(recipe.image_tokenizer)
    text_tokenizer = load_text_tokenizer(recipe.text_tokenizer)
    model = build_model(recipe, text_tokenizer, image_tokenizer)
    logger.info("the model has %.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    if arguments.use_cpu:
        speed_up(model.backbone, compiles=recipe.compile_backbone)
    codes = encode_world(recipe, image_tokenizer, bf16=arguments.bf16)
    batches = WorldBatches(
        recipe.data,
        codes,
        tokenizer=text_tokenizer,
        config=config_of(model),
        grid=image_tokenizer.config.grid,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size,
    )
    trainer = MLLMTrainer(model, recipe=recipe, arguments=arguments, batches=batches)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    if trainer.average:
        trainer.average.copy_into(model)
    save_model_folder(
        recipe.output / "final", model=model, text_tokenizer=text_tokenizer, image_tokenizer=image_tokenizer
    )


def build_model(
    recipe: MLLMRecipe, text_tokenizer: PreTrainedTokenizerBase, image_tokenizer: UniTok
) -> MLLMForConditionalGeneration:
    """A model that goes on from another, or a new one whose ids and codebooks are those of the tokenizers."""
    fields = dict(recipe.model)
    vocabulary = extend_tokenizer(
        text_tokenizer, max_grid_side=fields.get("max_grid_side"), num_classes=fields.get("num_classes", 0)
    )
    if recipe.start_from is not None:
        return MLLMForConditionalGeneration.from_pretrained(recipe.start_from)
    sizes = image_tokenizer.config
    fields["text_config"] = {**fields.get("text_config", {}), **token_fields(vocabulary.size, text_tokenizer)}
    config = MLLMConfig(
        **{
            **fields,
            **vocabulary.config_fields(),
            "num_codebooks": sizes.num_codebooks,
            "codebook_size": sizes.codebook_size,
            "code_width": sizes.code_width,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
        }
    )
    torch.manual_seed(recipe.trainer.get("seed", 0))
    model = MLLMForConditionalGeneration(config)
    model.code_embedding.adopt(image_tokenizer)
    return model


def config_of(model: MLLMForConditionalGeneration) -> MLLMConfig:
    """The model's config by its own type."""
    assert isinstance(model.config, MLLMConfig), "the model's config_class is MLLMConfig"
    return model.config


def token_fields(vocab_size: int, text_tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the backbone's config must know of the text tokenizer."""
    return {
        "vocab_size": vocab_size,
        "bos_token_id": text_tokenizer.bos_token_id,
        "eos_token_id": text_tokenizer.eos_token_id,
        "pad_token_id": text_tokenizer.pad_token_id,
    }


def encode_world(recipe: MLLMRecipe, image_tokenizer: UniTok, *, bf16: bool) -> WorldCodes:
    """The codes of the world's pictures, encoded where they are missing."""
    codes = WorldCodes(
        recipe.output / "codes",
        num_episodes=recipe.data.episodes,
        dense_every=recipe.data.dense_every,
        seed=recipe.data.seed,
    )
    codes.encode_missing(image_tokenizer, precision=torch.bfloat16 if bf16 else torch.float32)
    return codes


def training_arguments(recipe: MLLMRecipe) -> TrainingArguments:
    """The library's arguments: what the recipe says, and what packed batches need.

    Raises:
        ValueError: a key of `trainer` that TrainingArguments does not know.
    """
    fixed = {
        "output_dir": str(recipe.output),
        "per_device_train_batch_size": 1,  # an item of the data set is a whole batch
        "remove_unused_columns": False,
        "learning_rate": recipe.optimizer.learning_rate,
        "dataloader_num_workers": 1,
        "report_to": "none",
        "disable_tqdm": False,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": prefers_bfloat16(),
        "average_tokens_across_devices": False,  # our trainer counts over the ranks itself
    }
    try:
        return TrainingArguments(**{**fixed, **recipe.trainer})
    except TypeError as error:
        raise ValueError(f"trainer has a key that TrainingArguments does not know: {error}; mend the recipe") from None
