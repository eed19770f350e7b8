"""The codebook heads: from the hidden state of the position BEFORE an image position to the K codes of that position.

Two heads: a depth transformer (a small Llama over the K codes of one position, the head of the released model) and an
MLP that predicts all K codes at once (fast; blind to the other codes). `forward` gives the logits (P, K, C) of all
codes from the true ones, for training; `decoder()` a decoder with the weights as they are now, which may keep copies
and buffers, and whose `decode` chooses the codes (N, K) of one position for every row, codebook by codebook with
guidance, from the same logits. Does no sampling: the caller chooses each code.

The depth sequence is [h, E_0(c_0), ..., E_{K-2}(c_{K-2})], where h is the hidden state of the preceding position; the
output at k gives the logits of code k.

Letters: P image positions, R decoding rows, N guided pairs (N = R without guidance), D hidden width, K codebooks,
C codes per codebook, A attention heads, G key/value heads, d head width, S codes of the depth sequence so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from mllm.config import MLLMConfig

MOST_BYTES_BY_INPUT = 3 * 2**19
"""Of a float32 matrix that `join` stores transposed on a CPU. Products of few rows are then up to 1.4 times as fast
(docs/performance.md); those of two rows with larger matrices would be slower."""

ChooseCode = Callable[[int | None, Tensor], Tensor]
"""(k, logits_NC) -> codes_N: picks the code of codebook k for every pair; k None: (N, K, C) -> (N, K), all at once."""


class Guidance(NamedTuple):
    """Which rows are mixed: pair n draws from u + scale * (c - u) of its conditional row c and unconditional row u. A
    row without guidance names itself as its unconditional row; its scale then changes nothing."""

    conditional_N: Tensor  # int64 row numbers
    unconditional_N: Tensor  # int64 row numbers
    scale_N: Tensor  # float32

    def mix(self, hidden_RD: Tensor) -> Tensor:
        """Guided hidden states, mixed in float32. Before a linear layer this equals mixing logits, at half the rows."""
        conditional_ND = hidden_RD.index_select(0, self.conditional_N).float()
        unconditional_ND = hidden_RD.index_select(0, self.unconditional_N).float()
        mixed_ND = torch.lerp(unconditional_ND, conditional_ND, self.scale_N[:, None].float())
        return mixed_ND.to(hidden_RD.dtype)

    def pair_of_rows(self, num_rows: int) -> Tensor:
        """Which pair each row belongs to (R,), so that both rows of a pair get the code that was chosen for it."""
        pair_N = torch.arange(len(self.conditional_N), device=self.conditional_N.device)
        pair_R = pair_N.new_zeros(num_rows)
        return pair_R.index_copy(0, self.unconditional_N, pair_N).index_copy(0, self.conditional_N, pair_N)


class DepthTransformerHead(nn.Module):
    """Codes of a position one after another, each seeing those before it. Unset sizes are the backbone's."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        text = config.text_config
        num_heads = config.head_num_heads or text.num_attention_heads
        num_kv_heads = num_heads if config.head_num_heads else getattr(text, "num_key_value_heads", num_heads)
        width, self.head_width = config.hidden_size, config.hidden_size // num_heads
        self.num_codebooks, self.num_codes = config.num_codebooks, config.codebook_size
        self.rope_theta = rope_theta_of(text)
        # one table: the entries of codebook k begin at row k * C; the last codebook is never an input
        self.codebooks = nn.Embedding(max(self.num_codebooks - 1, 1) * self.num_codes, width)
        self.layers = nn.ModuleList(DepthLayer(config, num_heads, num_kv_heads) for _ in range(config.head_layers))
        self.norm = nn.RMSNorm(width, eps=norm_eps_of(text))
        is_shared = config.head_shared_output
        self.linear_head = nn.Linear(width, self.num_codes) if is_shared else None
        self.linear_heads = None if is_shared else PerCodebookLinear(self.num_codebooks, width, self.num_codes)
        for name in ("rope_cos", "rope_sin"):
            self.register_buffer(name, torch.empty(self.num_codebooks, self.head_width), persistent=False)
        self.fill_rope_tables()

    @torch.no_grad()
    def fill_rope_tables(self) -> None:
        """Write cos and sin of the K depth positions, as Llama has them (halves, not interleaved); see `rotate`."""
        options: dict[str, Any] = {"device": self.rope_cos.device, "dtype": torch.float32}
        exponents = torch.arange(0, self.head_width, 2, **options)
        speeds = 1.0 / self.rope_theta ** (exponents / self.head_width)
        angles = torch.arange(self.num_codebooks, **options)[:, None] * speeds
        self.rope_cos.copy_(torch.cat((angles, angles), dim=-1).cos())
        self.rope_sin.copy_(torch.cat((-angles.sin(), angles.sin()), dim=-1))

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
        return DepthDecoder(self)

    def logits_of_code(self, output_ND: Tensor, k: int) -> Tensor:
        return self.linear_head(output_ND) if self.linear_heads is None else self.linear_heads.one(output_ND, k)


