"""config.json of the released MLLM (a Llama config of type `mini_gemini`): read as ours, and written back.

Dictionaries in and out. The released file says nothing about images, because its programs have those sizes written into
them; they are the defaults of `MLLMConfig`. What a model of ours has different is kept under one name of its own, which
the released programs ignore.
"""

from __future__ import annotations

from typing import Any

RELEASED_TYPE = "mini_gemini"
ARCHITECTURE = "MiniGeminiLlamaForCausalLM"
OUR_FIELDS = "unified_mllm"
"""Where a file that we wrote keeps the fields of ours that differ from the released model's."""
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "attention_dropout", "mlp_bias"),
    *("pretraining_tp", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Fields of the Llama part."""
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
RELEASED_FIELDS: dict[str, Any] = {
    "prompt_style": "unitok",
    "tasks": ["draw", "ask", "describe", "chat"],
    # defaults of the released text-to-image script; its benchmark scripts use 7, 1, none and 1
    "image_guidance": 5.0,
    "image_temperature": 0.9,
    "image_top_k": 2048,
    "image_top_p": 0.96,
}
TRAINING_FIELDS: dict[str, Any] = {
    "tokenizer_padding_side": "right",
    "tokenizer_model_max_length": 2048,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_projector_lr": None,
}
"""What the released training script adds to its config; of no effect here."""
NOT_KEPT = {"text_config", "model_type", "architectures", "dtype", "transformers_version", "tie_word_embeddings"}


def is_released(fields: dict[str, Any]) -> bool:
    """Whether this is the config of a model in the released layout."""
    return fields.get("model_type") == RELEASED_TYPE


def from_released(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of our config."""
    text_config = {name: fields[name] for name in TEXT_FIELDS if fields.get(name) is not None}
    special_ids = {name: default if fields.get(name) is None else fields[name] for name, default in SPECIAL_IDS.items()}
    dtype = fields.get("dtype") or fields.get("torch_dtype")
    return {
        "model_type": "unified_mllm",
        "text_config": {"model_type": "llama", **text_config},
        **special_ids,
        **RELEASED_FIELDS,
        **({"dtype": dtype} if dtype else {}),
        **fields.get(OUR_FIELDS, {}),
    }


def to_released(ours: dict[str, Any], released: dict[str, Any]) -> dict[str, Any]:
    """The released file for a config of ours.

    Args:
        ours: all fields of our config.
        released: all fields of our config of the released model, to find what is different.
    """
    text = ours["text_config"]
    if text["model_type"] != "llama":
        raise ValueError(
            f"the released layout holds a Llama: found a backbone of type {text['model_type']!r}; it cannot be exported"
        )
    fields = {name: text[name] for name in TEXT_FIELDS if text.get(name) is not None}
    rope = fields.pop("rope_parameters", None) or {}
    fields["rope_theta"] = rope.get("rope_theta", 10000.0)
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    kept = {name: value for name, value in ours.items() if name not in NOT_KEPT and value != released.get(name, value)}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": RELEASED_TYPE,
        **fields,
        "torch_dtype": str(ours.get("dtype") or "float32").removeprefix("torch."),
        **TRAINING_FIELDS,
        **({OUR_FIELDS: kept} if kept else {}),
    }
