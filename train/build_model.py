"""The model that a recipe asks for: from nothing, from a model of ours, or around a language model such as Llama-2.

Under DeepSpeed ZeRO-3 (see train/trainer.py) loading gives every process its part of each weight only; the
first process reads the files, and what is changed afterwards is gathered one layer at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from mllm.checkpoint import quantization_config
from mllm.config import MLLMConfig
from mllm.embedding import ProjectedEmbedding
from mllm.model import MLLMForConditionalGeneration
from mllm.vocabulary import Vocabulary, extend_embeddings, extend_tokenizer, fill_new_rows
from tokenizer.unitok import UniTok
from train.checkpoints import cut, whole
from train.recipe import MLLMRecipe

SETTINGS = (
    *("prompt_style", "tasks", "sizes", "text_loss_weight", "z_loss_weight"),
    *("image_guidance", "image_temperature", "image_top_k", "image_top_p", "image_resamples"),
)
"""Fields of MLLMConfig that shape no weights: the next stage of a training may have others."""
GROWING = ("image_layout", "max_grid_side")
"""Fields that may change once, from one size of picture to many: they only add tokens."""
LLAMA_KEYS = {r"^model\.": "backbone."}
"""Names in a causal language model of transformers, and here."""


def build_model(
    recipe: MLLMRecipe,
    text_tokenizer: PreTrainedTokenizerBase,
    image_tokenizer: UniTok,
    *,
    dtype: torch.dtype = torch.float32,
) -> MLLMForConditionalGeneration:
    """A model whose ids and codebooks are those of the tokenizers (the text tokenizer is extended in place)."""
    start = MLLMConfig.from_pretrained(recipe.start_from, local_files_only=True) if recipe.start_from else None
    vocabulary = extend_tokenizer(
        text_tokenizer,
        max_grid_side=recipe.model.get("max_grid_side", start.max_grid_side if start is not None else None),
        num_classes=recipe.model.get("num_classes", start.num_classes if start is not None else 0),
        plans=recipe.data.outlines or (start is not None and start.begin_plan_id is not None),
    )
    if start is not None:
        options = quantized(recipe) if recipe.adapter and recipe.adapter.bits else {}
        config = changed_config(start, recipe.model, start_from=recipe.start_from)
        check_same_ids(start, vocabulary, start_from=recipe.start_from)
        check_same_pictures(start, image_tokenizer, start_from=recipe.start_from)
        stored = config_of_weights(config, start)
        model = MLLMForConditionalGeneration.from_pretrained(recipe.start_from, config=stored, dtype=dtype, **options)
        learn_tokens(model, vocabulary)
        learn_places(model, config)
        return model
    torch.manual_seed(recipe.trainer.get("seed", 0))
    if recipe.backbone is not None:
        return build_around(recipe, vocabulary, image_tokenizer, dtype=dtype)
    text_config = {**recipe.model.get("text_config", {}), **token_fields(vocabulary.size, text_tokenizer)}
    config = model_config(recipe, text_config, vocabulary, image_tokenizer)
    is_sharded = is_deepspeed_zero3_enabled()
    model = MLLMForConditionalGeneration._from_config(config) if is_sharded else MLLMForConditionalGeneration(config)
    with whole(model.code_embedding.parameters()):
        model.code_embedding.adopt(image_tokenizer)
    return model


def check_same_pictures(start: MLLMConfig, image_tokenizer: UniTok, *, start_from: Path) -> None:
    """Refuse an image tokenizer whose codes or pictures have other sizes than the model that goes on."""
    for name, found in picture_fields(image_tokenizer).items():
        if name != "image_size" and found != getattr(start, name):
            raise ValueError(
                f"the image tokenizer does not fit the model that goes on: found {name} {found}, {start_from} has "
                f"{getattr(start, name)}; name the tokenizer that the model was trained with"
            )


def check_same_ids(start: MLLMConfig, vocabulary: Vocabulary, *, start_from: Path) -> None:
    """Refuse a text tokenizer that numbers tokens in another way than the model whose words are kept."""
    for name, found in vocabulary.config_fields().items():
        expected = getattr(start, name)
        if None not in (found, expected) and found != expected:
            raise ValueError(
                f"the text tokenizer does not fit the model whose words are kept: found {name} {found}, {start_from} "
                f"has {expected}; name that folder as text_tokenizer"
            )


def learn_tokens(model: MLLMForConditionalGeneration, vocabulary: Vocabulary) -> None:
    """Give a model that goes on the tokens it does not have yet: for outlines, or for pictures of many sizes."""
    fields = vocabulary.config_fields().items()
    new = {name: value for name, value in fields if value is not None and getattr(model.config, name) is None}
    if not new:
        return
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            f"{', '.join(new)}: found tokens that are new to this model, and ZeRO-3 has cut its embeddings already; "
            "make the first steps without ZeRO-3, or leave them out"
        )
    if vocabulary.size > model.config.vocab_size:
        extend_embeddings(model, vocabulary.size)
    for name, value in new.items():
        setattr(model.config, name, value)


def config_of_weights(config: MLLMConfig, start: MLLMConfig) -> MLLMConfig:
    """The config of a model that goes on, with no more rows and columns than its weights have."""
    may_grow = start.image_position_embedding and start.image_layout == "fixed"
    if not may_grow or (config.max_grid_side or 0) <= start.grid_side:
        return config
    return MLLMConfig.from_dict({**config.to_dict(), "max_grid_side": start.grid_side, "sizes": None})


def learn_places(model: MLLMForConditionalGeneration, config: MLLMConfig) -> None:
    """Give a model that goes on with larger pictures the rows and columns that it does not know yet."""
    if model.config.max_grid_side == config.max_grid_side:
        return
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            f"max_grid_side {config.max_grid_side} gives this model new rows and columns, and ZeRO-3 has cut those it "
            "has already; make the first steps without ZeRO-3, or leave it as it is"
        )
    model.code_embedding.places.extend(config.max_grid_side)
    model.config.max_grid_side, model.config.sizes = config.max_grid_side, config.sizes


def changed_config(start: MLLMConfig, changes: dict[str, Any], *, start_from: Path) -> MLLMConfig:
    """The config of a model that goes on, with other settings; what shapes its weights stays.

    Raises:
        ValueError: a field that is no setting would change.
    """
    fields, free = start.to_dict(), SETTINGS + (GROWING if start.image_layout == "fixed" else ())
    for name, value in changes.items():
        if name not in free and not agrees(fields.get(name), value):
            raise ValueError(
                f"model.{name} cannot change in a model that goes on: found {value!r}, {start_from} has "
                f"{fields.get(name)!r}; leave it out, or change only {', '.join(free)}"
            )
    changed = {name: changes[name] for name in free if name in changes}
    is_grid = changed.get("image_layout", start.image_layout) == "grid"
    side = changed.get("max_grid_side")
    if is_grid != (changed.get("max_grid_side", start.max_grid_side) is not None):
        raise ValueError(
            f"image_layout 'grid' and max_grid_side belong together: found max_grid_side {side} and image_layout "
            f"{changed.get('image_layout', start.image_layout)!r}; give both, or neither"
        )
    if side is not None and side < start.grid_side:
        raise ValueError(
            f"model.max_grid_side cannot be {side} in a model that goes on: it knows {start.grid_side} rows and "
            "columns; use that or more"
        )
    return MLLMConfig.from_dict({**fields, **changed})


def agrees(found: Any, wanted: Any) -> bool:
    """Whether a value is as wanted; a mapping, where it is asked for some of its keys, in these."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(agrees(found.get(name), value) for name, value in wanted.items())
    return found == wanted


