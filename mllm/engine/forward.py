"""The forward pass of a decoding batch: slots of keys and values, and one pass over new positions of some of them.

A slot holds one sequence; its positions lie one after another from the slot's beginning, so that sequences of different
lengths stand side by side without padding. A pass feeds new positions to neighbouring slots, to each as many as it has;
it writes their keys and values behind those that stand, where a later pass may overwrite them. Only attention tells
rows apart: neighbours with as many new positions attend together (`Group`). Backbones of Llama's kind run in a lean
version of their layers, all others through transformers, with a cache that writes into the slots and rows that are
padded to one length. Chooses nothing. `arrange` makes the tensors that say where new positions go; what follows is a
function of tensors.

Letters: S slots, R rows (the slots of a group), W new positions of a row, P positions of a pass, X positions of a
group, L positions that are attended to, D hidden width, A attention heads, G key/value heads, d head width, K
codebooks, N positions of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from mllm.heads import beside, join
from mllm.model import MLLMForConditionalGeneration

LLAMAS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")  # backbones whose layers `LlamaLayer` computes
MOST_JOINED_BYTES = 2**28  # matrices that read the same input are copied side by side where the copies take no more

Join = Callable[[Sequence[nn.Module]], Callable[[Tensor], Tensor]]


class CachedForward:
    """The model with slots for many sequences: keys and values of every layer, (S, capacity, 2, G, d)."""

    def __init__(self, model: MLLMForConditionalGeneration) -> None:
        self.model, self.device = model, model.device
        self.num_slots = self.capacity = 0
        self.num_growths = 0  # how often buffers were replaced by larger ones
        self.layers: list[Tensor] = []
        self.run_backbone = LlamaBackbone(model.backbone) if is_llama(model.backbone) else AnyBackbone(model.backbone)
        self.code_cache = model.code_embedding.new_cache(0, 0)

    def reserve(self, num_slots: int, length: int, num_positions: int) -> None:
        """Make room for that many sequences of that length, with images of that many positions; all stays."""
        if num_slots > self.num_slots or length > self.capacity:
            self.num_growths += 1
            self.num_slots, self.capacity = max(num_slots, self.num_slots), max(length, self.capacity)
            for number, old in enumerate(self.layers):
                self.layers[number] = old.new_zeros(self.num_slots, self.capacity, *old.shape[2:])
                self.layers[number][: old.shape[0], : old.shape[1]] = old
        if self.code_cache is None:
            return
        old_slots, old_positions = self.code_cache[0].shape[0], self.code_cache[0].shape[2] - 1
        if old_slots < num_slots or old_positions < num_positions:
            sizes = max(num_slots, old_slots), max(num_positions, old_positions)
            self.num_growths += 1
            new_cache = self.model.code_embedding.new_cache(*sizes)
            for new, old in zip(new_cache or (), self.code_cache, strict=True):
                new[: old.shape[0], :, : old.shape[2]] = old
            self.code_cache = new_cache

    @property
    def is_ragged(self) -> bool:
        """Whether rows of unequal length need no padding."""
        return isinstance(self.run_backbone, LlamaBackbone)

    @property
    def bytes_per_position(self) -> int:
        """Of keys and values, in all layers."""
        text = self.model.config.text_config
        num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * text.num_hidden_layers * num_heads * head_width * self.model.lm_head.weight.element_size()

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` positions of two slots, and the images being drawn."""
        for buffer in (*(layer[:, :length] for layer in self.layers), *(self.code_cache or ())):
            kept = buffer[a].clone()
            buffer[a] = buffer[b]
            buffer[b] = kept

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot to another."""
        for buffer in self.layers:
            buffer[target, :length] = buffer[source, :length]

    def bucket(self, lengths: Sequence[int], counts: Sequence[int]) -> Bucket | None:
        """The size of a pass over such rows where the backbone needs rows of one length; None: it does not."""
        if self.is_ragged:
            return None
        return Bucket(len(counts), max(counts), max(map(add, lengths, counts)))

    def arrange(
        self, lengths: Sequence[int], counts: Sequence[int], *, first: int = 0, bucket: Bucket | None = None
    ) -> tuple[Placement, list[int]]:
        """Where new positions go, and the index in the pass of the first one of each row.

        Args:
            lengths: positions of each row before them.
            counts: new positions of each row.
            first: the slot of the first row.
            bucket: sizes to fill up to, with positions that are computed and written where nothing reads; None: rows
                lie one after another.
        """
        if bucket is not None:
            shape = bucket.num_rows, bucket.num_new
            # the last position is one that no sequence uses, and that a backbone need not have embeddings of
            position_RW, stored_RW = np.zeros(shape, dtype=np.int64), np.full(shape, self.capacity - 1)
            for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
                position_RW[row, :count] = stored_RW[row, :count] = np.arange(length, length + count)
            index_RW = np.arange(first, first + shape[0])[:, None] * self.capacity + stored_RW
            group = Group(first, *bucket, is_masked=True)
            return self._make_placement(position_RW.flatten(), index_RW.flatten(), (group,)), [
                row * bucket.num_new for row in range(len(counts))
            ]
        begins = [0, *accumulate(counts)][: len(counts)]
        slot_P = np.repeat(np.arange(first, first + len(counts)), counts)
        position_P = np.arange(len(slot_P)) + np.repeat(np.subtract(lengths, begins), counts)
        groups: list[Group] = []
        for slot, (length, count) in enumerate(zip(lengths, counts, strict=True), first):
            if groups and groups[-1].num_new == count and groups[-1].first + groups[-1].num_rows == slot:
                first, num_rows, _, attended, _ = groups.pop()
                groups.append(Group(first, num_rows + 1, count, max(attended, length + count), is_masked=True))
            elif count:
                groups.append(Group(slot, 1, count, length + count, is_masked=count > 1))
        return self._make_placement(position_P, slot_P * self.capacity + position_P, tuple(groups)), begins

    def _make_placement(self, position_P: np.ndarray, index_P: np.ndarray, groups: tuple[Group, ...]) -> Placement:
        to_device = partial(torch.tensor, device=self.device)
        return Placement(to_device(position_P), to_device(index_P), groups)

    def embed(self, tokens_P: Tensor, drawn: DrawnPositions | None) -> Tensor:
        """Embeddings (P, D) of new positions; `drawn`: those that are image positions; None where there are none."""
        embedded_PD = self.model.get_input_embeddings()(tokens_P)
        if drawn is None:
            return embedded_PD
        codes_RWK, index_RW, columns_R, slots_R, pass_index_RW, sources_RWK = drawn
        step = self.model.code_embedding.step
        positions_RWD = step(codes_RWK, index_RW, columns_R, self.code_cache, slots_R, sources_RWK)
        positions_PD = positions_RWD.flatten(0, 1).to(embedded_PD.dtype)
        return F.pad(embedded_PD, (0, 0, 0, 1)).index_copy(0, pass_index_RW.flatten(), positions_PD)[:-1]

    def __call__(self, embedded_PD: Tensor, placement: Placement) -> Tensor:
        """Hidden states (P, D) of new positions."""
        position_P, index_P, groups = placement
        parts, begin = [], 0
        for group in groups:
            part = slice(begin, begin := begin + group.num_rows * group.num_new)
            parts.append(Part(group, part, self._mask(group, position_P[part], like=embedded_PD)))
        return self.run_backbone(embedded_PD, position_P, Pass(self, index_P, parts))

    def _mask(self, group: Group, position_X: Tensor, *, like: Tensor) -> Tensor | None:
        """What is added to the attention scores (R, 1, W, L) of a group, whose new positions are these in their
        sequences; None: nothing."""
        if not group.is_masked:
            return None
        position_RW1 = position_X.view(group.num_rows, group.num_new, 1)
        is_later_RWL = torch.arange(group.attended, device=self.device) > position_RW1
        mask_RWL = like.new_zeros(is_later_RWL.shape)
        return mask_RWL.masked_fill_(is_later_RWL, torch.finfo(like.dtype).min)[:, None]


class Bucket(NamedTuple):
    """Sizes of a pass."""

    num_rows: int  # R
    num_new: int  # W
    attended: int  # L


class Group(NamedTuple):
    """Neighbouring rows with as many new positions each, which attend in one operation."""

    first: int  # slot of the first row
    num_rows: int  # R
    num_new: int  # W
    attended: int  # L
    is_masked: bool  # whether some of these are no predecessors of some new position


class Placement(NamedTuple):
    """Where the new positions of a pass go."""

    position_P: Tensor  # in their sequences
    index_P: Tensor  # among all positions of all slots
    groups: tuple[Group, ...]


class DrawnPositions(NamedTuple):
    """The image positions among the new positions, row by row; rows are filled up."""

    codes_RWK: Tensor
    index_RW: Tensor  # in their images; -1: none is here
    columns_R: Tensor  # of the images
    slots_R: Tensor
    pass_index_RW: Tensor  # in the pass; P: none is here
    sources_RWK: Tensor | None  # codes that the next position has in the image before, -1 where there are none


class Part(NamedTuple):
    """The part of a pass that a group is."""

    group: Group
    positions: slice  # among those of the pass
    mask_R1WL: Tensor | None  # added to attention scores

    def read(self, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values (R, G, L, d) that are attended to."""
        first, num_rows, _, attended, _ = self.group
        keys_RGLd, values_RGLd = buffer[first : first + num_rows, :attended].permute(0, 2, 3, 1, 4).unbind(1)
        return keys_RGLd, values_RGLd


