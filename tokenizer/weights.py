"""Names, sizes and settings of the released UniTok checkpoints: one table, both ways.

Comes in: a state dict with UniTok's names, or the `args` beside it. Goes out: ours, and back. Nothing is dropped
silently: a key that no row translates is an error, and a round trip returns every tensor. Knows no files.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor

from tokenizer.config import UniTokConfig
from tokenizer.key_report import require_same_tensors
from tokenizer.model import build_empty
from tokenizer.quantizer import FAST_UPDATES

Row = tuple[str, str]

ENCODER: tuple[Row, ...] = (
    ("encoder.patch_embed.backbone.stages.{a}.{b}.shortcut.expand.{rest}", "encoder.stages.{a}.{b}.expand.{rest}"),
    ("encoder.patch_embed.backbone.stages.{rest}", "encoder.stages.{rest}"),
    ("encoder.patch_embed.backbone.stem.{rest}", "encoder.stem.{rest}"),
    ("encoder.patch_embed.backbone.pool.{rest}", "encoder.pool.{rest}"),
    ("encoder.blocks.{rest}", "encoder.blocks.{rest}"),
    ("encoder.norm.{rest}", "encoder.norm.{rest}"),
)
PROJECTIONS: tuple[Row, ...] = (
    ("quant_proj.{rest}", "quant_proj.{rest}"),
    ("post_quant_proj.{rest}", "post_quant_proj.{rest}"),
)
TEXT: tuple[Row, ...] = (
    ("text_encoder.transformer.resblocks.{a}.ln_1.{rest}", "text_encoder.blocks.{a}.norm1.{rest}"),
    ("text_encoder.transformer.resblocks.{a}.ln_2.{rest}", "text_encoder.blocks.{a}.norm2.{rest}"),
    ("text_encoder.transformer.resblocks.{a}.attn.in_proj_weight", "text_encoder.blocks.{a}.attn.qkv.weight"),
    ("text_encoder.transformer.resblocks.{a}.attn.in_proj_bias", "text_encoder.blocks.{a}.attn.qkv.bias"),
    ("text_encoder.transformer.resblocks.{a}.attn.out_proj.{rest}", "text_encoder.blocks.{a}.attn.proj.{rest}"),
    ("text_encoder.transformer.resblocks.{a}.mlp.c_fc.{rest}", "text_encoder.blocks.{a}.widen.{rest}"),
    ("text_encoder.transformer.resblocks.{a}.mlp.c_proj.{rest}", "text_encoder.blocks.{a}.narrow.{rest}"),
    ("text_encoder.ln_final.{rest}", "text_encoder.norm.{rest}"),
    ("text_encoder.text_projection", "text_encoder.projection"),
    ("text_encoder.positional_embedding", "text_encoder.positional_embedding"),
    ("text_encoder.token_embedding.{rest}", "text_encoder.token_embedding.{rest}"),
    ("fc_norm.{rest}", "fc_norm.{rest}"),
    ("projection.{rest}", "projection.{rest}"),
    ("logit_scale", "logit_scale"),
)
STACKED: tuple[Row, ...] = (
    ("quantizer.codebooks.{k}.codebook.weight", "quantizer.codebooks"),
    ("quantizer.codebooks.{k}.vocab_usage", "quantizer.usage"),
)
"""One upstream tensor per codebook, one tensor of ours for all of them."""
POSITION_EMBEDDING = "encoder.pos_embed"  # frozen zeros that upstream adds; ours has none

UPSTREAM_MODELS: dict[str, dict[str, Any]] = {
    "vitamin_large": {
        "stem_width": 160,
        "stage_widths": (160, 320),
        "width": 1024,
        "depth": 31,
        "decoder_depth": 31,
        "num_heads": 16,
        "decoder_widths": (320, 160),
    },
    "vitamin_base": {
        "stem_width": 128,
        "stage_widths": (128, 256),
        "width": 768,
        "depth": 14,
        "decoder_depth": 14,
        "num_heads": 12,
        "decoder_widths": (256, 128),
    },
}
"""Sizes that the names of UniTok's networks stand for."""
SAME_ARGS = (
    # (name in `args`, name in our config) of what has the same meaning and default in both
    ("img_size", "image_size"),
    ("vq_beta", "vq_beta"),
    ("e_temp", "entropy_temperature"),
    ("drop_path", "drop_path"),
    ("embed_dim", "embed_dim"),
    ("text_vocab_size", "text_vocab_size"),
    ("text_context_length", "text_context"),
    ("text_width", "text_width"),
    ("text_heads", "text_heads"),
    ("text_layers", "text_layers"),
)
PROJECTION_KINDS: dict[str, Literal["attention", "linear"]] = {"attn": "attention", "linear": "linear"}
OUR_CONFIG = "unitok_config"
"""Where a file that we wrote keeps what UniTok's `args` have no name for."""
ProjectionAttention = Literal["full", "causal"]


def names(config: UniTokConfig) -> tuple[Row, ...]:
    """The whole table for a network with these stages; the first matching row counts."""
    num_stages = len(config.decoder_widths)
    stages = tuple((f"decoder.up_conv{2 + s}.{{rest}}", f"decoder.stages.{s}.{{rest}}") for s in range(num_stages))
    decoder = (
        ("decoder.blocks.{rest}", "decoder.blocks.{rest}"),
        ("decoder.norm.{rest}", "decoder.norm.{rest}"),
        ("decoder.up_conv1.{rest}", "decoder.entry.{rest}"),
        *stages,
        (f"decoder.up_conv{2 + num_stages}.{{rest}}", "decoder.head.{rest}"),
    )
    return ENCODER + PROJECTIONS + decoder + TEXT


