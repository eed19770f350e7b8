"""Write weights to a folder shard by shard, so that no more than one shard is in memory.

In: shapes of all tensors, and a function that reads one. Out: model.safetensors, or shards and their index as
transformers names them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

FILE_PATTERN = "model{suffix}.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def write_shards(
    shapes: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    folder: Path,
    *,
    max_bytes: int,
    dtype: torch.dtype | None = None,
    after_shard: Callable[[], None] = lambda: None,
) -> None:
    """Write every tensor of `shapes` (meta device) into `folder`.

    Args:
        max_bytes: of one shard; a larger tensor is a shard by itself.
        dtype: of the floating-point tensors; None: as they are.
        after_shard: called when the tensors of a shard are no longer needed.
    """
    planned = {name: torch.empty_like(shape, dtype=stored_type(shape, dtype)) for name, shape in shapes.items()}
    plan = split_state_dict_into_shards_factory(
        planned, get_storage_size=lambda tensor: tensor.nbytes, filename_pattern=FILE_PATTERN, max_shard_size=max_bytes
    )
    require_room(folder, sum(tensor.nbytes for tensor in planned.values()))
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: read(name).to(planned[name].dtype).contiguous() for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        del tensors
        after_shard()
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def stored_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type asked for, for numbers that have a point."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def require_room(folder: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"the disk of {folder} is too full: found {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB are needed; "
            "free some, or choose a folder on another disk"
        )