class Pass(NamedTuple):
    """What the layers need to know of a pass, and how they store keys and values."""

    forward: CachedForward
    index_P: Tensor  # where each position is among all positions of all slots
    parts: list[Part]

    def write(self, layer: int, keys_PGd: Tensor, values_PGd: Tensor) -> Tensor:
        """Store new positions; keys and values (S, capacity, 2, G, d) of all slots."""
        forward = self.forward
        if layer == len(forward.layers):
            forward.layers.append(keys_PGd.new_zeros(forward.num_slots, forward.capacity, 2, *keys_PGd.shape[1:]))
        buffer = forward.layers[layer]
        index_P = self.index_P.to(buffer.device)  # layers may lie on several devices
        buffer.flatten(0, 1).index_copy_(0, index_P, torch.stack((keys_PGd, values_PGd), dim=1))
        return buffer


class AnyBackbone:
    """A backbone through transformers, whose passes are of one group (`CachedForward.bucket`)."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone

    def __call__(self, embedded_PD: Tensor, position_P: Tensor, current: Pass) -> Tensor:
        (part,) = current.parts
        shape, num_layers = (part.group.num_rows, part.group.num_new), self.backbone.config.num_hidden_layers
        position_RW = position_P.unflatten(0, shape)
        hidden_RWD = self.backbone(
            inputs_embeds=embedded_PD.unflatten(0, shape),
            attention_mask=self._masks(part.mask_R1WL, position_RW),
            position_ids=position_RW,
            past_key_values=Cache(layers=[SlotLayer(current, number) for number in range(num_layers)]),
            use_cache=True,
        ).last_hidden_state
        return hidden_RWD.flatten(0, 1)

    def _masks(self, mask_R1WL: Tensor | None, position_RW: Tensor) -> Tensor | dict[str, Tensor] | None:
        """The masks of layers that see everything before them and of those that see a sliding window."""
        config = self.backbone.config
        if mask_R1WL is None or (window := sliding_window(config)) is None:
            return mask_R1WL
        is_past_RWL = torch.arange(mask_R1WL.shape[-1], device=mask_R1WL.device) <= position_RW[..., None] - window
        sliding_R1WL = mask_R1WL.masked_fill(is_past_RWL[:, None], torch.finfo(mask_R1WL.dtype).min)
        if getattr(config, "layer_types", None) is None:
            return sliding_R1WL
        return {"full_attention": mask_R1WL, "sliding_attention": sliding_R1WL}


class SlotLayer(DynamicLayer):
    """The cache of one layer, as transformers wants it."""

    def __init__(self, current: Pass, number: int) -> None:
        super().__init__()
        self.current, self.number = current, number

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **rest: object) -> tuple[Tensor, Tensor]:
        keys_PGd, values_PGd = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        return self.current.parts[0].read(self.current.write(self.number, keys_PGd, values_PGd))


def is_llama(backbone: Any) -> bool:
    """Whether `LlamaBackbone` computes what this backbone does."""
    if type(backbone).__name__ not in LLAMAS or any(hasattr(module, "_hf_hook") for module in backbone.modules()):
        return False
    turns_all = 2 * len(backbone.rotary_emb.inv_freq) == backbone.layers[0].self_attn.head_dim
    return turns_all and sliding_window(backbone.config) is None


def sliding_window(config: Any) -> int | None:
    """How many positions layers with a sliding window see, themselves included; None: it is never too short."""
    window = getattr(config, "sliding_window", None)
    return None if window is None or window >= config.max_position_embeddings else window


class LlamaBackbone:
    """A backbone of Llama's kind without what transformers' modules do besides arithmetic."""

    def __init__(self, backbone: Any) -> None:
        self.norm, self.rotary_emb = backbone.norm, backbone.rotary_emb
        num_bytes = sum(p.numel() * p.element_size() for p in backbone.layers.parameters())
        joined = join if num_bytes <= MOST_JOINED_BYTES else beside
        self.layers = [LlamaLayer(layer, number, joined) for number, layer in enumerate(backbone.layers)]
        half = self.layers[0].head_width // 2
        self.signs_d = torch.tensor([-1.0] * half + [1.0] * half, device=backbone.device)

    def __call__(self, embedded_PD: Tensor, position_P: Tensor, current: Pass) -> Tensor:
        cos_1Pd, sin_1Pd = self.rotary_emb(embedded_PD, position_P[None])
        turn = cos_1Pd[0, :, None], (sin_1Pd[0] * self.signs_d.to(sin_1Pd.dtype))[:, None]
        hidden_PD = embedded_PD
        for layer in self.layers:
            hidden_PD = layer(hidden_PD, turn, current)
        return normalise(hidden_PD, self.norm)


class LlamaLayer:
    def __init__(self, layer: Any, number: int, joined: Join) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.head_width, self.scale = number, attention.head_dim, attention.scaling
        self.num_heads = attention.config.num_attention_heads
        self.num_groups = attention.config.num_key_value_heads
        self.head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self.input_norm, self.inner_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = joined([attention.o_proj])
        self.gate_up = joined([mlp.gate_proj, mlp.up_proj])
        self.down, self.activate = joined([mlp.down_proj]), mlp.act_fn

    def __call__(self, hidden_PD: Tensor, turn: tuple[Tensor, Tensor], current: Pass) -> Tensor:
        heads_PHd = self.qkv(normalise(hidden_PD, self.input_norm)).unflatten(-1, (-1, self.head_width))
        hidden_PD = hidden_PD + self.out(self.attend(heads_PHd, turn, current))
        gate, up = self.gate_up(normalise(hidden_PD, self.inner_norm)).chunk(2, dim=-1)
        return hidden_PD + self.down(self.activate(gate) * up)

    def attend(self, heads_PHd: Tensor, turn: tuple[Tensor, Tensor], current: Pass) -> Tensor:
        """Attention (P, A * d), from queries, keys and values side by side."""
        sizes = (self.num_heads + self.num_groups, self.num_groups)
        turned_PHd, values_PGd = heads_PHd.split(sizes, dim=1)
        if self.head_norms is not None:
            parts = turned_PHd.split((self.num_heads, self.num_groups), dim=1)
            turned_PHd = torch.cat([norm(part) for norm, part in zip(self.head_norms, parts, strict=True)], dim=1)
        turned_PHd = torch.addcmul(turned_PHd * turn[0], turned_PHd.roll(self.head_width // 2, dims=-1), turn[1])
        query_PAd, keys_PGd = turned_PHd.split((self.num_heads, self.num_groups), dim=1)
        buffer = current.write(self.number, keys_PGd, values_PGd)
        attended = [self.attend_part(query_PAd[part.positions], buffer, part) for part in current.parts]
        return (attended[0] if len(attended) == 1 else torch.cat(attended)).flatten(1)

    def attend_part(self, query_XAd: Tensor, buffer: Tensor, part: Part) -> Tensor:
        """Attention (X, A, d) of the X positions of neighbouring rows."""
        query_RAWd = query_XAd.unflatten(0, (part.group.num_rows, -1)).transpose(1, 2)
        mask_R1WL, size = part.mask_R1WL, self.num_heads // self.num_groups
        if size > 1:  # the heads of a group as further positions, so that keys and values are not repeated
            query_RAWd = query_RAWd.unflatten(1, (self.num_groups, -1)).flatten(2, 3)
            mask_R1WL = None if mask_R1WL is None else mask_R1WL.repeat(1, 1, size, 1)
        attended = F.scaled_dot_product_attention(query_RAWd, *part.read(buffer), attn_mask=mask_R1WL, scale=self.scale)
        if size > 1:
            attended = attended.unflatten(2, (size, -1)).flatten(1, 2)
        return attended.transpose(1, 2).flatten(0, 1)


def normalise(hidden_PD: Tensor, norm: Any) -> Tensor:
    """A root mean square norm of transformers, with fewer operations."""
    if hidden_PD.dtype is not torch.float32 or hidden_PD.is_cuda:
        return norm(hidden_PD)
    size_P1 = torch.linalg.vector_norm(hidden_PD, dim=-1, keepdim=True)
    scale_P1 = torch.rsqrt(size_P1.square_().div_(hidden_PD.shape[-1]).add_(norm.variance_epsilon))
    return hidden_PD * scale_P1 * norm.weight
