"""What makes training fast on the machine at hand without changing what is computed: the device, and CPU attention.

PyTorch's fused attention takes three times as long as plain matrix products to go forward and backward through short
rows on a CPU (32 rows x 4 heads x 256 positions in bfloat16: 69 ms against 24 ms). The compiler fuses the rest.

Letters: B batch, H heads, T queries, S keys, d head width.
"""

from datetime import timedelta

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

WAIT_IN_TRAINING = timedelta(hours=6)  # for the first process to encode, draw, answer or compute rFID alone
CPU_EAGER = "cpu_eager"  # name of the attention among those of transformers


def training_device() -> torch.device:
    """Where a run computes: the accelerator if there is one."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def eager_attention(
    module: nn.Module,
    query_BHTd: Tensor,
    key_BHSd: Tensor,
    value_BHSd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; `attention_mask` is boolean, true where a position may attend, or a bias."""
    repeats = query_BHTd.shape[1] // key_BHSd.shape[1]
    key_BHSd, value_BHSd = repeat_kv(key_BHSd, repeats), repeat_kv(value_BHSd, repeats)
    scores_BHTS = (query_BHTd * (scaling or query_BHTd.shape[-1] ** -0.5)) @ key_BHSd.transpose(2, 3)
    if softcap is not None:  # Gemma 2
        scores_BHTS = torch.tanh(scores_BHTS / softcap) * softcap
    if attention_mask is None:
        past = scores_BHTS.shape[-1] - scores_BHTS.shape[-2]  # a position attends to what a cache holds, too
        attention_mask = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=scores_BHTS.device).tril(past)
    bias_B1TS = attention_mask
    if attention_mask.dtype == torch.bool:
        bias_B1TS = torch.zeros(attention_mask.shape, dtype=scores_BHTS.dtype, device=scores_BHTS.device)
        bias_B1TS = bias_B1TS.masked_fill(~attention_mask, torch.finfo(scores_BHTS.dtype).min)
    weights_BHTS = nn.functional.dropout((scores_BHTS + bias_B1TS).softmax(dim=-1), dropout, module.training)
    return (weights_BHTS @ value_BHSd).transpose(1, 2).contiguous(), None


def speed_up(backbone: PreTrainedModel, *, compiles: bool) -> None:
    """Prepare a backbone for training on a CPU (changed in place; what is saved stays the same)."""
    AttentionInterface.register(CPU_EAGER, eager_attention)
    AttentionMaskInterface.register(CPU_EAGER, sdpa_mask)
    backbone.set_attn_implementation(CPU_EAGER)
    if compiles:
        backbone.compile(dynamic=False)
