"""The depth transformer: a small Llama over the K codes of one image position, the head of the released model.

The sequence is [h, E_0(c_0), ..., E_{K-2}(c_{K-2})], where h is the hidden state of the preceding position; its place k
gives the logits of code k. Here all K places run at once, with the true codes; one at a time:
mllm/heads/depth_decoder.py.

Letters: P image positions, R decoding rows, N guided pairs, D hidden width, K codebooks, C codes, A attention heads,
G key/value heads, d head width, S places of the depth sequence so far.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mllm.heads.code_head import CodeHead
from mllm.heads.depth_decoder import DepthDecoder
from mllm.rms_norm import RMSNorm


class DepthTransformerHead(CodeHead):
    """Codes of a position one after another, each seeing those before it."""

    def __init__(
        self,
        *,
        width: int,
        intermediate_width: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_width: int,
        rope_theta: float,
        norm_eps: float,
        num_codebooks: int,
        num_codes: int,
        shared_output: bool = True,
    ) -> None:
        super().__init__()
        self.num_codebooks, self.num_codes = num_codebooks, num_codes
        self.head_width, self.rope_theta = head_width, rope_theta
        # one table: the entries of codebook k begin at row k * C; the last codebook is never an input
        self.codebooks = nn.Embedding(max(num_codebooks - 1, 1) * num_codes, width)
        self.layers = nn.ModuleList(
            DepthLayer(width, intermediate_width, num_heads, num_kv_heads, head_width, norm_eps)
            for _ in range(num_layers)
        )
        self.norm = RMSNorm(width, eps=norm_eps)
        self.linear_head = nn.Linear(width, num_codes) if shared_output else None
        self.linear_heads = None if shared_output else PerCodebookLinear(num_codebooks, width, num_codes)
        self.register_buffer("rope_cos", torch.empty(num_codebooks, head_width), persistent=False)
        self.register_buffer("rope_sin", torch.empty(num_codebooks, head_width), persistent=False)
        self.fill_rope_tables()

    @torch.no_grad()
    def fill_rope_tables(self) -> None:
        """Write cos and sin of the K places, as Llama has them (halves, not interleaved)."""
        exponents = torch.arange(0, self.head_width, 2, device=self.rope_cos.device, dtype=torch.float32)
        angles = torch.arange(self.num_codebooks, device=self.rope_cos.device, dtype=torch.float32)[:, None] * (
            1.0 / self.rope_theta ** (exponents / self.head_width)
        )
        self.rope_cos.copy_(torch.cat((angles, angles), dim=-1).cos())
        self.rope_sin.copy_(torch.cat((angles, angles), dim=-1).sin())

    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Logits (P, K, C) with the true codes as inputs."""
        offsets_K = torch.arange(self.num_codebooks - 1, device=codes_PK.device) * self.num_codes
        previous_PKD = self.codebooks(codes_PK[:, :-1] + offsets_K)
        inputs_PKD = torch.cat((hidden_PD[:, None].to(previous_PKD.dtype), previous_PKD), dim=1)
        rope = self.rope_cos, self.rope_sin
        for layer in self.layers:
            inputs_PKD = layer(inputs_PKD, rope)
        outputs_PKD = self.norm(inputs_PKD)
        return self.linear_head(outputs_PKD) if self.linear_heads is None else self.linear_heads(outputs_PKD)

    def decoder(self) -> DepthDecoder:
        """Decodes with copies of the weights as they are now."""
        return DepthDecoder(self)

    def place_logits(self, output_ND: Tensor, k: int) -> Tensor:
        """Logits (N, C) of code k."""
        return self.linear_head(output_ND) if self.linear_heads is None else self.linear_heads.one(output_ND, k)


class PerCodebookLinear(nn.Module):
    """K separate linear layers as one batched product."""

    def __init__(self, num_codebooks: int, width: int, num_codes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_codebooks, width, num_codes))
        self.bias = nn.Parameter(torch.zeros(num_codebooks, num_codes))

    def forward(self, inputs_PKD: Tensor) -> Tensor:
        return torch.bmm(inputs_PKD.transpose(0, 1), self.weight).transpose(0, 1) + self.bias

    def one(self, inputs_ND: Tensor, k: int) -> Tensor:
        return inputs_ND @ self.weight[k] + self.bias[k]


class DepthLayer(GradientCheckpointingLayer):
    """A Llama decoder layer (same names and shapes) over at most K places, causal."""

    def __init__(
        self, width: int, intermediate_width: int, num_heads: int, num_kv_heads: int, head_width: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps=norm_eps)
        self.self_attn = DepthAttention(width, num_heads, num_kv_heads, head_width)
        self.post_attention_layernorm = RMSNorm(width, eps=norm_eps)
        self.mlp = GatedMLP(width, intermediate_width)

    def forward(self, hidden_PKD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        hidden_PKD = hidden_PKD + self.self_attn(self.input_layernorm(hidden_PKD), rope)
        return hidden_PKD + self.mlp(self.post_attention_layernorm(hidden_PKD))


class DepthAttention(nn.Module):
    """Causal attention over K places; many tiny sequences, so batched products instead of a fused kernel."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_width = num_heads, num_kv_heads, head_width
        self.q_proj = nn.Linear(width, num_heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_width, bias=False)
        self.o_proj = nn.Linear(num_heads * head_width, width, bias=False)

    def forward(self, hidden_PKD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        query = rotate(self.q_proj(hidden_PKD).unflatten(-1, (-1, self.head_width)).transpose(1, 2), *rope)
        key = rotate(self.k_proj(hidden_PKD).unflatten(-1, (-1, self.head_width)).transpose(1, 2), *rope)
        value = self.v_proj(hidden_PKD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        return self.o_proj(self.attend(query, key, value).transpose(1, 2).flatten(2))

    def attend(self, query_PASd: Tensor, key_PGSd: Tensor, value_PGSd: Tensor) -> Tensor:
        """Causal softmax attention (P, A, S, d)."""
        groups = self.num_heads // self.num_kv_heads
        if groups > 1:
            key_PGSd, value_PGSd = (t.repeat_interleave(groups, dim=1) for t in (key_PGSd, value_PGSd))
        scores = torch.matmul(query_PASd, key_PGSd.transpose(-1, -2)).float() * self.head_width**-0.5
        is_later_SS = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(is_later_SS, float("-inf"))
        return torch.matmul(scores.softmax(dim=-1).to(value_PGSd.dtype), value_PGSd)


class GatedMLP(nn.Module):
    """The SwiGLU feed-forward of Llama."""

    def __init__(self, width: int, intermediate_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate_width, bias=False)
        self.up_proj = nn.Linear(width, intermediate_width, bias=False)
        self.down_proj = nn.Linear(intermediate_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def rotate(heads_PASd: Tensor, cos_Sd: Tensor, sin_Sd: Tensor) -> Tensor:
    """Rotary position embedding in Llama's layout (first half with second half)."""
    first, second = heads_PASd.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.addcmul(heads_PASd * cos_Sd.to(heads_PASd.dtype), turned, sin_Sd.to(heads_PASd.dtype))
