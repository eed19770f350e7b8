"""The forward pass of a decoding batch: slots of keys and values, and one pass over new places of some of them.

A slot holds one sequence; its places lie one after another from the slot's beginning, so that sequences of different
lengths stand side by side without padding. A pass feeds W new places to each of R neighbouring slots; it writes their
keys and values behind those that stand, where a later pass may overwrite them. Backbones of Llama's kind run in a
lean version of their layers, all others through transformers, with a cache that writes into the slots. Chooses nothing.
`arrange` makes the tensors that say where new places go; what follows is a function of tensors.

Letters: S slots, R rows (the slots of a pass), W new places of a row, P = R * W, L places that are attended to, D
hidden width, A attention heads, G key/value heads, d head width, K codebooks, N positions of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from mllm.heads import join
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

    def reserve(self, num_slots: int, num_places: int, num_positions: int) -> None:
        """Make room for that many sequences of that many places, with images of that many positions; all stays."""
        if num_slots > self.num_slots or num_places > self.capacity:
            self.num_growths += 1
            self.num_slots, self.capacity = max(num_slots, self.num_slots), max(num_places, self.capacity)
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
            for new, old in zip(new_cache, self.code_cache, strict=True):
                new[: old.shape[0], :, : old.shape[2]] = old
            self.code_cache = new_cache

    @property
    def place_bytes(self) -> int:
        text = self.model.config.text_config
        num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * text.num_hidden_layers * num_heads * head_width * self.model.lm_head.weight.element_size()

    def swap(self, a: int, b: int, num_places: int) -> None:
        """Exchange the first places of two slots, and the images being drawn."""
        for buffer in (*(layer[:, :num_places] for layer in self.layers), *(self.code_cache or ())):
            kept = buffer[a].clone()
            buffer[a] = buffer[b]
            buffer[b] = kept

    def copy(self, source: int, target: int, num_places: int) -> None:
        """Copy the first places of a slot to another."""
        for buffer in self.layers:
            buffer[target, :num_places] = buffer[source, :num_places]

    def arrange(
        self, lengths: Sequence[int], counts: Sequence[int], *, first: int = 0, bucket: Bucket | None = None
    ) -> Places:
        """Where new places go.

        Args:
            lengths: places of each row before them.
            counts: new places of each row.
            first: the slot of the first row.
            bucket: sizes to fill up to, with places that are computed and written where nothing reads; None: places
                that a row lacks are not computed.
        """
        attended = min(max(n + count for n, count in zip(lengths, counts, strict=True)), self.capacity)
        num_rows, num_new = len(counts), max(counts)
        if bucket is not None:
            num_rows, num_new, attended = bucket
        lengths_R, counts_R = np.zeros((2, num_rows), dtype=np.int64)
        lengths_R[: len(lengths)], counts_R[: len(counts)] = lengths, counts
        is_new_RW = np.arange(num_new) < counts_R[:, None]
        # the last place is one that no sequence uses
        position_RW = np.where(is_new_RW, lengths_R[:, None] + np.arange(num_new), self.capacity - 1)
        padded_P = None
        if bucket is None and not is_new_RW.all():
            padded_P = torch.from_numpy(np.flatnonzero(is_new_RW)).to(self.device)
        return Places(torch.from_numpy(position_RW).to(self.device), padded_P, first, attended)

    def embed(self, tokens_RW: Tensor, codes_RWK: Tensor | None, index_RW: Tensor, columns_R: Tensor) -> Tensor:
        """Embeddings (R, W, D) of new places of the first R slots.

        Args:
            codes_RWK: of image positions; None where there are none.
            index_RW: of image positions in their images, -1 elsewhere.
        """
        embedded_RWD = self.model.get_input_embeddings()(tokens_RW)
        if codes_RWK is None:
            return embedded_RWD
        cache = self.code_cache and tuple(buffer[: len(tokens_RW)] for buffer in self.code_cache)
        positions_RWD = self.model.code_embedding.step(codes_RWK, index_RW, columns_R, cache)
        return torch.where(index_RW[..., None] >= 0, positions_RWD.to(embedded_RWD.dtype), embedded_RWD)

    def __call__(self, embedded_RWD: Tensor, places: Places) -> Tensor:
        """Hidden states (P, D) of new places, row by row."""
        position_RW, padded_P, first, attended = places
        slot_R1 = torch.arange(first, first + len(position_RW), device=self.device)[:, None]
        index_P = (slot_R1 * self.capacity + position_RW).flatten()
        embedded_PD, position_P = embedded_RWD.flatten(0, 1), position_RW.flatten()
        if padded_P is not None:
            index_P, embedded_PD, position_P = index_P[padded_P], embedded_PD[padded_P], position_P[padded_P]
        is_later_RWL = torch.arange(attended, device=self.device) > position_RW[..., None]
        mask_RWL = embedded_RWD.new_zeros(is_later_RWL.shape)
        mask_R1WL = mask_RWL.masked_fill_(is_later_RWL, torch.finfo(embedded_RWD.dtype).min)[:, None]
        rows = slice(first, first + len(position_RW))
        return self.run_backbone(embedded_PD, position_P, Pass(self, rows, attended, index_P, padded_P, mask_R1WL))


class Bucket(NamedTuple):
    """Sizes of a pass."""

    num_rows: int  # R
    num_new: int  # W
    attended: int  # L


class Places(NamedTuple):
    """Where the new places of a pass go."""

    position_RW: Tensor  # in their sequences
    padded_P: Tensor | None  # those of the R * W places that are computed; None: all
    first: int  # slot of the first row
    attended: int  # L


class Pass(NamedTuple):
    """What the layers need to know of a pass, and how they store keys and values."""

    forward: CachedForward
    rows: slice  # the slots
    attended: int  # L
    index_P: Tensor  # where each is among all places of all slots
    padded_P: Tensor | None  # where each is in rows of W places; None: all are there
    mask_R1WL: Tensor  # added to attention scores

    def write(self, layer: int, keys_PGd: Tensor, values_PGd: Tensor) -> tuple[Tensor, Tensor]:
        """Store new places; all keys and values (R, G, L, d) of the rows."""
        forward = self.forward
        if layer == len(forward.layers):
            forward.layers.append(keys_PGd.new_zeros(forward.num_slots, forward.capacity, 2, *keys_PGd.shape[1:]))
        buffer = forward.layers[layer]
        index_P = self.index_P.to(buffer.device)  # layers may lie on several devices
        buffer.flatten(0, 1).index_copy_(0, index_P, torch.stack((keys_PGd, values_PGd), dim=1))
        stored_RL2Gd = buffer[self.rows, : self.attended]
        return stored_RL2Gd[:, :, 0].transpose(1, 2), stored_RL2Gd[:, :, 1].transpose(1, 2)

    def pad(self, packed_PX: Tensor) -> Tensor:
        """(P, ...) to (R, W, ...)."""
        shape = self.mask_R1WL.shape[0], self.mask_R1WL.shape[2]
        if self.padded_P is not None:
            padded_X = packed_PX.new_zeros(shape[0] * shape[1], *packed_PX.shape[1:])
            packed_PX = padded_X.index_copy_(0, self.padded_P, packed_PX)
        return packed_PX.unflatten(0, shape)

    def pack(self, padded_RWX: Tensor) -> Tensor:
        """(R, W, ...) to (P, ...)."""
        flat_X = padded_RWX.flatten(0, 1)
        return flat_X if self.padded_P is None else flat_X[self.padded_P]


class AnyBackbone:
    """A backbone through transformers."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def __call__(self, embedded_PD: Tensor, position_P: Tensor, places: Pass) -> Tensor:
        layers = [SlotLayer(places, number) for number in range(self.backbone.config.num_hidden_layers)]
        hidden_RWD = self.backbone(
            inputs_embeds=places.pad(embedded_PD),
            attention_mask=places.mask_R1WL,
            position_ids=places.pad(position_P),
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).last_hidden_state
        return places.pack(hidden_RWD)