def from_upstream(
    state: Mapping[str, Tensor], config: UniTokConfig, *, num_updates: int = FAST_UPDATES
) -> dict[str, Tensor]:
    """UniTok's names to ours.

    Args:
        num_updates: of the usage statistics; upstream forgets it, but its average has settled.
    """
    state = dict(state)
    ours: dict[str, Tensor] = {}
    zeros = state.pop(POSITION_EMBEDDING, None)
    if zeros is not None and zeros.any():
        raise ValueError(
            f"{POSITION_EMBEDDING} of a UniTok checkpoint must be zero; got values up to {zeros.abs().max():.3g}; "
            "this network was trained with position embeddings, which are not supported"
        )
    for theirs, our_name in STACKED:
        keys = [theirs.format(k=k) for k in range(config.num_codebooks)]
        missing = [key for key in keys if key not in state]
        if missing:
            raise ValueError(f"checkpoint lacks {missing}; it has {len(state)} other tensors; check num_codebooks")
        ours[our_name] = torch.stack([state.pop(key) for key in keys])
    ours["quantizer.num_updates"] = torch.tensor(num_updates)
    table = [(pattern(theirs), mine) for theirs, mine in names(config)]
    ours.update((translate(key, table), tensor) for key, tensor in state.items())
    return ours


def to_upstream(state: Mapping[str, Tensor], config: UniTokConfig) -> dict[str, Tensor]:
    """Our names to UniTok's, with the frozen zeros that its loader expects."""
    state = dict(state)
    theirs = {POSITION_EMBEDDING: torch.zeros(1, 1, config.width)}
    for their_name, mine in STACKED:
        theirs.update((their_name.format(k=k), tensor) for k, tensor in enumerate(state.pop(mine).unbind()))
    state.pop("quantizer.num_updates", None)
    table = [(pattern(mine), their_name) for their_name, mine in names(config)]
    theirs.update((translate(key, table), tensor) for key, tensor in state.items())
    return theirs


def pattern(template: str) -> re.Pattern[str]:
    """A template of the table as a regular expression: `{rest}` is anything, any other field a number."""

    def group(field: re.Match[str]) -> str:
        return f"(?P<{field[1]}>{'.+' if field[1] == 'rest' else '[0-9]+'})"

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))


def translate(key: str, table: list[tuple[re.Pattern[str], str]]) -> str:
    """The name that the first matching row gives to this key."""
    for source, target in table:
        match = source.fullmatch(key)
        if match:
            return target.format(**match.groupdict())
    raise ValueError(
        f"a tensor of this checkpoint has no row in the name table; got {key!r}; is it a UniTok tokenizer?"
    )


def config_from_args(
    args: Mapping[str, Any], *, projection_attention: ProjectionAttention | None = None
) -> UniTokConfig:
    """Our config for the `args` of a UniTok checkpoint; missing ones take UniTok's defaults, others are ignored.

    Args:
        projection_attention: None: what the file says, which only files that we wrote do, else "full".
    """
    values = args[OUR_CONFIG] if OUR_CONFIG in args else values_from_args(args)
    chosen = {} if projection_attention is None else {"projection_attention": projection_attention}
    return UniTokConfig.from_dict({**values, **chosen})


def values_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our config that UniTok's own `args` decide."""
    model = args.get("model", "vitamin_large")
    if model not in UPSTREAM_MODELS:
        raise ValueError(f"unknown UniTok network; got {model!r}; known are {sorted(UPSTREAM_MODELS)}")
    if args.get("num_query", 0):
        raise ValueError(
            f"register tokens are not supported; got num_query {args['num_query']}; use a checkpoint with 0"
        )
    num_codebooks = args.get("num_codebooks", 8)
    vector_width = args.get("vocab_width", 64)
    sizes = UPSTREAM_MODELS[model]
    return {
        **sizes,
        **{ours: args[theirs] for theirs, ours in SAME_ARGS if theirs in args},
        "num_codebooks": num_codebooks,
        "codebook_size": args.get("vocab_size", 32768) // num_codebooks,  # upstream counts all codebooks together
        "code_width": vector_width // num_codebooks,
        "projection": PROJECTION_KINDS[args.get("quant_proj", "attn")],
        "projection_heads": sizes["width"] // vector_width,
    }


def args_from_config(config: UniTokConfig) -> OrderedDict[str, Any]:
    """The `args` that UniTok's loader reads. What they cannot say is added under a name that it ignores."""
    fits = (name for name, sizes in UPSTREAM_MODELS.items() if all(getattr(config, n) == s for n, s in sizes.items()))
    args: OrderedDict[str, Any] = OrderedDict(
        model=next(fits, "vitamin_large"),
        num_codebooks=config.num_codebooks,
        vocab_size=config.num_codebooks * config.codebook_size,
        vocab_width=config.vector_width,
        quant_proj={ours: theirs for theirs, ours in PROJECTION_KINDS.items()}[config.projection],
    )
    args.update((theirs, getattr(config, ours)) for theirs, ours in SAME_ARGS)
    said = values_from_args(args)
    if any(getattr(config, field.name) != said.get(field.name, field.default) for field in fields(config)):
        args[OUR_CONFIG] = config.to_dict()
    return args


def require_fit(state: Mapping[str, Tensor], config: UniTokConfig, *, source: Any) -> None:
    """Refuse tensors with UniTok's names that are not exactly those of this network."""
    require_same_tensors(state, to_upstream(build_empty(config).state_dict(), config), source=source)
