"""Upstream checkpoint keys and ours: one explicit table, read in both directions.

In: a state dict of the released `mini_gemini` model. Out: ours, or the reverse. Renames, and stacks what upstream keeps
in one tensor per codebook. Knows no files; a mapping that reads from files does as well as a dict.

Letters: K codebooks, C codes, E width of an entry, D hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

RENAMES = (
    # (upstream prefix, our prefix); the first that fits wins
    ("model.multi_embedder.attn_projection.", "code_embedding.projection."),
    ("model.multi_embedder.mm_projector.0.", "code_embedding.projector.norm."),
    ("model.multi_embedder.mm_projector.1.", "code_embedding.projector.linear1."),
    ("model.multi_embedder.mm_projector.3.", "code_embedding.projector.linear2."),
    ("ar_head.layers.", "code_head.layers."),
    ("ar_head.norm.", "code_head.norm."),
    ("ar_head.linear_head.", "code_head.linear_head."),
    ("model.", "backbone."),
    ("lm_head.", "lm_head."),
)
STACKS = (
    # (upstream key with {} for the codebook, our key, join): "stack" adds an axis, "rows" puts tables below each other
    ("model.multi_embedder.quantizer.codebooks.{}.codebook.weight", "code_embedding.codebooks", "stack"),
    ("model.multi_embedder.quantizer.codebooks.{}.vocab_usage", "code_embedding.codebook_usage", "stack"),
    ("ar_head.codebooks.{}.weight", "code_head.codebooks.weight", "rows"),
)


class Recipe(NamedTuple):
    """How a tensor of ours is made."""

    sources: list[str]  # upstream keys, in order
    join: str  # "stack", "rows", or "same" for a tensor that only gets a new name

    def make(self, state: Mapping[str, Tensor]) -> Tensor:
        parts = [state[key] for key in self.sources]
        match self.join:
            case "same":
                return parts[0]
            case "stack":
                return torch.stack(parts)
            case "rows":
                return torch.cat(parts)
            case _:
                raise ValueError(f"unknown join {self.join!r}; use same, stack or rows")


def plan(keys: Iterable[str]) -> dict[str, Recipe]:
    """Our keys, and what each is made of; every upstream key is used, and an unknown one is an error."""
    recipes: dict[str, Recipe] = {}
    parts: dict[int, dict[int, str]] = {}
    for key in keys:
        for number, (pattern, _, _) in enumerate(STACKS):
            if found := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), key):
                parts.setdefault(number, {})[int(found[1])] = key
                break
        else:
            recipes[rename(key)] = Recipe([key], "same")
    for number, names in parts.items():
        pattern, key, join = STACKS[number]
        missing = set(range(len(names))) - set(names)
        if missing:
            raise ValueError(f"checkpoint lacks {pattern.format(min(missing))}: found {len(names)} others of its kind")
        recipes[key] = Recipe([names[k] for k in range(len(names))], join)
    return recipes


def from_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict; every upstream key is used, and an unknown one is an error."""
    return {key: recipe.make(state) for key, recipe in plan(state).items()}


def rename(key: str) -> str:
    """Our name of an upstream key."""
    for theirs, ours in RENAMES:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    raise ValueError(f"unknown key in the checkpoint: found {key!r}; is this a released UniTok MLLM?")


def to_upstream(state: Mapping[str, Tensor], *, codebook_size: int) -> dict[str, Tensor]:
    """The released layout of our state dict; the inverse of `from_upstream`. Pieces are views, not copies."""
    theirs: dict[str, Tensor] = {}
    for key in state:
        theirs.update(upstream_pieces(key, state[key], codebook_size=codebook_size))
    return theirs


def upstream_pieces(key: str, tensor: Tensor, *, codebook_size: int) -> dict[str, Tensor]:
    """What one tensor of ours becomes."""
    for pattern, ours, join in STACKS:
        if key == ours:
            pieces = tensor.unbind(0) if join == "stack" else tensor.split(codebook_size)
            return {pattern.format(k): piece for k, piece in enumerate(pieces)}
    for upstream, ours in RENAMES:
        if key.startswith(ours):
            return {upstream + key.removeprefix(ours): tensor}
    raise ValueError(
        f"the released layout has no place for {key!r}; it holds a projected code embedding without places and a "
        "depth_transformer head with one output layer"
    )
