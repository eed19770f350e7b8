"""Decoding with the depth transformer: the K codes of a position one after another, every place computed once.

In: hidden states of the preceding positions. Out: the codes that the caller chooses from the logits. Made once for a
batch of images: it joins the matrices that read the same input, and keeps keys and values in buffers that every
position writes anew, so that nothing is cleared or allocated inside a position. Gives the logits of teacher forcing
(mllm/heads/depth_transformer.py).

Letters: R decoding rows, N guided pairs, D hidden width, K codebooks, C codes, A attention heads, G key/value heads,
d head width, S places of the depth sequence so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.heads.code_head import ChooseCode, CodeDecoder, Guidance
from mllm.heads.joined_linear import join

if TYPE_CHECKING:
    from mllm.heads.depth_transformer import DepthLayer, DepthTransformerHead


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
            rotated_RHd = rotate(rotated_RHd, *rope)
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


def rotate(heads_RHd: Tensor, cos_d: Tensor, signed_sin_d: Tensor) -> Tensor:
    """Rotary position embedding in Llama's layout (first half with second half); the sine has its sign inside."""
    turned_RHd = heads_RHd.roll(heads_RHd.shape[-1] // 2, dims=-1)
    cos_d, signed_sin_d = cos_d.to(heads_RHd.dtype), signed_sin_d.to(heads_RHd.dtype)
    return torch.addcmul(heads_RHd * cos_d, turned_RHd, signed_sin_d)
