"""Checkpoint files of UniTok: read, convert to a folder of ours, and write back.

`unitok_tokenizer.pth` is a training checkpoint: `args` with the settings and `trainer.unitok` with the weights, beside
things that nobody needs for inference and that are not read. A .safetensors file with the same names is read as the
released network. Projections and quantizer stay in float32 whatever type is asked for, so that codes stay the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenizer.config import UniTokConfig
from tokenizer.model import CONFIG_FILE, WEIGHTS_FILE, UniTok, build_empty
from tokenizer.quantizer import FAST_UPDATES
from tokenizer.tensor_files import SAFETENSORS, read_file, tensors_of
from tokenizer.weights import (
    ProjectionAttention,
    args_from_config,
    config_from_args,
    from_upstream,
    require_fit,
    to_upstream,
)

NUM_UPDATES = "num_usage_updates"
"""In the `args` of files that we wrote: how often the usage statistics were updated, which upstream does not store."""
CAST_PARTS = ("encoder.", "decoder.")
"""What a type asked for applies to."""


class UpstreamCheckpoint(NamedTuple):
    """A checkpoint file in which every tensor has its place."""

    config: UniTokConfig
    state: Mapping[str, Tensor]
    """UniTok's names; mapped from the file."""
    num_updates: int

    def our_state(self) -> dict[str, Tensor]:
        """Our names."""
        return from_upstream(self.state, self.config, num_updates=self.num_updates)

    def build(self) -> UniTok:
        """The tokenizer in evaluation mode; its weights are those of this object, not copies."""
        model = build_empty(self.config)
        model.load_state_dict(self.our_state(), assign=True)
        return model.eval()


def read_upstream(path: str | Path, *, projection_attention: ProjectionAttention | None = None) -> UpstreamCheckpoint:
    """Read a checkpoint file; strict.

    Args:
        projection_attention: checkpoints before April 2025 need "causal" and the released one "full"; None: what the
            file says (only files that `export_upstream` wrote do), else "full".
    """
    path = Path(path)
    content = read_file(path)
    args, state = ({}, content) if path.suffix == SAFETENSORS else unpack(content, path)
    config = config_from_args(args, projection_attention=projection_attention)
    require_fit(tensors_of(state, path), config, source=path)
    return UpstreamCheckpoint(config, state, int(args.get(NUM_UPDATES, FAST_UPDATES)))


def unpack(checkpoint: Any, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `args` and the network's state dict inside a training checkpoint."""
    try:
        return dict(checkpoint["args"]), checkpoint["trainer"]["unitok"]
    except (KeyError, TypeError) as error:
        found = sorted(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(
            f"{path} is not a UniTok checkpoint; got {found}; it needs 'args' and 'trainer' with 'unitok' inside"
        ) from error


def load_upstream(path: str | Path, *, projection_attention: ProjectionAttention | None = None) -> UniTok:
    """A tokenizer straight from a checkpoint file, without a conversion; see `read_upstream`."""
    return read_upstream(path, projection_attention=projection_attention).build()


def save_converted(checkpoint: UpstreamCheckpoint, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint as a folder that `UniTok.from_pretrained` reads.

    Args:
        dtype: of encoder and decoder in the folder; None: as they are.
    """
    ours = {
        name: tensor.to(dtype) if dtype is not None and name.startswith(CAST_PARTS) else tensor
        for name, tensor in checkpoint.our_state().items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    values = checkpoint.config.to_dict()
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def export_upstream(folder: str | Path, path: str | Path) -> None:
    """Write a folder of ours as the .pth file that UniTok's own programs read."""
    if Path(path).suffix == SAFETENSORS:
        raise ValueError(f"UniTok's own programs read PyTorch files: found {path}; give a name that ends in .pth")
    model = UniTok.from_pretrained(folder)
    state = model.state_dict()
    args = args_from_config(model.config)
    args[NUM_UPDATES] = int(state["quantizer.num_updates"])
    trainer = {"config": {}, "unitok": to_upstream(state, model.config)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"args": args, "epoch": 0, "iter": 0, "trainer": trainer}, path)
