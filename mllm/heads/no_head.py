"""No codebook head: for models that look at pictures and never draw one."""

import torch
from torch import Tensor

from mllm.heads.code_head import CodeDecoder, CodeHead


class NoHead(CodeHead):
    """Stands where a head would; has no parameters."""

    def __init__(self, *, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes

    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Zeros (P, K, C); the model refuses to learn from them."""
        return torch.zeros(*codes_PK.shape, self.num_codes, dtype=hidden_PD.dtype, device=hidden_PD.device)

    def decoder(self) -> CodeDecoder:
        """Refused."""
        raise ValueError("this model has no head for image codes: found head_type 'none'; use a model that draws")
