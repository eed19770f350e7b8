"""Key/value caches of a fixed capacity for a transformers decoder: written in place, read as views.

In: the keys and values of new positions. Out: those of all positions so far. Nothing is concatenated and attention
reads only what has been written, not the whole capacity. Rows share one write position: shorter prompts are padded on
the left and masked (`LeftPadding`).

Letters: R rows of the decoder, T positions of this call, S positions written so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class PreallocatedLayer(CacheLayerMixin):
    """Keys and values of one layer in one buffer; `update` returns a view of what is filled."""

    is_compileable = False
    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate like the first keys and values that come in: their rows, heads, dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.capacity, width)
        self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write at the end; return everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[-2]
        assert end <= self.capacity, f"cache of {self.capacity} positions cannot take position {end}"
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make these rows the cache's rows; one may come several times."""
        self.keys, self.values = self.keys.index_select(0, indices), self.values.index_select(0, indices)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity

    def reset(self) -> None:
        self.length = 0


def build_cache(num_layers: int, capacity: int) -> Cache:
    """An empty cache for a decoder of this many layers."""
    return Cache(layers=[PreallocatedLayer(capacity) for _ in range(num_layers)])


@dataclass(frozen=True, slots=True)
class LeftPadding:
    """Position ids and masks of rows that end at the same place but begin at different ones, or skip places."""

    begin_R: Tensor  # how many places of each row are not real, up to the newest
    mask_RS: (
        Tensor | None
    )  # added to attention scores: 0 at real positions, the least number at padding; None: no padding

    @classmethod
    def of(
        cls,
        lengths: list[int],
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        may_skip: bool = False,
    ) -> LeftPadding:
        """Padding of prompts of these lengths, for a cache of this capacity."""
        longest = max(lengths)
        begin_R = torch.tensor([longest - length for length in lengths], device=device)
        if min(lengths) == longest and not may_skip:
            return cls(begin_R, None)
        is_padding_RS = torch.arange(capacity, device=device) < begin_R[:, None]
        mask_RS = torch.zeros(len(lengths), capacity, dtype=dtype, device=device)
        return cls(begin_R, mask_RS.masked_fill_(is_padding_RS, torch.finfo(dtype).min))

    def skip(self, rows: list[int], place: int) -> None:
        """These rows have nothing at the newest place: nobody will see it, and their count goes on as if it were not
        there."""
        assert self.mask_RS is not None, "made without `may_skip`"
        rows_G = torch.tensor(rows, device=self.begin_R.device)
        self.begin_R[rows_G] += 1
        self.mask_RS[rows_G, place] = torch.finfo(self.mask_RS.dtype).min

    def position_ids(self, start: int, end: int) -> Tensor:
        """Position ids (R, T) of the places from start to end: each row counts its own real places."""
        return (torch.arange(start, end, device=self.begin_R.device) - self.begin_R[:, None]).clamp_min(0)

    def prefill_mask(self, length: int) -> Tensor | None:
        """Additive causal mask (R, 1, T, T). Padding sees everything alike: finite, and nobody reads it."""
        if self.mask_RS is None:
            return None
        least = torch.finfo(self.mask_RS.dtype).min
        future_TT = self.mask_RS.new_full((length, length), least).triu(1)
        return torch.maximum(self.mask_RS[:, None, None, :length] + future_TT, future_TT.new_tensor(least))

    def step_mask(self, length: int) -> Tensor | None:
        """Additive mask (R, 1, 1, S) of one new position: a view, nothing is built."""
        return None if self.mask_RS is None else self.mask_RS[:, None, None, :length]
