"""Linear layers whose weights have 8 or 4 bits (weight-only quantisation), by PyTorch's packed kernels on CPU and GPU.

Only weights lose bits; products are accumulated in float32. The kernels are vectorised for bfloat16 activations alone,
so activations are rounded to it on the way in, whatever the number format around the layer.

Letters: M rows, I input width, O output width, G inputs that share a scale.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
"""Inputs that share a scale in 4 bits: a quarter of a bit a weight more than 64, and half the error of 128."""
MOST_PACKED_ROWS = 16
"""Rows up to which the 8-bit kernel, which reads the weights once per few rows, beats expanding them for a product. It
needs a multiple of 16 inputs: with others, torch 2.13's kernel for AVX-512 reads beyond the weights and crashes."""


class Int8Linear(nn.Module):
    """Rows of 8-bit integers, each with its scale."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach().to(device).float()
        # rounded before the weights are divided by it, so that its own rounding costs nothing
        scale_O = (weight_OI.abs().amax(dim=1) / 127).clamp(min=1e-10).bfloat16()
        weight_OI = (weight_OI / scale_O[:, None]).round().clamp(-128, 127).to(torch.int8)
        self.weight, self.scale = frozen(weight_OI), frozen(scale_O)
        self.bias = None if linear.bias is None else frozen(linear.bias.detach().to(device))

    def forward(self, hidden: Tensor) -> Tensor:
        rows_MI = hidden.flatten(0, -2)
        if len(rows_MI) <= MOST_PACKED_ROWS and self.in_features % 16 == 0:
            output_MO = torch.ops.aten._weight_int8pack_mm(rows_MI.bfloat16(), self.weight, self.scale).to(hidden.dtype)
        elif hidden.dtype == torch.float16:  # sums of whole numbers would be beyond its range
            output_MO = F.linear(rows_MI, (self.weight * self.scale.float()[:, None]).half())
        else:
            output_MO = F.linear(rows_MI, self.weight.to(hidden.dtype)) * self.scale.to(hidden.dtype)
        return finish(output_MO, self.bias, hidden)


class Int4Linear(nn.Module):
    """4-bit integers packed for the kernel of the device; every G inputs share a scale and a zero point."""

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if self.in_features % GROUP or self.out_features % 16:
            sizes = self.in_features, self.out_features
            raise ValueError(f"int4 layers must have multiples of {GROUP} inputs and 16 outputs, got {sizes}; use int8")
        groups_OGI = linear.weight.detach().to(device).float().unflatten(1, (-1, GROUP))
        least, largest = groups_OGI.aminmax(dim=-1, keepdim=True)
        scale_OG1 = ((largest - least) / 15).clamp(min=1e-10).bfloat16().float()
        zero_OG1 = (least + 8 * scale_OG1).bfloat16().float()  # the kernels compute (q - 8) * scale + zero
        codes_OI = ((groups_OGI - zero_OG1) / scale_OG1 + 8).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.is_on_cpu = device.type == "cpu"
        if self.is_on_cpu:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI, 1)
        else:
            pairs = (codes_OI[:, ::2] << 4 | codes_OI[:, 1::2]).to(torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8 if self.in_features % 128 == 0 else 2)
        self.weight = frozen(packed)
        self.scale_and_zero = frozen(torch.cat((scale_OG1, zero_OG1), dim=-1).transpose(0, 1).contiguous().bfloat16())
        self.bias = None if linear.bias is None else frozen(linear.bias.detach().to(device))

    def forward(self, hidden: Tensor) -> Tensor:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu if self.is_on_cpu else torch.ops.aten._weight_int4pack_mm
        output_MO = product(hidden.flatten(0, -2).bfloat16(), self.weight, GROUP, self.scale_and_zero)
        return finish(output_MO.to(hidden.dtype), self.bias, hidden)


LAYERS: dict[str, type[nn.Module]] = {"int8": Int8Linear, "int4": Int4Linear}


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def finish(output_MO: Tensor, bias_O: Tensor | None, hidden: Tensor) -> Tensor:
    output_MO = output_MO if bias_O is None else output_MO + bias_O.to(output_MO.dtype)
    return output_MO.unflatten(0, hidden.shape[:-1])


def quantize_linears(model: nn.Module, name: str, *, device: torch.device, kept: Sequence[str] = ()) -> None:
    """Replace linear layers in place, one at a time, by layers of few bits on a device. `name`: a key of LAYERS.
    `kept`: beginnings of the names of modules that stay as they are."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and not path.startswith(tuple(kept)):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, LAYERS[name](module, device))
