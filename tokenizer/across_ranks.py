"""What training on several processes shares, with gradients that flow between them.

Comes in: a tensor of this process. Goes out: what all processes hold together. Alone, everything is the identity.
`DistributedDataParallel` averages the gradients of the processes; with that, a loss on what these functions return has
the gradient of the same loss on one process with the whole batch.

Letters: B rows of this process, G rows of all processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor


def num_ranks() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def gather_rows(rows_B: Tensor) -> Tensor:
    """The rows of all processes in their order, (G, ...); gradients go back to where the rows came from."""
    return _GatherRows.apply(rows_B) if num_ranks() > 1 else rows_B


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of the processes' values; its gradient goes to all of them."""
    return _MeanOverRanks.apply(value) if num_ranks() > 1 else value


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_B: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_B, memory_format=torch.contiguous_format) for _ in range(num_ranks())]
        distributed.all_gather(parts, rows_B.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_G: Tensor) -> Tensor:
        gradient_G = gradient_G.contiguous()
        distributed.all_reduce(gradient_G)
        return gradient_G.chunk(num_ranks())[rank()]


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total / num_ranks()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient / num_ranks()
