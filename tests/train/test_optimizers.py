"""Matrices of one shape are orthogonalised together, and nothing else differs from the library's Muon."""

import pytest
import torch
from torch import nn

from train.optimizers import BatchedMuon, orthogonalize

SHAPES = [(6, 6), (10, 6), (6, 6), (6, 10), (10, 6), (4, 4)]


def run(optimizer_class: type[torch.optim.Muon], *, steps: int, nesterov: bool = True) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = optimizer_class(matrices, lr=0.02, weight_decay=0.1, nesterov=nesterov)
    for step in range(steps):
        for number, matrix in enumerate(matrices):
            matrix.grad = torch.randn(matrix.shape, generator=generator)
            if number == 5 and step % 2:  # not every matrix learns in every step
                matrix.grad = None
        optimizer.step()
    return matrices


@pytest.mark.parametrize(("nesterov", "together"), [(True, 2**26), (False, 2**26), (True, 1), (True, 72)])
def test_steps_are_those_of_the_library(nesterov: bool, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.optimizers.MAX_STACKED", together)
    theirs, ours = (run(kind, steps=4, nesterov=nesterov) for kind in (torch.optim.Muon, BatchedMuon))
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)  # its products are bfloat16


def test_what_was_saved_by_the_library_goes_on_here() -> None:
    matrix = nn.Parameter(torch.randn(4, 3))
    theirs = torch.optim.Muon([matrix], lr=0.1)
    matrix.grad = torch.randn(4, 3)
    theirs.step()
    ours = BatchedMuon([matrix], lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.state[matrix]["momentum_buffer"], theirs.state[matrix]["momentum_buffer"])


def test_singular_values_become_about_1() -> None:
    matrices = torch.randn(3, 8, 5)
    found = orthogonalize(matrices, (3.4445, -4.775, 2.0315), steps=5, eps=1e-7)
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5 and values.max() < 1.3
    assert found.shape == matrices.shape
