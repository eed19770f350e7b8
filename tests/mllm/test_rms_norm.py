"""The norm with its own gradient equals torch's."""

import torch
import torch.nn.functional as F

from mllm.heads import RMSNorm, _TrainedRMSNorm


def test_values_and_gradients_equal_those_of_torch() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(7, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    hidden, upstream = torch.randn(3, 5, 7, requires_grad=True), torch.randn(3, 5, 7)
    norm(hidden).backward(upstream)
    reference, weight = hidden.detach().clone().requires_grad_(), norm.weight.detach().clone().requires_grad_()
    F.rms_norm(reference, (7,), weight, 1e-3).backward(upstream)
    torch.testing.assert_close(hidden.grad, reference.grad)
    torch.testing.assert_close(norm.weight.grad, weight.grad)
    with torch.no_grad():
        torch.testing.assert_close(norm(hidden), F.rms_norm(hidden, (7,), weight, 1e-3))


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(1)
    hidden = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _TrainedRMSNorm.apply(x, w, 1e-2, torch.float64), (hidden, weight))


def test_under_autocast_only_the_result_is_rounded() -> None:
    torch.manual_seed(2)
    norm, hidden = RMSNorm(7, eps=1e-3), torch.randn(3, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = norm(hidden)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, norm(hidden).to(torch.bfloat16))
    rounded.sum().backward()
    assert hidden.grad.dtype == torch.float32
