"""Pick the next token or code from logits. Pure functions: no model, no tokenizer, no loop, no random state.

In: logits of some rows, their settings and noise. Out: one choice per row. The order is fixed: temperature -> top-k ->
top-p -> argmax of what is kept plus Gumbel noise, all in float32; guidance and masks come before. That is a draw from
the filtered distribution (Gumbel-max). The noise is a function of (seed, position, codebook, choice) and of nothing
else, so a choice does not depend on when, where or with what others it is computed.

Letters: N rows (one image or text each), C choices (codes of a codebook, or text tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", int, float)
PerCodebook: TypeAlias = T | tuple[T, ...]  # one value for all codebooks, or a tuple with one value per codebook

TEXT = 2**16 - 1  # the codebook of text tokens in `gumbel`; more than any model has
NO_LIMIT = 2.0  # a top-p that no cumulative probability exceeds: the row is not filtered


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How to choose. The defaults are plain sampling from the model's own distribution."""

    temperature: PerCodebook[float] = 1.0
    """Below 1 sharpens, above 1 flattens."""
    top_k: PerCodebook[int] | None = None
    """Keep the k most probable choices; None keeps all."""
    top_p: PerCodebook[float] = 1.0
    """Keep the most probable choices up to this total probability, the one that crosses it included; 1 keeps all."""
    guidance: float = 1.0
    """Classifier-free guidance scale of images; 1 means none, and then no unconditional rows are computed."""
    greedy: bool = False
    """Take the most probable choice; temperature, top-k and top-p then have no say."""

    def __post_init__(self) -> None:
        check_each("temperature", self.temperature, lambda value: 0 < value < float("inf"), "> 0")
        if self.top_k is not None:
            check_each("top_k", self.top_k, lambda value: value >= 1 and value % 1 == 0, "an integer >= 1")
        check_each("top_p", self.top_p, lambda value: 0 < value <= 1, "> 0 and <= 1")
        check_each("guidance", self.guidance, lambda value: 1 <= value < float("inf"), ">= 1")
        lengths = {len(v) for v in (self.temperature, self.top_k, self.top_p) if isinstance(v, tuple)}
        if len(lengths) > 1:
            raise ValueError(
                f"settings per codebook must have one length, got {sorted(lengths)}; give one value per codebook"
            )

    def check_codebooks(self, num_codebooks: int) -> None:
        """Refuse per-codebook settings made for another number of codebooks."""
        for name in ("temperature", "top_k", "top_p"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != num_codebooks:
                raise ValueError(
                    f"{name} must have {num_codebooks} values, one per codebook, got {len(value)}; "
                    "give one value for all or one per codebook"
                )


def check_each(name: str, value: Any, is_valid: Any, expected: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, Real) or not is_valid(number):
            raise ValueError(f"{name} must be {expected}, got {number!r}; use a number in that range")


class RowSettings(NamedTuple):
    """The settings of several rows as tensors. None: no row needs that step."""

    temperature_N1: Tensor | None
    top_k_N1: Tensor | None  # int64, at most C
    top_p_N1: Tensor | None
    greedy_N: Tensor | None  # bool
    num_candidates: int | None  # how many of the largest logits the filters must see; None: no filter
    all_greedy: bool

    def take(self, rows: Tensor | slice) -> RowSettings:
        *tensors, num_candidates, all_greedy = self
        taken = (tensor if tensor is None else tensor[rows] for tensor in tensors)
        return RowSettings(*taken, num_candidates=num_candidates, all_greedy=all_greedy)


def stack_settings(
    configs: Sequence[SamplingConfig], *, num_choices: int, num_codebooks: int = 1, device: torch.device | str = "cpu"
) -> RowSettings:
    """Settings below each other, of each config for all codebooks; a step that no row asks for is left out."""

    def column(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)[:, None]

    rows = [(config, k) for config in configs for k in range(num_codebooks)]
    temperatures = [float(pick(config.temperature, k)) for config, k in rows]
    top_ks = [num_choices if c.top_k is None else min(int(pick(c.top_k, k)), num_choices) for c, k in rows]
    top_ps = [float(pick(config.top_p, k)) for config, k in rows]
    greedy = [config.greedy for config, _ in rows]
    has_top_k, has_top_p = min(top_ks) < num_choices, min(top_ps) < 1
    return RowSettings(
        temperature_N1=column(temperatures, torch.float32) if any(t != 1 for t in temperatures) else None,
        top_k_N1=column(top_ks, torch.int64) if has_top_k else None,
        top_p_N1=column([NO_LIMIT if p >= 1 else p for p in top_ps], torch.float32) if has_top_p else None,
        num_candidates=max(top_ks) if has_top_k or has_top_p else None,
        greedy_N=torch.tensor(greedy, device=device) if any(greedy) and not all(greedy) else None,
        all_greedy=all(greedy),
    )


def pick(value: PerCodebook[T], codebook: int) -> T:
    return value[codebook] if isinstance(value, tuple) else value


def choose(logits_NC: Tensor, settings: RowSettings, noise_NC: Tensor | None) -> Tensor:
    """One choice per row. Forbidden choices come in as -inf; greedy rows need no noise."""
    if settings.all_greedy:
        return logits_NC.argmax(-1)  # the first of equals
    assert noise_NC is not None, "rows that sample need noise"
    filtered_NC = logits_NC.float()
    if settings.temperature_N1 is not None:
        filtered_NC = filtered_NC / settings.temperature_N1
    if settings.num_candidates is not None:
        candidates_NX = filtered_NC.topk(settings.num_candidates, dim=-1).values
        threshold_N1 = keep_threshold(candidates_NX, settings.top_k_N1, settings.top_p_N1)
        filtered_NC = filtered_NC.masked_fill(filtered_NC < threshold_N1, -torch.inf)
    chosen_N = (filtered_NC + noise_NC).argmax(-1)
    if settings.greedy_N is not None:
        chosen_N = torch.where(settings.greedy_N, logits_NC.argmax(-1), chosen_N)
    return chosen_N


def keep_threshold(sorted_NX: Tensor, top_k_N1: Tensor | None, top_p_N1: Tensor | None) -> Tensor:
    """The smallest logit of each row that top-k, then top-p, keep; ties with it are kept as well.

    Args:
        sorted_NX: the largest logits in descending order, at least top-k of them (all of them for top-p alone).
        top_p_N1: keep the most probable choices up to this total, the one that crosses it included.
    """
    if top_k_N1 is not None:
        rank_X = torch.arange(sorted_NX.shape[-1], device=sorted_NX.device)
        sorted_NX = sorted_NX.masked_fill(rank_X >= top_k_N1, -torch.inf)
    if top_p_N1 is None:
        return sorted_NX.gather(-1, top_k_N1 - 1)
    probability_NX = sorted_NX.softmax(-1)
    before_NX = probability_NX.cumsum(-1) - probability_NX  # the total of all that are more probable
    is_kept_NX = before_NX <= top_p_N1
    if top_k_N1 is not None:
        is_kept_NX &= rank_X < top_k_N1
    return sorted_NX.gather(-1, is_kept_NX.sum(-1, keepdim=True) - 1)


def gumbel(seed_N: Tensor, position_N: Tensor, codebook_N: Tensor | int, *, num_choices: int) -> Tensor:
    """Gumbel noise (N, C) of the choices of these rows, whatever the device; all numbers are int64, seeds up to 2^63.

    The bits are integer arithmetic, and logarithms in float64 leave float32 results that do not depend on the device.
    """
    state_N = mix_bits((seed_N & MASK) + GOLDEN) ^ mix_bits((seed_N >> 32) + 2 * GOLDEN)
    state_N = mix_bits(mix_bits(state_N + position_N) + codebook_N)
    choice_C = torch.arange(num_choices, device=seed_N.device)
    bits_NC = mix_bits(state_N[..., None] + GOLDEN * choice_C)
    uniform_NC = (bits_NC.double() + 0.5) * 2.0**-32  # inside (0, 1)
    return -(-uniform_NC.log()).log().float()


GOLDEN = 0x3C6EF372
MASK = 0xFFFFFFFF


def mix_bits(number: Tensor) -> Tensor:
    """A bijective hash of 32 bits in int64; the factor is below 2^31, so that no product overflows."""
    number = number & MASK
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & MASK
    return number ^ (number >> 16)
