"""Muon that orthogonalises matrices of one shape together: the same steps as `torch.optim.Muon`, in a few large matrix
products instead of some thousand small ones.

Letters: G matrices of one shape, M N their rows and columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MAX_TOGETHER = 2**26
"""Numbers that are worked on at once: their copies in float32 and bfloat16 take about a GiB. Larger matrices fill a
device one by one."""


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, its state and its arguments, with learning rates adjusted in the original way."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a closure would be evaluated here alone, not by the optimizer beside this one"
        for group in self.param_groups:
            assert group["adjust_lr_fn"] in (None, "original"), "other adjustments are not built"
            for parameters in groups_of_one_kind(group["params"]):
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self._average_of(parameter) for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages
        directions_GMN = orthogonalize(
            torch.stack(updates), group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"]
        )
        num_rows, num_columns = parameters[0].shape
        rate = float(group["lr"])
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        length = rate * math.sqrt(max(1, num_rows / num_columns))
        torch._foreach_add_(parameters, [*directions_GMN.to(parameters[0].dtype)], alpha=-length)

    def _average_of(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def groups_of_one_kind(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those with a gradient by shape, type and device, not too many in a group."""
    alike: dict[tuple[Any, ...], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
    for group in alike.values():
        size = max(1, MAX_TOGETHER // group[0].numel())
        for start in range(0, len(group), size):
            yield group[start : start + size]


def orthogonalize(matrices_GMN: Tensor, coefficients: Sequence[float], *, steps: int, eps: float) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, in bfloat16.

    The quintic Newton-Schulz iteration of Keller Jordan (https://kellerjordan.github.io/posts/muon/, 2024).
    """
    if matrices_GMN.shape[1] > matrices_GMN.shape[2]:
        return orthogonalize(matrices_GMN.transpose(1, 2), coefficients, steps=steps, eps=eps).transpose(1, 2)
    a, b, c = coefficients
    x_GMN = matrices_GMN.bfloat16()
    x_GMN = x_GMN / x_GMN.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_GMM = x_GMN @ x_GMN.transpose(1, 2)
        update_GMM = torch.baddbmm(gram_GMM, gram_GMM, gram_GMM, beta=b, alpha=c)
        x_GMN = torch.baddbmm(x_GMN, update_GMM, x_GMN, beta=a)
    return x_GMN
