"""Fewer bits for the weights of the backbone and the head, through transformers' own quantisation configs.

In: a name and the dtype to compute in. Out: a config for `from_pretrained`. The embedding of image codes and the two
last layers keep their precision: together they are a few percent of the weights, and everything that is seen or said
passes through them. torchao and bitsandbytes are optional and imported only here.

    int8   torchao, weights of 8 bits        nf4    bitsandbytes, weights of 4 bits (normal floats, double quantisation)
    int4   torchao, weights of 4 bits, GPU   bnb8   bitsandbytes, LLM.int8(): products in 8 bits, outliers in 16
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

PACKAGES = {"int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes", "bnb8": "bitsandbytes"}
KEPT = ["code_embedding", "lm_head", "code_head.linear_head"]
"""Modules that are not quantised. The embedding's projection is computed from its weights directly."""
INT4_GROUP = 128
"""Weights that share a scale; what Lumina-mGPT 2.0 uses."""


def quantization_config(name: str, *, dtype: torch.dtype, kept: Sequence[str] = tuple(KEPT)) -> QuantizationConfigMixin:
    """The config of a kind of quantisation.

    Args:
        dtype: to compute in.
        kept: modules that are not quantised.
    """
    if name not in PACKAGES:
        raise ValueError(f"unknown quantization: found {name!r}; use one of {', '.join(PACKAGES)}")
    if find_spec(PACKAGES[name]) is None:
        raise ImportError(
            f"quantization {name!r} needs {PACKAGES[name]}, which is not installed; "
            "install it with: pip install 'mllm-toolkit[quantization]'"
        )
    match name:
        case "int8" | "int4":
            return torchao_config(name, kept)
        case "bnb8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(kept))
        case _:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=list(kept),
            )


def torchao_config(name: str, kept: Sequence[str]) -> TorchAoConfig:
    """Weights in fewer bits, products in the dtype of the model."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if name == "int4" and not torch.cuda.is_available():
        raise ValueError("quantization 'int4' computes on a GPU only: found none; use nf4 or int8")
    kind = Int8WeightOnlyConfig() if name == "int8" else Int4WeightOnlyConfig(group_size=INT4_GROUP)
    return TorchAoConfig(kind, modules_to_not_convert=list(kept))
