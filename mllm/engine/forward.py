"""The forward passes of a decoding batch, with caches: all prompts at once, then position by position.

In: sequence states, then the steps that were chosen. Out: hidden states after the last position. A guided request
brings a second, unconditional sequence that follows the same tokens except those of plans. Sequences share one write
position of the cache: shorter prompts are padded on the left and masked. Masks are additive and 4-dimensional, which
the `sdpa` and `eager` attention of transformers take (`flash_attention_2` does not). Chooses nothing.

Letters: N requests, R sequences of the decoder (the N, then the unconditional ones), U different prompts among them,
G sequences with codes, T positions of this call, S positions so far, D hidden width, P image positions, K codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from mllm.engine.state import SequenceState
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import TokenSequence


class Step(NamedTuple):
    """The next position of each sequence that is not done; a sequence is in one of the two."""

    tokens: dict[int, int]  # sequence -> token id
    codes: dict[int, Tensor]  # sequence -> codes (K,), in the order of codes_GK
    codes_GK: Tensor | None


class CachedForward:
    """The model with the caches of one batch."""

    def __init__(self, model: MLLMForConditionalGeneration, states: Sequence[SequenceState]) -> None:
        self.model, self.config, self.device, self.states = model, model.config, model.device, states
        guided = [n for n, state in enumerate(states) if state.request.is_guided]
        self.unconditional_rows = {n: len(states) + i for i, n in enumerate(guided)}
        self.owner_R = torch.tensor([*range(len(states)), *guided], device=self.device)
        most_positions = max(state.num_positions for state in states)
        columns = [state.grid[1] for state in states]
        self.code_cache = model.code_embedding.new_cache(len(states), most_positions, columns=columns)

    def prefill(self) -> Tensor:
        """Run all prompts at once, equal ones only once; hidden states (R, D) after their last tokens."""
        guided = [self.states[n] for n in self.unconditional_rows]
        prompts = [state.request.prompts[0] for state in self.states] + [state.request.prompts[1] for state in guided]
        prefixes = [state.prefix for state in self.states] + [state.unconditional_prefix for state in guided]
        texts = [(*prompt.token_ids_T.tolist(), *prefix) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        lengths = [len(text) for text in texts]
        self.length = max(lengths)
        capacity = self.length + max(state.max_steps for state in self.states)
        num_layers = self.config.text_config.num_hidden_layers
        self.cache = Cache(layers=[PreallocatedLayer(capacity) for _ in range(num_layers)])
        first_rows, sources = find_duplicates(texts, prompts)
        embeddings_UTD = self._embed_prompts([texts[row] for row in first_rows], [prompts[row] for row in first_rows])

        def pad(row_lengths: list[int]) -> LeftPadding:
            may_skip = bool(guided) and self.config.begin_plan_id is not None
            dtype = embeddings_UTD.dtype
            return LeftPadding(row_lengths, capacity=capacity, dtype=dtype, device=self.device, may_skip=may_skip)

        self.padding = pad([lengths[row] for row in first_rows])
        hidden_UD = self.forward(embeddings_UTD, start=0, mask=self.padding.prefill_mask(self.length))
        if len(first_rows) == len(texts):
            return hidden_UD
        self.padding, index_R = pad(lengths), torch.tensor(sources, device=self.device)
        self.cache.batch_select_indices(index_R)
        return hidden_UD.index_select(0, index_R)

    def _embed_prompts(self, texts: list[tuple[int, ...]], prompts: list[TokenSequence]) -> Tensor:
        """Embeddings (U, T, D) of prompts, padded on the left."""
        padded = [[self.config.pad_token_id] * (self.length - len(text)) + list(text) for text in texts]
        codes = np.concatenate([prompt.codes_PK for prompt in prompts]).astype(np.int64)
        image_lengths = np.concatenate([prompt.image_lengths_I for prompt in prompts]).astype(np.int64)
        return self.model.embed(
            torch.tensor(padded, device=self.device),
            torch.from_numpy(codes).to(self.device) if len(codes) else None,
            torch.from_numpy(image_lengths).to(self.device) if len(codes) else None,
        )

    def step(self, step: Step) -> Tensor:
        """Run the positions that were chosen; hidden states (R, D) after them."""
        embeddings_RD = self._embed_step(step)
        if self.unconditional_rows:
            embeddings_RD = embeddings_RD[self.owner_R]
        start, self.length = self.length, self.length + 1
        if skipping := [row for n, row in self.unconditional_rows.items() if self.states[n].is_in_plan]:
            self.padding.skip(skipping, start)
        return self.forward(embeddings_RD[:, None], start=start, mask=self.padding.step_mask(self.length))

    def _embed_step(self, step: Step) -> Tensor:
        """Embeddings (N, D) of the chosen tokens and codes; a guided pair shares its own."""
        if step.codes_GK is None:
            return self._embed_tokens(step.tokens)
        if starting := [n for n in step.codes if self.states[n].positions_done == 1]:
            self.code_cache.reset(torch.tensor(starting, device=self.device))
        if len(step.codes) == len(self.states):
            return self.model.code_embedding.step(step.codes_GK, self.code_cache)
        rows_G = torch.tensor(list(step.codes), device=self.device)
        embeddings_GD = self.model.code_embedding.step(step.codes_GK, self.code_cache, rows=rows_G)
        return self._embed_tokens(step.tokens).index_copy(0, rows_G, embeddings_GD)

    def _embed_tokens(self, tokens: dict[int, int]) -> Tensor:
        """Embeddings (N, D) of tokens; sequences without one get padding, which nobody reads."""
        ids = [tokens.get(n, self.config.pad_token_id) for n in range(len(self.states))]
        return self.model.get_input_embeddings()(torch.tensor(ids, device=self.device))

    def forward(self, embeddings_RTD: Tensor, *, start: int, mask: Tensor | None) -> Tensor:
        """The backbone over new positions; hidden states (R, D) of the last one."""
        outputs = self.model.backbone(
            inputs_embeds=embeddings_RTD,
            attention_mask=mask,
            position_ids=self.padding.position_ids(start, start + embeddings_RTD.shape[1]),
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -1]


def find_duplicates(texts: list[tuple[int, ...]], prompts: list[TokenSequence]) -> tuple[list[int], list[int]]:
    """The first row of each different prompt, and for every row which of these is its own: several images of one
    sentence, and all unconditional rows, share their prompt."""
    found: dict[tuple[object, ...], int] = {}
    first_rows: list[int] = []
    sources: list[int] = []
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        key = (text, prompt.codes_PK.tobytes(), prompt.image_lengths_I.tobytes())
        if key not in found:
            found[key] = len(first_rows)
            first_rows.append(row)
        sources.append(found[key])
    return first_rows, sources


class LeftPadding:
    """Position ids and masks of sequences that end at the same position but begin at different ones, or skip positions.

    Args:
        lengths: of the prompts.
        capacity: of the cache.
        may_skip: sequences may skip positions, so that they need a mask even if all prompts are equally long.
    """

    def __init__(
        self, lengths: list[int], *, capacity: int, dtype: torch.dtype, device: torch.device, may_skip: bool = False
    ) -> None:
        longest = max(lengths)
        # positions so far that are not real
        self.padding_R = torch.tensor([longest - length for length in lengths], device=device)
        self.mask_RS: Tensor | None = None  # added to attention scores: 0 at real positions, the least number elsewhere
        if may_skip or min(lengths) < longest:
            is_padding_RS = torch.arange(capacity, device=device) < self.padding_R[:, None]
            zeros_RS = torch.zeros(len(lengths), capacity, dtype=dtype, device=device)
            self.mask_RS = zeros_RS.masked_fill_(is_padding_RS, torch.finfo(dtype).min)

    def skip(self, rows: list[int], position: int) -> None:
        """Hide the newest position of these sequences; their position ids continue as if it were not there."""
        assert self.mask_RS is not None, "made without `may_skip`"
        rows_G = torch.tensor(rows, device=self.padding_R.device)
        self.padding_R[rows_G] += 1
        self.mask_RS[rows_G, position] = torch.finfo(self.mask_RS.dtype).min

    def position_ids(self, start: int, end: int) -> Tensor:
        """Position ids (R, T) of the positions from start to end: each sequence counts its own real positions."""
        return (torch.arange(start, end, device=self.padding_R.device) - self.padding_R[:, None]).clamp_min(0)

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


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in buffers of a fixed capacity; `keys` and `values` are views of what is filled.

    Nothing is concatenated, and attention reads only what has been written, not the complete capacity.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **rest: object) -> tuple[Tensor, Tensor]:
        """Write at the end; return everything so far."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        assert end <= self.capacity, f"cache of {self.capacity} positions cannot take position {end}"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [
                states.new_empty(*states.shape[:2], self.capacity, states.shape[-1])
                for states in (key_states, value_states)
            ]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make these sequences the cache's sequences; one may come several times."""
        length = self.get_seq_length()
        self.buffers = [buffer.index_select(0, indices) for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)
