"""The released MLLM in small, with deterministic weights, and what it should give (tests/golden); the released layout
of a folder, as the released programs write it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.deterministic_weights import FOLDER, fill, read_manifest

GOLDEN_FIELDS = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
    "unified_mllm": {"image_size": 64},
}
"""Where its config.json differs from that of the 7B model; images have 4 x 4 positions."""
IMAGE_MARK = -200
"""An image of 16 positions in the ids of the golden cases."""


def golden_outputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "mllm_small.safetensors")


def golden_weights() -> dict[str, Tensor]:
    """The upstream state dict, a function of its names and shapes alone."""
    return {name: fill(name, shape) for name, shape in read_manifest("mllm_small_manifest.json").items()}


def expand_images(ids_BT: Tensor, values_BT: Tensor, *, fill_value: int) -> Tensor:
    """The values, with 16 positions of `fill_value` where the ids have one image mark."""
    rows = []
    for ids, values in zip(ids_BT.tolist(), values_BT.tolist(), strict=True):
        pairs = zip(ids, values, strict=True)
        rows.append([x for mark, value in pairs for x in ([fill_value] * 16 if mark == IMAGE_MARK else [value])])
    return torch.tensor(rows)


LLAMA_2_7B = {
    **{"architectures": ["MiniGeminiLlamaForCausalLM"], "model_type": "mini_gemini", "torch_dtype": "bfloat16"},
    **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096},
    **{"initializer_range": 0.02, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "rope_scaling": None},
    **{"attention_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1, "tie_word_embeddings": False},
    **{"use_cache": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.39.2"},
    **{"tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048, "mm_projector_lr": None},
    **{"mm_use_im_start_end": False, "mm_use_im_patch_token": False},
}
"""config.json of the released 7B model."""


def write_released(
    folder: Path, state: dict[str, Tensor], fields: dict[str, Any], *, ending: str = "safetensors", num_shards: int = 1
) -> Path:
    """config.json and the weights, in shards that cut through what is stacked in our layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA_2_7B, **fields}))
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    save = save_file if ending == "safetensors" else torch.save
    size = math.ceil(sum(tensor.nbytes for tensor in state.values()) / num_shards)
    pattern = f"{stem}{{suffix}}.{ending}"
    plan = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=size)
    for file, names in plan.filename_to_tensors.items():
        save({name: state[name] for name in names}, folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder
