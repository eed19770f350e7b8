"""How much memory the released models need, computed from the shapes of their tensors; nothing is loaded.

`python -m mllm.released_memory` prints the tables of docs/released_weights.md. Gigabytes are 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from tokenizer.config import UniTokConfig
from tokenizer.model import build_empty
from tokenizer.upstream_file import CAST_PARTS

PROMPT_TOKENS = 64
"""Of a typical prompt, for the size of the caches."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model."""

    name: str
    num_values: int
    num_linear: int
    """Those of them in linear layers inside, which quantised loading makes smaller."""
    num_kept: int = 0
    """Those of them that stay in float32 whatever type is asked for."""

    def gigabytes(self, type_name: str) -> float:
        return ((self.num_values - self.num_kept) * BYTES[type_name] + self.num_kept * BYTES["float32"]) / 1e9


def released_parts() -> list[Part]:
    """The released language model and image tokenizer, part by part."""
    with torch.device("meta"):
        model = MLLMForConditionalGeneration(MLLMConfig())
    tokenizer = build_empty(UniTokConfig.large())
    kept = [tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith(CAST_PARTS)]
    return [
        part_of("language model (Llama-2-7B)", model.backbone, model.lm_head),
        part_of("code embedding", model.code_embedding),
        part_of("head of the codes (depth transformer)", model.code_head),
        Part("image tokenizer", count(tokenizer.state_dict().values()), 0, count(kept)),
    ]


def part_of(name: str, *modules: nn.Module) -> Part:
    """A part that is made of some modules; the output layer of the text is left as it is when quantised."""
    inside = [layer.weight for layer in modules[0].modules() if isinstance(layer, nn.Linear)]
    return Part(name, sum(count(module.state_dict().values()) for module in modules), count(inside))


def count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def cache_bytes(config: MLLMConfig, *, num_rows: int, num_tokens: int, type_name: str) -> int:
    """Keys and values of the language model, and of the code embedding where it looks at what came before."""
    text = config.text_config
    per_token = text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    embedder = 0
    if config.embedding_context == "prefix":
        embedder = config.embedder_width * config.positions_per_image
    return 2 * num_rows * (per_token * num_tokens + embedder) * BYTES[type_name]


def joined_bytes(type_name: str) -> int:
    """Matrices of the head that drawing copies side by side, for as long as it draws (mllm/depth_decoder.py)."""
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
    return count(joined) * BYTES[type_name]


def weights_table() -> str:
    """Memory of the weights, as a table in Markdown."""
    parts = released_parts()
    lines = ["| part | numbers | in linear layers | float32 | bfloat16 |", "|---|---:|---:|---:|---:|"]
    total = Part(
        "all together",
        sum(part.num_values for part in parts),
        sum(part.num_linear for part in parts),
        sum(part.num_kept for part in parts),
    )
    lines += [
        f"| {part.name} | {part.num_values:,} | {part.num_linear:,} | {part.gigabytes('float32'):.2f} GB | "
        f"{part.gigabytes('bfloat16'):.2f} GB |"
        for part in (*parts, total)
    ]
    return "\n".join(lines)


def caches_table() -> str:
    """Memory of what is kept while generating, in bfloat16, as a table in Markdown."""
    prefix, isolated = MLLMConfig(), MLLMConfig(embedding_context="isolated")
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
