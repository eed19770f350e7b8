"""Read and write the released UniTok checkpoints: one table of names, both ways.

Comes in: a state dict (or a checkpoint file) with UniTok's names. Goes out: ours, and back. Nothing is dropped
silently: a key that no row translates is an error, and a round trip returns every tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokenizer.config import UniTokConfig
from tokenizer.model import UniTok, build_empty
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
    "vitamin_large": {},
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
"""Names of UniTok's networks, as differences from the defaults of `UniTokConfig`."""


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


def from_upstream(state: Mapping[str, Tensor], config: UniTokConfig) -> dict[str, Tensor]:
    """UniTok's names to ours."""
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
    ours["quantizer.num_updates"] = torch.tensor(FAST_UPDATES)  # upstream forgets it; its average has settled
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
    args: Mapping[str, Any], *, projection_attention: Literal["full", "causal"] = "full"
) -> UniTokConfig:
    """Our config for the `args` of a UniTok checkpoint; missing ones take UniTok's defaults, others are ignored."""
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
    return UniTokConfig(
        **sizes,
        image_size=args.get("img_size", 256),
        num_codebooks=num_codebooks,
        codebook_size=args.get("vocab_size", 32768) // num_codebooks,
        code_width=vector_width // num_codebooks,
        projection={"attn": "attention", "linear": "linear"}[args.get("quant_proj", "attn")],
        projection_heads=sizes.get("width", 1024) // vector_width,
        projection_attention=projection_attention,
        vq_beta=args.get("vq_beta", 0.25),
        drop_path=args.get("drop_path", 0.1),
        embed_dim=args.get("embed_dim", 768),
        text_vocab_size=args.get("text_vocab_size", 49408),
        text_context=args.get("text_context_length", 77),
        text_width=args.get("text_width", 768),
        text_heads=args.get("text_heads", 12),
        text_layers=args.get("text_layers", 12),
    )


def build_from_upstream(state: Mapping[str, Tensor], config: UniTokConfig) -> UniTok:
    """A tokenizer in evaluation mode with these weights (shared, not copied); strict."""
    model = build_empty(config)
    model.load_state_dict(from_upstream(state, config), assign=True)
    return model.eval()


def load_upstream(path: str | Path, *, projection_attention: Literal["full", "causal"] = "full") -> UniTok:
    """Read `unitok_tokenizer.pth`, or a .safetensors file with the same tensor names.

    Args:
        projection_attention: checkpoints before April 2025 need "causal"; the file itself does not say.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer checkpoint; {path} does not exist; give the downloaded .pth file")
    if path.suffix == ".safetensors":
        args, state = dict[str, Any](), load_file(path)
    else:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        args, state = unpack(checkpoint, path)
    return build_from_upstream(state, config_from_args(args, projection_attention=projection_attention))


def unpack(checkpoint: Any, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `args` and the network's state dict inside a training checkpoint."""
    try:
        return dict(checkpoint["args"]), checkpoint["trainer"]["unitok"]
    except (KeyError, TypeError) as error:
        found = sorted(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(
            f"{path} is not a UniTok checkpoint; got {found}; it needs 'args' and 'trainer' with 'unitok' inside"
        ) from error
