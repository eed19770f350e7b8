"""How much memory the released models need, computed from the shapes of their tensors; nothing is loaded.

`python -m mllm.released.memory` prints the tables of docs/released_weights.md. Gigabytes are 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mllm.checkpoint import KEPT
from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from tokenizer.checkpoint import CAST_PARTS
from tokenizer.config import UniTokConfig
from tokenizer.unitok import build_empty

PROMPT_TOKENS = 64
"""Of a typical prompt, for the size of the caches."""
BYTES: dict[str, float] = {"float32": 4, "bfloat16": 2, "8 bits": 1, "4 bits": 0.5}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model."""

    name: str
    num_values: int
    num_quantised: int
    """Those of them that quantised loading makes smaller."""
    num_kept: int = 0
    """Those of them that stay in float32 whatever type is asked for."""

    def gigabytes(self, type_name: str) -> float:
        """In one type; in fewer bits without their scales (a few percent), the rest in bfloat16."""
        rest = self.num_values - self.num_kept - self.num_quantised
        size = BYTES[type_name] * self.num_quantised + max(BYTES[type_name], 2) * rest
        return (size + BYTES["float32"] * self.num_kept) / 1e9


def released_parts() -> list[Part]:
    """The released language model and image tokenizer, part by part."""
    with torch.device("meta"):
        model = MLLMForConditionalGeneration(MLLMConfig())
    tokenizer = build_empty(UniTokConfig.large())
    kept = [tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith(CAST_PARTS)]
    return [
        part_of("language model (Llama-2-7B)", model, ("backbone", "lm_head")),
        part_of("code embedding", model, ("code_embedding",)),
        part_of("head of the codes (depth transformer)", model, ("code_head",)),
        Part("image tokenizer", count(tokenizer.state_dict().values()), 0, count(kept)),
    ]


def part_of(name: str, model: nn.Module, children: tuple[str, ...]) -> Part:
    """A part that is made of some children of the model."""
    quantised = [
        layer.weight
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and path.startswith(children) and not path.startswith(tuple(KEPT))
    ]
    tensors = [tensor for path, tensor in model.state_dict().items() if path.startswith(children)]
    return Part(name, count(tensors), count(quantised))


def count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def cache_bytes(config: MLLMConfig, *, num_rows: int, num_tokens: int, type_name: str) -> int:
    """Keys and values of the language model, and of the code embedding where it looks at what came before."""
    text = config.text_config
    per_token = text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    embedder = 0
    if config.embedding_context == "prefix":
        embedder = config.embedder_width * config.positions_per_image
    return 2 * num_rows * (per_token * num_tokens + embedder) * int(BYTES[type_name])


def joined_bytes(type_name: str) -> int:
    """Matrices of the head that drawing copies side by side, for as long as it draws (mllm/heads.py)."""
    with torch.device("meta"):
        layers = MLLMForConditionalGeneration(MLLMConfig()).code_head.layers
    joined = (
        linear.weight
        for layer in layers
        for linear in (
            *(getattr(layer.self_attn, f"{name}_proj") for name in "qkv"),
            layer.mlp.gate_proj,
            layer.mlp.up_proj,
        )
    )
    return count(joined) * int(BYTES[type_name])


def weights_table() -> str:
    """Memory of the weights, as a table in Markdown."""
    parts = released_parts()
    lines = [f"| part | numbers | {' | '.join(BYTES)} |", "|---|---:" + "|---:" * len(BYTES) + "|"]
    total = Part(
        "all together",
        sum(part.num_values for part in parts),
        sum(part.num_quantised for part in parts),
        sum(part.num_kept for part in parts),
    )
    for part in (*parts, total):
        sizes = " | ".join(f"{part.gigabytes(type_name):.2f} GB" for type_name in BYTES)
        lines.append(f"| {part.name} | {part.num_values:,} | {sizes} |")
    return "\n".join(lines)


def caches_table() -> str:
    """Memory of what is kept while generating, in bfloat16, as a table in Markdown."""
    prefix, isolated = MLLMConfig(), MLLMConfig(embedding_context="current")
    num_positions = prefix.positions_per_image
    drawing = PROMPT_TOKENS + num_positions + 2  # the image with its begin and end
    cases = [
        ("one picture without guidance", prefix, 1, drawing),
        ("one picture with guidance", prefix, 2, drawing),
        ("the same, context `isolated`", isolated, 2, drawing),
        ("eight pictures with guidance", prefix, 16, drawing),
        ("text in a full context", isolated, 1, prefix.text_config.max_position_embeddings),
    ]
    lines = ["| while | rows | tokens in each | keys and values |", "|---|---:|---:|---:|"]
    for name, config, rows, tokens in cases:
        size = cache_bytes(config, num_rows=rows, num_tokens=tokens, type_name="bfloat16")
        lines.append(f"| {name} | {rows} | {tokens} | {size / 1e9:.3f} GB |")
    lines.append(f"| any drawing: joined matrices of the head | | | {joined_bytes('bfloat16') / 1e9:.3f} GB |")
    return "\n".join(lines)


def main() -> None:
    print(weights_table(), caches_table(), sep="\n\n")


if __name__ == "__main__":
    main()