class SlotLayer(DynamicLayer):
    """The cache of one layer, as transformers wants it."""

    def __init__(self, places: Pass, number: int) -> None:
        super().__init__()
        self.places, self.number = places, number

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **rest: object) -> tuple[Tensor, Tensor]:
        pack = self.places.pack
        keys_PGd, values_PGd = (pack(states.transpose(1, 2)) for states in (key_states, value_states))
        return self.places.write(self.number, keys_PGd, values_PGd)


def is_llama(backbone: nn.Module) -> bool:
    """Whether `LlamaBackbone` computes what this backbone does."""
    if type(backbone).__name__ not in LLAMAS or any(hasattr(module, "_hf_hook") for module in backbone.modules()):
        return False
    attentions = [layer.self_attn for layer in backbone.layers]
    turns_all = 2 * len(backbone.rotary_emb.inv_freq) == attentions[0].head_dim
    return turns_all and all(getattr(attention, "sliding_window", None) is None for attention in attentions)


class LlamaBackbone:
    """A backbone of Llama's kind without what transformers' modules do besides arithmetic."""

    def __init__(self, backbone: nn.Module) -> None:
        self.norm, self.rotary_emb = backbone.norm, backbone.rotary_emb
        num_bytes = sum(p.numel() * p.element_size() for p in backbone.layers.parameters())
        joined = join if num_bytes <= MOST_JOINED_BYTES else beside
        self.layers = [LlamaLayer(layer, number, joined) for number, layer in enumerate(backbone.layers)]
        half = self.layers[0].head_width // 2
        self.signs_d = torch.tensor([-1.0] * half + [1.0] * half, device=backbone.device)

    def __call__(self, embedded_PD: Tensor, position_P: Tensor, places: Pass) -> Tensor:
        cos_1Pd, sin_1Pd = self.rotary_emb(embedded_PD, position_P[None])
        turn = cos_1Pd[0, :, None], (sin_1Pd[0] * self.signs_d.to(sin_1Pd.dtype))[:, None]
        hidden_PD = embedded_PD
        for layer in self.layers:
            hidden_PD = layer(hidden_PD, turn, places)
        return normalise(hidden_PD, self.norm)