class PerCodebookLinear(nn.Module):
    def __init__(self, num_codebooks: int, width: int, num_codes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_codebooks, width, num_codes))
        self.bias = nn.Parameter(torch.zeros(num_codebooks, num_codes))

    def forward(self, inputs_PKD: Tensor) -> Tensor:
        return torch.bmm(inputs_PKD.transpose(0, 1), self.weight).transpose(0, 1) + self.bias

    def one(self, inputs_ND: Tensor, k: int) -> Tensor:
        return inputs_ND @ self.weight[k] + self.bias[k]


class DepthLayer(GradientCheckpointingLayer):
    """A Llama decoder layer (same names and shapes) over at most K positions, causal."""

    def __init__(self, config: MLLMConfig, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, norm_eps_of(config.text_config)
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = DepthAttention(width, num_heads, num_kv_heads)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.mlp = GatedMLP(width, inner_width_of(config))

    def forward(self, hidden_PKD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        hidden_PKD = hidden_PKD + self.self_attn(self.input_layernorm(hidden_PKD), rope)
        return hidden_PKD + self.mlp(self.post_attention_layernorm(hidden_PKD))


class DepthAttention(nn.Module):
    """Causal attention over K positions; many tiny sequences, so batched products instead of a fused kernel."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        head_width = width // num_heads
        self.num_heads, self.num_kv_heads, self.head_width = num_heads, num_kv_heads, head_width
        self.q_proj = nn.Linear(width, num_heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_width, bias=False)
        self.o_proj = nn.Linear(num_heads * head_width, width, bias=False)

    def forward(self, hidden_PKD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        projected = (project(hidden_PKD) for project in (self.q_proj, self.k_proj, self.v_proj))
        query_PAKd, key_PGKd, value_PGKd = (p.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in projected)
        query_PAKd, key_PGKd = rotate(query_PAKd, *rope), rotate(key_PGKd, *rope)
        groups = self.num_heads // self.num_kv_heads
        if groups > 1:
            key_PGKd, value_PGKd = (t.repeat_interleave(groups, dim=1) for t in (key_PGKd, value_PGKd))
        scores_PAKK = torch.matmul(query_PAKd, key_PGKd.transpose(-1, -2)).float() * self.head_width**-0.5
        is_later_KK = torch.ones(scores_PAKK.shape[-2:], dtype=torch.bool, device=scores_PAKK.device).triu(1)
        weights_PAKK = scores_PAKK.masked_fill(is_later_KK, float("-inf")).softmax(dim=-1).to(value_PGKd.dtype)
        return self.o_proj(torch.matmul(weights_PAKK, value_PGKd).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, width: int, intermediate_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate_width, bias=False)
        self.up_proj = nn.Linear(width, intermediate_width, bias=False)
        self.down_proj = nn.Linear(intermediate_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class DepthDecoder:
    """A depth transformer ready to decode: the codes of a position one after another, each computed once. It joins the
    matrices that read the same input."""

    def __init__(self, head: DepthTransformerHead) -> None:
        self.head = head
        self.layers = [LayerStep(layer, head.num_codebooks) for layer in head.layers]

    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        head, num_codebooks = self.head, self.head.num_codebooks
        pair_R = None if guidance is None else guidance.pair_of_rows(hidden_RD.shape[0])
        inputs_RD, codes = hidden_RD, []
        caches: list[list[Tensor]] = [[] for _ in self.layers]
        for k in range(num_codebooks):
            rope = head.rope_cos[k], head.rope_sin[k]
            for layer, cache in zip(self.layers, caches, strict=True):
                inputs_RD = layer.step(inputs_RD, k, rope, cache)
            output_ND = head.norm(inputs_RD)
            if guidance is not None:
                output_ND = guidance.mix(output_ND)
            codes_N = choose(k, head.logits_of_code(output_ND, k))
            codes.append(codes_N)
            if k < num_codebooks - 1:
                codes_R = codes_N if pair_R is None else codes_N.index_select(0, pair_R)
                inputs_RD = head.codebooks(codes_R + k * head.num_codes)
        return torch.stack(codes, dim=1)


class LayerStep:
    """One layer for the next code of each row. The first code of a position makes the keys and values that the others
    add theirs to."""

    def __init__(self, layer: DepthLayer, num_codebooks: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.num_codebooks, self.head_width = num_codebooks, attention.head_width
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.input_norm, self.inner_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv, self.out = join([attention.q_proj, attention.k_proj, attention.v_proj]), join([attention.o_proj])
        self.gate_up, self.down = join([mlp.gate_proj, mlp.up_proj]), join([mlp.down_proj])

    def step(self, hidden_RD: Tensor, k: int, rope: tuple[Tensor, Tensor], cache: list[Tensor]) -> Tensor:
        heads_RHd = self.qkv(self.input_norm(hidden_RD)).unflatten(-1, (-1, self.head_width))
        hidden_RD = hidden_RD + self.out(self.attend(heads_RHd, k, rope, cache).flatten(1))
        gate, up = self.gate_up(self.inner_norm(hidden_RD)).chunk(2, dim=-1)
        return hidden_RD + self.down(F.silu(gate) * up)

    def attend(self, heads_RHd: Tensor, k: int, rope: tuple[Tensor, Tensor], cache: list[Tensor]) -> Tensor:
        """Attention (R, A, d) of k over all up to it, from its queries, keys and values side by side."""
        num_rotated, group = self.num_heads + self.num_kv_heads, self.num_heads // self.num_kv_heads
        rotated_RHd, value_RGd = heads_RHd[:, :num_rotated], heads_RHd[:, num_rotated:]
        if k > 0:
            rotated_RHd = rotate(rotated_RHd, *rope)
        else:
            shape = (len(heads_RHd), self.num_kv_heads, self.num_codebooks, self.head_width)
            cache += [heads_RHd.new_empty(shape), heads_RHd.new_empty(shape)]
        keys_RGKd, values_RGKd = cache
        keys_RGKd[:, :, k] = rotated_RHd[:, self.num_heads :]
        values_RGKd[:, :, k] = value_RGd
        if k == 0:  # position 0 turns nothing, and attention over a single value is that value
            return value_RGd.repeat_interleave(group, dim=1) if group > 1 else value_RGd
        query_XYd = rotated_RHd[:, : self.num_heads].reshape(-1, group, self.head_width)
        keys_XSd, values_XSd = (stored.flatten(0, 1)[:, : k + 1] for stored in cache)
        scores_XYS = torch.bmm(query_XYd, keys_XSd.transpose(1, 2)) * self.head_width**-0.5
        weights_XYS = scores_XYS.softmax(dim=-1, dtype=torch.float32).to(values_XSd.dtype)
        return torch.bmm(weights_XYS, values_XSd).view(-1, self.num_heads, self.head_width)


def beside(linears: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Linear layers that read the same input, their outputs side by side."""
    return linears[0] if len(linears) == 1 else lambda hidden: torch.cat([each(hidden) for each in linears], dim=-1)


@torch.no_grad()
def join(linears: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """As `beside`, in one product: plain layers are copied into one weight. Layers that something else has changed
    (adapters, quantisation, sharding, hooks) are called, so that nothing of theirs is lost."""
    if not all(is_plain(linear) for linear in linears) or len({linear.bias is None for linear in linears}) > 1:
        return beside(linears)
    weight = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
    if weight.device.type == "cpu" and weight.dtype is torch.float32 and weight.nbytes <= MOST_BYTES_BY_INPUT:
        weight = weight.t().contiguous().t()
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return lambda hidden: F.linear(hidden, weight, bias)


def is_plain(linear: nn.Module) -> bool:
    """Whether this is torch's own linear layer with its whole weight in an ordinary tensor."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.weight.shape == (linear.out_features, linear.in_features)
        and linear.weight.device.type != "meta"
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and "forward" not in vars(linear)  # accelerate replaces it on layers that it moves between devices
    )


def rotate(heads: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary position embedding in Llama's layout (first half with second half); the sine has its sign inside."""
    turned = heads.roll(heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * cos.to(heads.dtype), turned, signed_sin.to(heads.dtype))


class MLPHead(nn.Module):
    """Pre-norm gated MLP blocks, a norm, and one linear layer to K * C logits; the codes are independent."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__()
        self.shape = (config.num_codebooks, config.codebook_size)
        width, eps = config.hidden_size, norm_eps_of(config.text_config)
        blocks = (ResidualBlock(width, inner_width_of(config), eps) for _ in range(config.head_layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, eps=eps)
        self.linear_head = nn.Linear(width, config.num_codebooks * config.codebook_size)

    def transform(self, hidden_PD: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_PD = block(hidden_PD)
        return self.norm(hidden_PD)

    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Logits (P, K, C); `codes_PK` is not used."""
        return self.linear_head(self.transform(hidden_PD)).unflatten(-1, self.shape)

    def decoder(self) -> MLPHead:
        return self

    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        """Codes (N, K) of one position for every row, guided before the linear layer."""
        hidden_ND = self.transform(hidden_RD)
        if guidance is not None:
            hidden_ND = guidance.mix(hidden_ND)
        logits_NKC = self.linear_head(hidden_ND).unflatten(-1, self.shape)
        return choose(None, logits_NKC)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, intermediate_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = GatedMLP(width, intermediate_width)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        return hidden_PD + self.mlp(self.norm(hidden_PD))


CodeDecoder: TypeAlias = DepthDecoder | MLPHead


def norm_eps_of(text_config: PreTrainedConfig) -> float:
    names = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps")
    return next((value for name in names if (value := getattr(text_config, name, None)) is not None), 1e-6)


def inner_width_of(config: MLLMConfig) -> int:
    inner_width = getattr(config.text_config, "intermediate_size", None)
    return config.head_intermediate_size or inner_width or 4 * config.hidden_size


def rope_theta_of(text_config: PreTrainedConfig) -> float:
    """Base of the rotary embedding; where kinds of layers differ (Gemma 3), that of full attention."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    return {**rope, **rope.get("full_attention", {})}.get("rope_theta", 10000.0)
