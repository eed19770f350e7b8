"""Does a checkpoint fit a network, tensor by tensor? One sentence that names what does not.

In: two mappings from names to tensors (the meta device is enough). Out: nothing, or a ValueError. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

SHOWN = 4
"""Names of each kind in the sentence; the rest is counted."""


def require_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: Any) -> None:
    """Refuse a checkpoint that lacks a tensor, has one more, or has one of another shape.

    Args:
        source: what the sentence calls the checkpoint, such as its path.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} (found {tuple(found[name].shape)}, expected {tuple(expected[name].shape)})"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    parts = [f"{len(names)} {kind}: {some(names)}" for kind, names in kinds if names]
    if parts:
        raise ValueError(
            f"{source} does not fit the network that its config describes: of {len(expected)} tensors found "
            f"{'; '.join(parts)}; give the checkpoint and the config that belong together"
        )


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
