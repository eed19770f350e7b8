"""The released MLLM in small, with deterministic weights, and what it should give (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.deterministic_weights import fill

GOLDEN = Path(__file__).parent.parent / "golden"
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
    return load_file(GOLDEN / "mllm_small.safetensors")


def golden_weights() -> dict[str, Tensor]:
    """The upstream state dict, a function of its names and shapes alone."""
    manifest = json.loads((GOLDEN / "mllm_small_manifest.json").read_text())
    state = {}
    for name, (shape, _) in manifest.items():
        values = fill(name, tuple(shape))
        state[name] = torch.zeros(shape) if values is None else torch.as_tensor(np.asarray(values))
    return state


def expand_images(ids_BT: Tensor, values_BT: Tensor, *, fill_value: int) -> Tensor:
    """The values, with 16 places of `fill_value` where the ids have one image mark."""
    rows = []
    for ids, values in zip(ids_BT.tolist(), values_BT.tolist(), strict=True):
        pairs = zip(ids, values, strict=True)
        rows.append([x for mark, value in pairs for x in ([fill_value] * 16 if mark == IMAGE_MARK else [value])])
    return torch.tensor(rows)
