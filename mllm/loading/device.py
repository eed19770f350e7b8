"""Where to compute. In: what a person asked for. Out: a device that exists."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot compute on {device!s}: {str(error).splitlines()[0]}; use cpu") from error
