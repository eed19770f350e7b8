"""The model that a recipe asks for: new, a model of ours to train further, or new around a language model.

Under ZeRO-3 (train/trainer.py) loading partitions every weight; what is changed afterwards is gathered one layer at a
time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from mllm.checkpoint import our_shapes, quantization_config
from mllm.config import OLD_NAMES, MLLMConfig
from mllm.embedding import ProjectedEmbedding
from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import Vocabulary, added_ids, extend_tokenizer, fill_new_rows
from tokenizer.unitok import UniTok
from tokenizer.weights import TensorFiles, weight_files
from train.checkpoints import gathered, partition
from train.recipe import PARAMETER_GROUPS, MLLMRecipe

IMAGE_FIELDS = ("num_codebooks", "codebook_size", "code_width", "image_size", "patch_size")  # of the tokenizer
GRID_FIELDS = ("image_layout", "max_grid_side", "sizes")  # may grow the table of positions, after weights are loaded
SOURCE = ("code_embedding.source.codebooks",)
NOT_QUANTIZED = ("lm_head", "code_embedding", "code_head")  # modules that keep their precision below adapters (QLoRA)


def build_model(
    recipe: MLLMRecipe,
    text_tokenizer: PreTrainedTokenizerBase,
    image_tokenizer: UniTok,
    dtype: torch.dtype = torch.float32,
) -> MLLMForConditionalGeneration:
    """A model whose ids and codebooks are those of the tokenizers (the text tokenizer is extended in place)."""
    for name, folder in (("start_from", recipe.start_from), ("backbone", recipe.backbone)):
        if folder is not None and (folder.is_absolute() or name == "start_from") and not folder.is_dir():
            raise FileNotFoundError(f"{name} must be the folder of a model, got {folder}; correct the path")
    sizes = {name: getattr(image_tokenizer.config, name) for name in IMAGE_FIELDS}
    advice = "as in the recipe's image_tokenizer", "leave it out, or name another image tokenizer"
    require_equal("model.{}", recipe.model, sizes, advice)
    if unknown := sorted(set(recipe.model) - {*MLLMConfig.__dataclass_fields__, *OLD_NAMES}):
        raise ValueError(f"model must have fields of MLLMConfig, got {', '.join(unknown)}; correct or leave them out")
    start = MLLMConfig.from_pretrained(recipe.start_from, local_files_only=True) if recipe.start_from else None
    has_plans = start is not None and start.begin_plan_id is not None
    vocabulary = extend_tokenizer(
        text_tokenizer,
        max_grid_side=recipe.model.get("max_grid_side", getattr(start, "max_grid_side", None)),
        num_classes=recipe.model.get("num_classes", getattr(start, "num_classes", 0)),
        plans=recipe.data.plans or has_plans,
    )
    if start is not None:
        check_same_ids(start, vocabulary, folder=recipe.start_from)
        codes = {name: size for name, size in sizes.items() if name != "image_size"}
        advice = f"as the model in {recipe.start_from}", "name the tokenizer that it was trained with"
        require_equal("{} of image_tokenizer", codes, vars(start), advice)
        return _load(recipe, start, vocabulary, dtype=dtype)
    torch.manual_seed(recipe.trainer.get("seed", 0))
    if recipe.backbone is not None:
        return _build_around(recipe, vocabulary, image_tokenizer, dtype=dtype)
    ids = {name: getattr(text_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = {**recipe.model.get("text_config", {}), "vocab_size": vocabulary.size, **ids}
    config = model_config(recipe, text_config, vocabulary, image_tokenizer)
    is_sharded = is_deepspeed_zero3_enabled()
    model = MLLMForConditionalGeneration._from_config(config) if is_sharded else MLLMForConditionalGeneration(config)
    with gathered(model.code_embedding.parameters()):
        model.code_embedding.adopt(image_tokenizer)
    return model


def model_config(
    recipe: MLLMRecipe, text_config: dict[str, Any], vocabulary: Vocabulary, image_tokenizer: UniTok
) -> MLLMConfig:
    """The recipe's fields, with the ids and sizes that the tokenizers fix."""
    sizes = {name: getattr(image_tokenizer.config, name) for name in IMAGE_FIELDS}
    with misfits_named():
        return MLLMConfig(**{**recipe.model, "text_config": text_config, **vocabulary.config_fields(), **sizes})


