"""What every codebook head does, and guidance for it: the seam between the model, the loss and the decoding loop.

A head turns the hidden state of the position BEFORE an image position into logits over the K codes of that position.
Knows nothing of sampling (the caller chooses each code), sequences or images.

Letters: P image positions, R decoding rows, N guided pairs (N = R without guidance), D hidden width, K codebooks,
C codes per codebook.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mllm.config import MLLMConfig

if TYPE_CHECKING:
    pass  # MERGED


ChooseCode = Callable[[int, Tensor], Tensor]
"""(k, logits_NC) -> codes_N: picks the code of codebook k for every pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Which rows are mixed: pair n draws from u + scale * (c - u) of its conditional row c and unconditional row u.

    A row without guidance names itself as its unconditional row; its scale then changes nothing.
    """

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


class CodeDecoder(ABC):
    """A head made ready to decode a batch of images; it may keep copies and buffers for that time."""

    @abstractmethod
    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        """Codes (N, K) of one position for every row, chosen codebook by codebook."""


class CodeHead(nn.Module, ABC):
    """Interface of the heads: `forward` for teacher forcing, `decoder` for drawing. Both give the same logits."""

    @abstractmethod
    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Logits (P, K, C) of the codes of each position, given the hidden state of the preceding position."""

    @abstractmethod
    def decoder(self) -> CodeDecoder:
        """This head, ready to decode with the weights it has now."""


# Several linear layers that read the same input as one matrix product, for decoding.
#
# In: linear layers. Out: a function from their input to their outputs side by side. Plain layers are copied into one
# weight, which lives as long as the function does; layers that something else has changed (adapters, quantisation,
# sharding, hooks) are called one after another, so that nothing of theirs is lost.


Apply = Callable[[Tensor], Tensor]


@torch.no_grad()
def join(linears: Sequence[nn.Module]) -> Apply:
    """The outputs of these layers, concatenated in the last dimension."""
    if not all(is_plain(linear) for linear in linears) or len({linear.bias is None for linear in linears}) > 1:
        return lambda hidden: torch.cat([linear(hidden) for linear in linears], dim=-1)
    weight = linears[0].weight if len(linears) == 1 else torch.cat([linear.weight for linear in linears])
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


# Decoding with the depth transformer: the K codes of a position one after another, every place computed once.
#
# In: hidden states of the preceding positions. Out: the codes that the caller chooses from the logits. Made once for a
# batch of images: it joins the matrices that read the same input, and keeps keys and values in buffers that every
# position writes anew, so that nothing is cleared or allocated inside a position. Gives the logits of teacher forcing
# (mllm/heads.py).
#
# Letters: R decoding rows, N guided pairs, D hidden width, K codebooks, C codes, A attention heads, G key/value heads,
# d head width, S places of the depth sequence so far.


class DepthDecoder(CodeDecoder):
    """A depth transformer, ready to decode."""

    def __init__(self, head: DepthTransformerHead) -> None:
        self.head = head
        self.layers = [LayerStep(layer, head.num_codebooks) for layer in head.layers]
        first_half_d, second_half_d = torch.ones_like(head.rope_sin[0]).chunk(2)
        self.signed_sin_Kd = head.rope_sin * torch.cat((-first_half_d, second_half_d))

    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        head, num_codebooks = self.head, self.head.num_codebooks
        pair_R = None if guidance is None else guidance.pair_of_rows(hidden_RD.shape[0])
        inputs_RD, codes = hidden_RD, []
        for k in range(num_codebooks):
            output_ND = self.step(inputs_RD, k)
            if guidance is not None:
                output_ND = guidance.mix(output_ND)
            codes_N = choose(k, head.place_logits(output_ND, k))
            codes.append(codes_N)
            if k < num_codebooks - 1:
                codes_R = codes_N if pair_R is None else codes_N.index_select(0, pair_R)
                inputs_RD = head.codebooks(codes_R + k * head.num_codes)
        return torch.stack(codes, dim=1)

    def step(self, hidden_RD: Tensor, k: int) -> Tensor:
        """Place k of the depth sequence, after the last norm."""
        rope = self.head.rope_cos[k], self.signed_sin_Kd[k]
        for layer in self.layers:
            hidden_RD = layer.step(hidden_RD, k, rope)
        return self.head.norm(hidden_RD)


