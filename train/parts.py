"""The parts of the unified model by name: which of them a training stage trains, which it freezes.

In: a model and names. Out: `requires_grad` of its parameters. Knows no data and no optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

ALL = "all"
PARTS = {
    "backbone": ("backbone.layers.", "backbone.norm."),
    "text_embedding": ("backbone.embed_tokens.",),
    "lm_head": ("lm_head.",),
    "projection": ("code_embedding.projection.",),  # attention within an image
    "projector": ("code_embedding.projector.",),  # from its width to the backbone's
    "code_vectors": ("code_embedding.codebooks.",),  # learned ones, of the summed embedder
    "places": ("code_embedding.places.",),
    "code_head": ("code_head.",),
}
"""Beginnings of parameter names. The image tokenizer's codebooks are no parameters and never learn."""
BESIDE_ADAPTERS = {"projection", "projector", "places", "code_head"}
"""Parts that can be trained whole while the backbone has adapters."""


def check_parts(names: Sequence[str]) -> None:
    """Refuse names that are no part.

    Raises:
        ValueError: one is unknown.
    """
    unknown = sorted(set(names) - set(PARTS) - {ALL})
    if unknown:
        raise ValueError(f"trains names unknown parts: found {', '.join(unknown)}; use {ALL} or {', '.join(PARTS)}")


def part_of(parameter: str) -> str:
    """The part that a parameter belongs to."""
    for name, beginnings in PARTS.items():
        if parameter.startswith(beginnings):
            return name
    raise ValueError(f"the parameter {parameter!r} belongs to no part of train/parts.py; add its beginning there")


def choose_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Freeze all but the named parts (changed in place)."""
    check_parts(names)
    for name, parameter in model.named_parameters():
        if ALL not in names and part_of(name) not in names:
            parameter.requires_grad_(False)
