"""Low-rank adapters on the backbone, with the new vocabulary rows and some groups trained in full.

In: a model and the recipe's fields. Out: a `peft` model that any trainer takes and that saves only what was trained.
`mllm merge ADAPTER -o OUT` adds a trained adapter to its model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

from mllm.checkpoint import find_model_folder
from mllm.files import read_json
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from mllm.vocabulary import added_ids
from train.checkpoints import gathered
from train.recipe import PARAMETER_GROUPS, AdapterRecipe


def add_adapters(
    model: MLLMForConditionalGeneration, adapter: AdapterRecipe, *, trainable: Sequence[str], base: Path
) -> PeftModel:
    """Freeze the model and add adapters to its backbone. `trainable`: groups of parameters that are trained in full.
    `base`: the folder that the model came from, written into the adapter's config."""
    modules = {group: PARAMETER_GROUPS[group][0].removesuffix(".") for group in trainable}
    present = {name for name, _ in model.named_modules()}
    new_ids = sorted(token_id for token_id in added_ids(model.config) if 0 <= token_id < model.config.vocab_size)
    layers = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=rf"backbone\.layers\.\d+\..*\.({'|'.join(adapter.targets)})",
        modules_to_save=[name for name in modules.values() if name in present],
        trainable_token_indices=dict.fromkeys(layers, new_ids) if adapter.new_tokens else None,
    )
    if adapter.bits:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with _gathered_vocabulary(model):
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    for parameter in adapted.parameters():
        # Small steps would be rounded away in the frozen weights' bfloat16; peft itself does so for adapters only.
        # DeepSpeed has float32 weights of its own: those that ZeRO-3 partitions are left as they are.
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def _gathered_vocabulary(model: MLLMForConditionalGeneration) -> Iterator[None]:
    """While peft copies vocabulary rows, both layers are complete; peft itself gathers them on CUDA only."""
    collect = TrainableTokensLayer._collect_token_weights
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    with gathered(parameter for layer in layers for parameter in layer.parameters()):
        TrainableTokensLayer._collect_token_weights = lambda self, weight, rows, width: weight[rows].clone()
        try:
            yield
        finally:
            TrainableTokensLayer._collect_token_weights = collect


def merge_folder(adapter: Path, output: Path, *, base: str | Path | None = None) -> None:
    """Write the model with the adapter's changes added to its weights, and the base's tokenizers, to `output`. Raises
    FileNotFoundError: the folder holds no adapter, or its base is gone."""
    path = adapter / "adapter_config.json"
    stored = read_json(path)
    base = base or (stored.get("base_model_name_or_path") if isinstance(stored, dict) else None)
    if not base or not isinstance(base, str | Path):
        raise ValueError(f"{path} must name the base model, got {base!r}; pass it as base (mllm merge --base)")
    folder = find_model_folder(base)
    model = MLLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter))
    except RuntimeError as error:  # of other shapes
        raise ValueError(f"{adapter} must be an adapter of {folder}, got another model's; name its base") from error
    adapted.merge_and_unload().save_pretrained(output)
    MLLMProcessor.from_pretrained(folder).save_pretrained(output)