class LayerStep:
    """One layer for one new place per row; owns the keys and values of the places before it."""

    def __init__(self, layer: DepthLayer, num_places: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.num_places = num_places
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.head_width = attention.head_width
        self.input_norm, self.inner_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = join([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = join([attention.o_proj])
        self.gate_up = join([mlp.gate_proj, mlp.up_proj])
        self.down = join([mlp.down_proj])
        self.keys_RGKd = self.values_RGKd = torch.empty(0)

    def step(self, hidden_RD: Tensor, k: int, rope: tuple[Tensor, Tensor]) -> Tensor:
        heads_RHd = self.qkv(self.input_norm(hidden_RD)).unflatten(-1, (-1, self.head_width))
        hidden_RD = hidden_RD + self.out(self.attend(heads_RHd, k, rope).flatten(1))
        gate, up = self.gate_up(self.inner_norm(hidden_RD)).chunk(2, dim=-1)
        return hidden_RD + self.down(F.silu(gate) * up)

    def attend(self, heads_RHd: Tensor, k: int, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Attention (R, A, d) of place k over the places up to it, from its queries, keys and values side by side."""
        num_rotated, group = self.num_heads + self.num_kv_heads, self.num_heads // self.num_kv_heads
        rotated_RHd, value_RGd = heads_RHd[:, :num_rotated], heads_RHd[:, num_rotated:]
        if k == 0:
            self.allocate(heads_RHd)
        else:
            rotated_RHd = rotate_cached(rotated_RHd, *rope)
        self.keys_RGKd[:, :, k] = rotated_RHd[:, self.num_heads :]
        self.values_RGKd[:, :, k] = value_RGd
        if k == 0:  # position 0 turns nothing, and attention over a single place is its value
            return value_RGd.repeat_interleave(group, dim=1) if group > 1 else value_RGd
        query_XYd = rotated_RHd[:, : self.num_heads].reshape(-1, group, self.head_width)
        keys_XSd, values_XSd = (cache.flatten(0, 1)[:, : k + 1] for cache in (self.keys_RGKd, self.values_RGKd))
        scores_XYS = torch.bmm(query_XYd, keys_XSd.transpose(1, 2)) * self.head_width**-0.5
        weights_XYS = scores_XYS.softmax(dim=-1, dtype=torch.float32).to(values_XSd.dtype)
        return torch.bmm(weights_XYS, values_XSd).view(-1, self.num_heads, self.head_width)

    def allocate(self, like_RHd: Tensor) -> None:
        """Make the buffers fit these rows; they seldom change."""
        shape = (like_RHd.shape[0], self.num_kv_heads, self.num_places, self.head_width)
        if self.keys_RGKd.shape != shape or self.keys_RGKd.dtype != like_RHd.dtype:
            self.keys_RGKd, self.values_RGKd = like_RHd.new_empty(shape), like_RHd.new_empty(shape)


def rotate_cached(heads_RHd: Tensor, cos_d: Tensor, signed_sin_d: Tensor) -> Tensor:
    """Rotary position embedding in Llama's layout (first half with second half); the sine has its sign inside."""
    turned_RHd = heads_RHd.roll(heads_RHd.shape[-1] // 2, dims=-1)
    cos_d, signed_sin_d = cos_d.to(heads_RHd.dtype), signed_sin_d.to(heads_RHd.dtype)
    return torch.addcmul(heads_RHd * cos_d, turned_RHd, signed_sin_d)


# Root-mean-square norm (arXiv:1910.07467) for the codebook heads: same numbers as torch's, fewer passes on a CPU.
#
# Torch has a fused kernel for this on GPUs; on a CPU it runs about a dozen passes over memory forward and backward,
# which
# costs more than the matrix products of a small model. Here it is four forward and seven backward.
#
# Letters: D width; leading dimensions are free.


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


# The depth transformer: a small Llama over the K codes of one image position, the head of the released model.
#
# The sequence is [h, E_0(c_0), ..., E_{K-2}(c_{K-2})], where h is the hidden state of the preceding position; its
# place k
# gives the logits of code k. Here all K places run at once, with the true codes; one at a time:
# mllm/heads.py.
#
# Letters: P image positions, R decoding rows, N guided pairs, D hidden width, K codebooks, C codes, A attention heads,
# G key/value heads, d head width, S places of the depth sequence so far.


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


# The mlp head: a residual MLP that predicts the K codes of a position all at once. Fast; blind to the other codes.
#
# In: hidden states. Out: logits (P, K, C) in one pass. For ablations and small models.
#
# Letters: P image positions, R decoding rows, N guided pairs, D hidden width, K codebooks, C codes per codebook.


class MLPHead(CodeHead, CodeDecoder):
    """Pre-norm gated MLP blocks, a norm, and one linear layer to K * C logits."""

    def __init__(
        self,
        *,
        width: int,
        intermediate_width: int,
        num_layers: int,
        norm_eps: float,
        num_codebooks: int,
        num_codes: int,
    ) -> None:
        super().__init__()
        self.shape = (num_codebooks, num_codes)
        self.blocks = nn.ModuleList(ResidualBlock(width, intermediate_width, norm_eps) for _ in range(num_layers))
        self.norm = RMSNorm(width, eps=norm_eps)
        self.linear_head = nn.Linear(width, num_codebooks * num_codes)

    def transform(self, hidden_PD: Tensor) -> Tensor:
        """Hidden states just before the linear layer."""
        for block in self.blocks:
            hidden_PD = block(hidden_PD)
        return self.norm(hidden_PD)

    def forward(self, hidden_PD: Tensor, codes_PK: Tensor) -> Tensor:
        """Logits (P, K, C); `codes_PK` is not looked at, since no code depends on another."""
        return self.linear_head(self.transform(hidden_PD)).unflatten(-1, self.shape)

    def decoder(self) -> CodeDecoder:
        """The head itself: there is nothing to prepare."""
        return self

    def decode(self, hidden_RD: Tensor, *, choose: ChooseCode, guidance: Guidance | None = None) -> Tensor:
        """Codes (N, K) of one position for every row, guided before the linear layer."""
        hidden_ND = self.transform(hidden_RD)
        if guidance is not None:
            hidden_ND = guidance.mix(hidden_ND)
        logits_NKC = self.linear_head(hidden_ND).unflatten(-1, self.shape)
        return torch.stack([choose(k, logits_NKC[:, k]) for k in range(self.shape[0])], dim=1)


class ResidualBlock(nn.Module):
    """x + MLP(norm(x))."""

    def __init__(self, width: int, intermediate_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=norm_eps)
        self.mlp = GatedMLP(width, intermediate_width)

    def forward(self, hidden_PD: Tensor) -> Tensor:
        return hidden_PD + self.mlp(self.norm(hidden_PD))


# No codebook head: for models that look at pictures and never draw one.


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


# Builds the codebook head that a config asks for; the one place that knows all head types.
#
# The interface is in mllm/heads.py, the heads in mllm/heads.py and mllm/heads.py.


__all__ = ["CodeHead", "Guidance", "build_head"]


def build_head(config: MLLMConfig) -> CodeHead:
    """The head of `config.head_type`, as wide as the backbone; unset sizes are the backbone's."""
    text = config.text_config
    intermediate_width = config.head_intermediate_size or text.intermediate_size
    match config.head_type:
        case "none":
            return NoHead(num_codes=config.codebook_size)
        case "mlp":
            return MLPHead(
                width=text.hidden_size,
                intermediate_width=intermediate_width,
                num_layers=config.head_layers,
                norm_eps=text.rms_norm_eps,
                num_codebooks=config.num_codebooks,
                num_codes=config.codebook_size,
            )
        case "depth_transformer":
            num_heads = config.head_num_heads or text.num_attention_heads
            num_kv_heads = num_heads if config.head_num_heads else text.num_key_value_heads
            return DepthTransformerHead(
                width=text.hidden_size,
                intermediate_width=intermediate_width,
                num_layers=config.head_layers,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_width=text.hidden_size // num_heads,
                rope_theta=(getattr(text, "rope_parameters", None) or {}).get("rope_theta", 10000.0),
                norm_eps=text.rms_norm_eps,
                num_codebooks=config.num_codebooks,
                num_codes=config.codebook_size,
                shared_output=config.head_shared_output,
            )
        case _:
            raise ValueError(f"unknown head_type: found {config.head_type!r}; use depth_transformer, mlp or none")
