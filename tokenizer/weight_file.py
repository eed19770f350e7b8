"""Tensors by name from a file that others published: safetensors or PyTorch's, never arbitrary pickles."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}; download it first or mend the path")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot read the weights in {path}; {reason}; download the file again") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} does not hold tensors by name; found {type(state).__name__}; give a state dict, not a whole model"
        )
    return dict(state)


def require_names(state: Mapping[str, Tensor], names: Iterable[str], *, kind: str) -> None:
    """Exactly these names, or an error that says which are missing and which nobody knows."""
    wanted = set(names)
    missing, unknown = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unknown:
        raise ValueError(
            f"these are not {kind}; missing are {missing[:3]} ({len(missing)} in all), unknown are {unknown[:3]} "
            f"({len(unknown)} in all); give the published file"
        )
