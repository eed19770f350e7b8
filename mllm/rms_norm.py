"""Root-mean-square norm (arXiv:1910.07467) for the codebook heads: same numbers as torch's, fewer passes on a CPU.

Torch has a fused kernel for this on GPUs; on a CPU it runs about a dozen passes over memory forward and backward, which
costs more than the matrix products of a small model. Here it is four forward and seven backward.

Letters: D width; leading dimensions are free.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last dimension, with its own gradient when training in float32 on a CPU."""

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.device.type == "cpu" and hidden.dtype == torch.float32 and torch.is_grad_enabled():
            # linear layers follow: cast once here what autocast would cast anew in front of each
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
            return _TrainedRMSNorm.apply(hidden, self.weight, self.eps, dtype)
        return F.rms_norm(hidden, self.normalized_shape, self.weight.to(hidden.dtype), self.eps)


class _TrainedRMSNorm(torch.autograd.Function):
    """y = w * x / r with r = sqrt(mean(x^2) + eps); with n = x / r and g = dL/dy:
    dL/dx = (w g - n mean(w g n)) / r and dL/dw = sum of g n."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        mean_square = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).square_().div_(hidden.shape[-1])
        inverse_r = mean_square.add_(eps).rsqrt_()
        normalised = hidden * inverse_r
        ctx.save_for_backward(normalised, inverse_r, weight_D)
        return (normalised * weight_D).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normalised, inverse_r, weight_D = ctx.saved_tensors
        gradient = gradient.to(normalised.dtype)
        weight_gradient_D = (gradient * normalised).flatten(0, -2).sum(dim=0)
        weighted = gradient * weight_D
        projection = (weighted * normalised).mean(dim=-1, keepdim=True)
        return weighted.addcmul_(normalised, projection, value=-1.0).mul_(inverse_r), weight_gradient_D, None, None
