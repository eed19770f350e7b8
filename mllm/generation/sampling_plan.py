"""How the solver samples: guidance and filters for images and for text, as one value without state.

In: the arguments of `create_logits_processor`. Out: sampling settings laid over a checkpoint's own. A plan is frozen,
cheap to build, and serves any number of calls and threads; everything that changes lives in the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mllm.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingPlan:
    """What a call of the solver does to probabilities."""

    cfg: float = 3.0
    """Guidance of images; 1 computes no second branch."""
    image_top_k: int | None = 2000
    """Of each codebook; 0 or None is off. More than a codebook holds is off as well."""
    text_top_k: int | None = 10
    """0 or None is off."""
    image_top_p: float = 1.0
    image_temperature: float | None = None
    """None: that of the call."""
    uncond: Literal["all", "text"] = "text"
    """What guidance leaves out: the instruction (input images stay, as models are trained here), or everything."""

    def __post_init__(self) -> None:
        for name in ("image_top_k", "text_top_k"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 0):
                raise ValueError(f"{name} is no number of choices: found {value!r}; use a whole number, 0 for off")
        if self.uncond not in ("all", "text"):
            raise ValueError(f"unknown uncond: found {self.uncond!r}; use 'all' or 'text'")
        self.image(SamplingConfig(), temperature=1.0)  # refuses the rest

    def image(self, base: SamplingConfig, *, temperature: float) -> SamplingConfig:
        """Settings for the codes of images."""
        return replace(
            base,
            guidance=float(self.cfg),
            top_k=int(self.image_top_k) if self.image_top_k else None,
            top_p=self.image_top_p,
            temperature=self.image_temperature or temperature,
            greedy=False,
        )

    def text(self, *, temperature: float) -> SamplingConfig:
        """Settings for text tokens."""
        return SamplingConfig(top_k=int(self.text_top_k) if self.text_top_k else None, temperature=temperature)
