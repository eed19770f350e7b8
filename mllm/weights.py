"""Upstream checkpoint keys and ours: one explicit table, read in both directions.

In: a state dict of the released `mini_gemini` model. Out: ours, or the reverse. Renames, and stacks what upstream keeps
in one tensor per codebook. Knows no files.

Letters: K codebooks, C codes, E width of an entry, D hidden width.
"""

import re

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


def from_upstream(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict; every upstream key is used, and an unknown one is an error."""
    ours: dict[str, Tensor] = {}
    parts: dict[int, dict[int, Tensor]] = {}
    for key, value in state.items():
        for number, (pattern, _, _) in enumerate(STACKS):
            if found := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), key):
                parts.setdefault(number, {})[int(found[1])] = value
                break
        else:
            ours[rename(key)] = value
    for number, tensors in parts.items():
        pattern, key, join = STACKS[number]
        missing = set(range(len(tensors))) - set(tensors)
        if missing:
            raise ValueError(
                f"checkpoint lacks {pattern.format(min(missing))}: found {len(tensors)} others of its kind"
            )
        ordered = [tensors[k] for k in range(len(tensors))]
        ours[key] = torch.stack(ordered) if join == "stack" else torch.cat(ordered)
    return ours


def rename(key: str) -> str:
    """Our name of an upstream key."""
    for theirs, ours in RENAMES:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    raise ValueError(f"unknown key in the checkpoint: found {key!r}; is this a released UniTok MLLM?")


def to_upstream(state: dict[str, Tensor], *, codebook_size: int) -> dict[str, Tensor]:
    """The released layout of our state dict; the inverse of `from_upstream`."""
    theirs: dict[str, Tensor] = {}
    stacks = {ours: (pattern, join) for pattern, ours, join in STACKS}
    for key, value in state.items():
        if key in stacks:
            pattern, join = stacks[key]
            pieces = value.unbind(0) if join == "stack" else value.split(codebook_size)
            theirs.update({pattern.format(k): piece for k, piece in enumerate(pieces)})
            continue
        for upstream, ours in RENAMES:
            if key.startswith(ours):
                theirs[upstream + key.removeprefix(ours)] = value
                break
        else:
            raise ValueError(f"the released layout has no place for {key!r}; only the depth_transformer head is there")
    return theirs