def build_around(
    recipe: MLLMRecipe, vocabulary: Vocabulary, image_tokenizer: UniTok, *, dtype: torch.dtype
) -> MLLMForConditionalGeneration:
    """A model around a language model's weights.

    New vocabulary rows are the mean of the old ones; codebooks and attention projection are the image tokenizer's (its
    decoder side; UniTok trains it bidirectionally and continues it causally; a linear one is left); projector and code
    head start new. So do they where the language model is that of a model of ours, whose words are kept: it may then
    have another image tokenizer, or another head.
    """
    stored = AutoConfig.from_pretrained(recipe.backbone)
    is_ours = isinstance(stored, MLLMConfig)
    if is_ours:
        check_same_ids(stored, vocabulary, start_from=recipe.backbone)
    text_config = {**(stored.text_config if is_ours else stored).to_dict(), **recipe.model.get("text_config", {})}
    num_old = text_config["vocab_size"]
    config = model_config(recipe, text_config, vocabulary, image_tokenizer)
    weights: dict[str, Any] = {"state_dict": words_of(recipe.backbone)} if is_ours else {"key_mapping": LLAMA_KEYS}
    model = MLLMForConditionalGeneration.from_pretrained(
        None if is_ours else recipe.backbone, config=config, dtype=dtype, **weights
    )
    if vocabulary.size > num_old:
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        with whole(parameter for layer in layers for parameter in layer.parameters()):
            fill_new_rows(layers, num_old)
        cut(layers)
    embedding = model.code_embedding
    with whole(embedding.parameters()):
        embedding.adopt(image_tokenizer)
        has_attention = image_tokenizer.config.projection == "attention"  # a linear one has nothing to take over
        if isinstance(embedding, ProjectedEmbedding) and (has_attention or config.embedding_context == "bidirectional"):
            embedding.set_projection(image_tokenizer.post_quant_proj)
    return model


def words_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a model of ours that belong to its language model."""
    words: dict[str, Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(("backbone.", "lm_head."))]  # noqa: SIM118
            words |= {name: file.get_tensor(name) for name in names}
    return words


def model_config(
    recipe: MLLMRecipe, text_config: dict[str, Any], vocabulary: Vocabulary, image_tokenizer: UniTok
) -> MLLMConfig:
    """The recipe's fields, with the ids and sizes that the tokenizers fix."""
    return MLLMConfig(
        **{
            **recipe.model,
            "text_config": text_config,
            **vocabulary.config_fields(),
            **picture_fields(image_tokenizer),
        }
    )


def picture_fields(image_tokenizer: UniTok) -> dict[str, int]:
    """What a config says of pictures and codes, as the image tokenizer has it."""
    names = ("num_codebooks", "codebook_size", "code_width", "image_size", "patch_size")
    return {name: getattr(image_tokenizer.config, name) for name in names}


def token_fields(vocab_size: int, text_tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the backbone's config must know of the text tokenizer."""
    return {
        "vocab_size": vocab_size,
        "bos_token_id": text_tokenizer.bos_token_id,
        "eos_token_id": text_tokenizer.eos_token_id,
        "pad_token_id": text_tokenizer.pad_token_id,
    }


def quantized(recipe: MLLMRecipe) -> dict[str, Any]:
    """How the frozen backbone is loaded for QLoRA; the head is trained, so it keeps its precision."""
    name = {4: "nf4", 8: "bnb8"}[recipe.adapter.bits]
    kept = ("lm_head", "code_embedding", "code_head")
    return {"quantization_config": quantization_config(name, dtype=torch.bfloat16, kept=kept)}
