"""Several linear layers that read the same input as one matrix product, for decoding.

In: linear layers. Out: a function from their input to their outputs side by side. Plain layers are copied into one
weight, which lives as long as the function does; layers that something else has changed (adapters, quantisation,
sharding, hooks) are called one after another, so that nothing of theirs is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Apply = Callable[[Tensor], Tensor]


@torch.no_grad()
def join(linears: Sequence[nn.Module]) -> Apply:
    """The outputs of these layers, concatenated in the last dimension."""
    if not all(is_plain(linear) for linear in linears) or len({linear.bias is None for linear in linears}) > 1:
        return lambda hidden: torch.cat([linear(hidden) for linear in linears], dim=-1)
    weight = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return lambda hidden: F.linear(hidden, weight, bias)


def is_plain(linear: nn.Module) -> bool:
    """Whether this is torch's own linear layer with its whole weight in an ordinary tensor."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.weight.shape == (linear.out_features, linear.in_features)
        and linear.weight.device.type != "meta"
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and "forward" not in vars(linear)  # accelerate replaces it on layers that it moves between devices
    )
