"""Weights for golden tests: every tensor is a function of its name and shape alone, so none are stored."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
ZERO_ENDINGS = ("zero_k_bias", "vocab_usage", "pos_embed", "attn_mask")


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor of this name."""
    if name.endswith(ZERO_ENDINGS):
        return torch.zeros(shape)
    if name == "logit_scale":
        return torch.tensor(math.log(1 / 0.07))
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    values = np.asarray(generator.standard_normal(shape), dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("bias", "q_bias", "v_bias"):
        scaled = values * np.float32(0.05)
    elif len(shape) == 1:
        scaled = np.float32(1) + values * np.float32(0.1)
    elif any(part in name for part in ("codebook", "embed_tokens", "token_embedding")):
        scaled = values * np.float32(0.5)
    elif "positional_embedding" in name or "text_projection" in name:
        scaled = values * np.float32(0.05)
    else:
        scaled = values * np.float32(1 / math.sqrt(int(np.prod(shape[1:]))))
    return torch.from_numpy(scaled)


def read_manifest(name: str) -> dict[str, tuple[int, ...]]:
    manifest = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return {key: tuple(shape) for key, (shape, _) in manifest.items()}
