"""AdamW, and Muon with AdamW for what Muon does not cover, as a recipe asks for.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/, 2024) orthogonalises the update of every hidden matrix;
embeddings, output layers, norms and biases stay with AdamW. Ours takes the steps of `torch.optim.Muon` with matrices
of one shape stacked: a few large matrix products instead of thousands of small ones.

Letters: G matrices of one shape, M N their rows and columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.number_format import fast_dtype
from train.recipe import OptimizerRecipe

OUTSIDE_MUON = ("embed_tokens", "lm_head", "codebooks", "linear_head", "output", "places")
"""Embeddings and output layers, by parts of their names: matrices that stay with AdamW."""
MAX_STACKED = 2**26  # numbers stacked at once, about a GiB with copies. Larger matrices go one by one


def build_optimizer(recipe: OptimizerRecipe, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the trainable parameters."""
    matrices, others, flat = [], [], []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            flat.append(parameter)
        elif parameter.ndim == 2 and not any(part in name for part in OUTSIDE_MUON):
            matrices.append(parameter)
        else:
            others.append(parameter)
    decayed = others if recipe.name == "muon" else matrices + others
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    if recipe.name == "adamw8bit":  # averages in a quarter of the memory (Dettmers et al., arXiv:2110.02861)
        try:
            from bitsandbytes.optim import AdamW8bit
        except ModuleNotFoundError:
            raise ImportError("adamw8bit needs bitsandbytes; pip install 'mllm-toolkit[quantization]'") from None
        return AdamW8bit(groups, lr=recipe.learning_rate, betas=recipe.betas)
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    if recipe.name == "adamw":
        return adamw
    return OptimizerPair(BatchedMuon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay), adamw)


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers behind one interface, so that Trainer, scheduler and checkpoints see one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], defaults={})
        # The same dicts in one list: a scheduler that writes a learning rate here reaches both optimizers.
        self.param_groups = [*first.param_groups, *second.param_groups]

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a closure would be evaluated twice"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, its state and its arguments, with the original adjustment of learning rates."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a closure would be evaluated by this optimizer alone, not by the other one"
        for group in self.param_groups:
            assert group["adjust_lr_fn"] in (None, "original"), f"adjust_lr_fn is {group['adjust_lr_fn']!r}"
            for parameters in _stacks(group["params"]):
                self._step_stack(parameters, group)

    def _step_stack(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages
        directions_GMN = orthogonalize(
            torch.stack(updates), group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"]
        )
        num_rows, num_columns = parameters[0].shape
        rate = float(group["lr"])
        weights: list[Tensor] = [*parameters]
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        length = rate * math.sqrt(max(1, num_rows / num_columns))
        torch._foreach_add_(weights, [*directions_GMN.to(parameters[0].dtype)], alpha=-length)


def _stacks(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters with a gradient, by shape, type and device, a limited number at once."""
    alike: dict[tuple[Any, ...], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
    for group in alike.values():
        size = max(1, MAX_STACKED // group[0].numel())
        for start in range(0, len(group), size):
            yield group[start : start + size]


def orthogonalize(matrices_GMN: Tensor, coefficients: Sequence[float], *, steps: int, eps: float) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, by the quintic Newton-Schulz iteration. In
    bfloat16 where the device has it: the iteration tolerates it. Elsewhere bfloat16 is emulated, and 10 times slower
    than float32."""
    if matrices_GMN.shape[1] > matrices_GMN.shape[2]:
        return orthogonalize(matrices_GMN.transpose(1, 2), coefficients, steps=steps, eps=eps).transpose(1, 2)
    a, b, c = coefficients
    x_GMN = matrices_GMN.to(fast_dtype(matrices_GMN.device))
    x_GMN = x_GMN / x_GMN.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_GMM = x_GMN @ x_GMN.transpose(1, 2)
        update_GMM = torch.baddbmm(gram_GMM, gram_GMM, gram_GMM, beta=b, alpha=c)
        x_GMN = torch.baddbmm(x_GMN, update_GMM, x_GMN, beta=a)
    return x_GMN
