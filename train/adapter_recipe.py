"""The fields of low-rank adapters in a recipe (LoRA, arXiv:2106.09685; QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    rank: int = 64
    """Columns of the two small matrices; 64, 16 and 0.05 are the defaults of UniTok's training code."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """Of the adapters' input."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of the backbone that get an adapter."""
    new_tokens: bool = True
    """Train the embedding and output rows of the image tokens whole; the other rows stay frozen."""
    bits: int | None = None
    """4 or 8: hold the frozen backbone quantized (QLoRA; needs bitsandbytes). None: in its own precision."""

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise ValueError(f"adapter.bits is {self.bits}; use 4 or 8, or leave it out")
        if self.rank < 1:
            raise ValueError(f"adapter.rank is {self.rank}; use 1 or more")