@contextmanager
def misfits_named() -> Iterator[None]:
    """Errors of transformers' own about fields of a config become sentences about the recipe."""
    try:
        yield
    except (StrictDataclassError, ArithmeticError, TypeError) as error:
        raise ValueError(f"model must have fields that fit each other, got: {error}; change the recipe") from error


def freeze_all_but(model: nn.Module, groups: Sequence[str]) -> None:
    """Freeze all groups of parameters but the named ones (changed in place)."""
    for name, parameter in model.named_parameters():
        group = next((group for group, begins in PARAMETER_GROUPS.items() if name.startswith(begins)), None)
        assert group is not None, f"parameter {name!r} must be in a group; add it to PARAMETER_GROUPS"
        if "all" not in groups and group not in groups:
            parameter.requires_grad_(False)


def _load(
    recipe: MLLMRecipe, start: MLLMConfig, vocabulary: Vocabulary, *, dtype: torch.dtype
) -> MLLMForConditionalGeneration:
    """A model of ours, with more tokens, a larger grid and other settings if the recipe says so."""
    changes = {name: value for name, value in recipe.model.items() if name not in GRID_FIELDS}
    config = changed_config(start, changes, folder=recipe.start_from)
    grid = {name: recipe.model.get(name, getattr(start, name)) for name in GRID_FIELDS}
    check_grid(start, grid, folder=recipe.start_from)
    options = {}
    if recipe.adapter and recipe.adapter.bits:
        kind = {4: "nf4", 8: "bnb8"}[recipe.adapter.bits]
        options["quantization_config"] = quantization_config(kind, dtype=torch.bfloat16, kept=NOT_QUANTIZED)
    model = MLLMForConditionalGeneration.from_pretrained(recipe.start_from, config=config, dtype=dtype, **options)
    resize_vocabulary(model, vocabulary, known=start)
    positions = model.code_embedding.places
    if positions is not None and (grid["max_grid_side"] or 0) > (start.max_grid_side or start.grid_side):
        with gathered(positions.parameters()):
            positions.extend(grid["max_grid_side"])
        partition([positions])
    for name, value in grid.items():
        setattr(model.config, name, value)
    model.config.check()
    return model


def changed_config(start: MLLMConfig, changes: dict[str, Any], *, folder: Path) -> MLLMConfig:
    """The config of a model of ours with other settings, which must fit its weights."""
    fields = start.to_dict()
    text_config = {**fields["text_config"], **changes.get("text_config", {})}
    with misfits_named():
        config = MLLMConfig.from_dict({**fields, **changes, "text_config": text_config})
    shapes = (our_shapes(MLLMForConditionalGeneration, each) for each in (start, config))
    before, after = ({name: tuple(value.shape) for name, value in each.items()} for each in shapes)
    # a source embedding begins as zeros, so any model can be given one
    after = {name: shape for name, shape in after.items() if name in before or name not in SOURCE}
    if before != after:
        (name, *_) = sorted(set(before.items()) ^ set(after.items()))
        raise ValueError(
            f"model must have fields that fit the weights in {folder}, got {changes}, which change {name[0]} (and "
            "perhaps others); leave out what shapes the weights"
        )
    return config


def check_grid(start: MLLMConfig, grid: dict[str, Any], *, folder: Path) -> None:
    """Refuse a grid that size tokens or the table of positions cannot express."""
    side = grid["max_grid_side"]
    if (grid["image_layout"] == "grid") != (side is not None):
        raise ValueError(
            f"max_grid_side must be given with image_layout 'grid' alone, got {side} with {grid['image_layout']!r}; "
            "change one of them"
        )
    bound = start.max_grid_side or f">= {start.grid_side}"
    if start.max_grid_side not in (None, side) or (side is not None and side < start.grid_side):
        raise ValueError(f"max_grid_side must be {bound} for the model in {folder}, got {side}; change it")


