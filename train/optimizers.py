"""AdamW, and Muon with AdamW for what Muon does not cover, chosen by a recipe.

Muon (Keller Jordan, 2024; train/muon.py) orthogonalises the update of every hidden matrix; embeddings, output
layers, norms and biases stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from train.muon import BatchedMuon


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit keeps its two averages in 8 bits (needs bitsandbytes)."""
    learning_rate: float = 5e-5
    """Of AdamW."""
    matrix_learning_rate: float = 2e-2
    """Of Muon; only used by it."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if min(self.learning_rate, self.matrix_learning_rate) <= 0:
            raise ValueError(
                f"learning rates must be above 0, found {self.learning_rate} and {self.matrix_learning_rate}; "
                "mend the recipe"
            )


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers behind one interface, so that Trainer, scheduler and checkpoints see one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], defaults={})
        # One list of the same dicts: a scheduler that writes a learning rate here reaches the parts.
        self.param_groups = [*first.param_groups, *second.param_groups]

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a closure would be evaluated twice"
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_optimizer(
    recipe: OptimizerRecipe, named_parameters: Iterable[tuple[str, nn.Parameter]], *, outside_muon: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the parameters that learn.

    Args:
        outside_muon: parts of parameter names (embeddings, output layers) that AdamW keeps.
    """
    matrices, others, flat = [], [], []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            flat.append(parameter)
        elif parameter.ndim == 2 and not any(part in name for part in outside_muon):
            matrices.append(parameter)
        else:
            others.append(parameter)
    adamw_matrices = others if recipe.name == "muon" else matrices + others
    groups = [
        {"params": adamw_matrices, "weight_decay": recipe.weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]
    if recipe.name == "adamw8bit":
        return adamw_8bit(groups, recipe)
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    match recipe.name:
        case "adamw":
            return adamw
        case "muon":
            muon = BatchedMuon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay)
            return OptimizerPair(muon, adamw)
        case _:
            raise ValueError(f"unknown optimizer {recipe.name!r}; use adamw, adamw8bit or muon")


def adamw_8bit(groups: list[dict[str, Any]], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """AdamW whose averages take a quarter of the memory (Dettmers et al., arXiv:2110.02861)."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ModuleNotFoundError:
        raise ImportError(
            "optimizer.name is adamw8bit but bitsandbytes is not installed; install it with: pip install "
            "'mllm-toolkit[quantization]', or use adamw"
        ) from None
    return AdamW8bit(groups, lr=recipe.learning_rate, betas=recipe.betas)