class LlamaLayer:
    def __init__(self, layer: nn.Module, number: int, joined: Join) -> None:
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

    def __call__(self, hidden_PD: Tensor, turn: tuple[Tensor, Tensor], places: Pass) -> Tensor:
        heads_PHd = self.qkv(normalise(hidden_PD, self.input_norm)).unflatten(-1, (-1, self.head_width))
        hidden_PD = hidden_PD + self.out(self.attend(heads_PHd, turn, places))
        gate, up = self.gate_up(normalise(hidden_PD, self.inner_norm)).chunk(2, dim=-1)
        return hidden_PD + self.down(self.activate(gate) * up)

    def attend(self, heads_PHd: Tensor, turn: tuple[Tensor, Tensor], places: Pass) -> Tensor:
        """Attention (P, A * d), from queries, keys and values side by side."""
        sizes = (self.num_heads + self.num_groups, self.num_groups)
        turned_PHd, values_PGd = heads_PHd.split(sizes, dim=1)
        if self.head_norms is not None:
            parts = turned_PHd.split((self.num_heads, self.num_groups), dim=1)
            turned_PHd = torch.cat([norm(part) for norm, part in zip(self.head_norms, parts, strict=True)], dim=1)
        turned_PHd = torch.addcmul(turned_PHd * turn[0], turned_PHd.roll(self.head_width // 2, dims=-1), turn[1])
        query_PAd, keys_PGd = turned_PHd.split((self.num_heads, self.num_groups), dim=1)
        keys_RGLd, values_RGLd = places.write(self.number, keys_PGd, values_PGd)
        # the heads of a group as further places, so that keys and values are not repeated
        query_RWGXd = places.pad(query_PAd).unflatten(2, (self.num_groups, -1))
        query_RGYd = query_RWGXd.permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask_R1YL = places.mask_R1WL
        if self.num_heads > self.num_groups:
            mask_R1YL = mask_R1YL.repeat(1, 1, self.num_heads // self.num_groups, 1)
        attended = F.scaled_dot_product_attention(
            query_RGYd, keys_RGLd, values_RGLd, attn_mask=mask_R1YL, scale=self.scale
        )
        num_rows, num_new = query_RWGXd.shape[:2]
        return places.pack(attended.view(num_rows, self.num_heads, num_new, -1).transpose(1, 2)).flatten(1)


def normalise(hidden_PD: Tensor, norm: nn.Module) -> Tensor:
    """A root mean square norm of transformers, with fewer operations."""
    if hidden_PD.dtype is not torch.float32 or hidden_PD.is_cuda:
        return norm(hidden_PD)
    size_P1 = torch.linalg.vector_norm(hidden_PD, dim=-1, keepdim=True)
    scale_P1 = torch.rsqrt(size_P1.square_().div_(hidden_PD.shape[-1]).add_(norm.variance_epsilon))
    return hidden_PD * scale_P1 * norm.weight


def beside(linears: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Outputs of linear layers side by side, without copies of their weights."""
    if len(linears) == 1:
        return linears[0]
    return lambda hidden: torch.cat([linear(hidden) for linear in linears], dim=-1)