def resize_vocabulary(model: MLLMForConditionalGeneration, vocabulary: Vocabulary, *, known: MLLMConfig | None) -> None:
    """Give new tokens rows, each the mean of the rows before, and put their ids into the config (changed in place). A
    language model may have more rows than its tokenizer has tokens; the new ones then take the first of those. `known`:
    the config of a model of ours that the rows come from; None: a language model, which knows no images."""
    num_rows = model.config.vocab_size
    new_ids = added_ids(vocabulary) - (set() if known is None else added_ids(known))
    new_ids |= set(range(num_rows, vocabulary.size))
    if vocabulary.size > num_rows:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    if new_ids:
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        with gathered(parameter for layer in layers for parameter in layer.parameters()):
            fill_new_rows(layers, new_ids)
        if vocabulary.size > num_rows:
            partition(layers)
    for name, value in vocabulary.config_fields().items():
        if value is not None:
            setattr(model.config, name, value)


def check_same_ids(start: MLLMConfig, vocabulary: Vocabulary, *, folder: Path) -> None:
    """Refuse a text tokenizer with other ids than the model was trained on."""
    advice = f"as the model in {folder}", "name that folder as text_tokenizer"
    require_equal("{} of text_tokenizer", vocabulary.config_fields(), vars(start), advice)


def require_equal(subject: str, found: Mapping[str, Any], expected: Mapping[str, Any], advice: tuple[str, str]) -> None:
    """Refuse values that differ where both have one; the advice is where it comes from, and what to do."""
    for name, value in found.items():
        if name in expected and None not in (value, expected[name]) and value != expected[name]:
            raise ValueError(f"{subject.format(name)} must be {expected[name]} {advice[0]}, got {value}; {advice[1]}")


def _build_around(
    recipe: MLLMRecipe, vocabulary: Vocabulary, image_tokenizer: UniTok, *, dtype: torch.dtype
) -> MLLMForConditionalGeneration:
    """A model around a language model, or around that of a model of ours. Codebooks and attention projection are the
    image tokenizer's decoder side (UniTok trains the projection bidirectionally and continues it causally); projector
    and code head are new."""
    stored = AutoConfig.from_pretrained(recipe.backbone)
    is_ours = isinstance(stored, MLLMConfig)
    if is_ours:
        check_same_ids(stored, vocabulary, folder=recipe.backbone)
    text_config = {**(stored.text_config if is_ours else stored).to_dict(), **recipe.model.get("text_config", {})}
    config = model_config(recipe, text_config, vocabulary, image_tokenizer)
    if is_ours:
        tensors = TensorFiles(weight_files(recipe.backbone))
        words = {name: tensors[name] for name in tensors if name.startswith(("backbone.", "lm_head."))}
        model = MLLMForConditionalGeneration.from_pretrained(None, config=config, dtype=dtype, state_dict=words)
    else:
        of_transformers: Any = AutoModelForCausalLM._model_mapping[type(stored)]
        renamed = {rf"^{of_transformers.base_model_prefix}\.": "backbone."}
        model = MLLMForConditionalGeneration.from_pretrained(
            recipe.backbone, config=config, dtype=dtype, key_mapping=renamed
        )
    resize_vocabulary(model, vocabulary, known=stored if is_ours else None)
    embedding = model.code_embedding
    with gathered(embedding.parameters()):
        embedding.adopt(image_tokenizer)
        has_attention = image_tokenizer.config.projection == "attention"
        if isinstance(embedding, ProjectedEmbedding) and (has_attention or config.embedding_context == "bidirectional"):
            embedding.set_projection(image_tokenizer.post_quant_proj)
    return model
