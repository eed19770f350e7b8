"""Released UniTok checkpoints in and out: names, settings, and which attention the projections were trained with.

`unitok_tokenizer.pth` holds settings in `args` and weights in `trainer.unitok`, next to optimizer states that are not
read. A .safetensors file with the same names is read as the released network.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizer.config import AttentionKind, UniTokConfig
from tokenizer.metrics import psnr
from tokenizer.quantizer import FAST_UPDATES
from tokenizer.unitok import UniTok, build_empty, save_tokenizer
from tokenizer.weights import SAFETENSORS, NameTable, read_file, require_same_tensors, require_state_dict

NUM_UPDATES = "num_usage_updates"  # in the `args` of our files: updates of the usage, which upstream does not store
OUR_CONFIG = "unitok_config"  # in the `args` of our files: our config, where UniTok's `args` cannot express it
POSITION_EMBEDDING = "encoder.pos_embed"  # frozen zeros that upstream adds; ours has none
CAST_PARTS = ("encoder.", "decoder.")  # what a conversion to another dtype applies to; codes stay the same
CLEAR_MARGIN = 0.5  # dB of PSNR between the two readings below which images do not decide

UPSTREAM_MODELS: dict[str, dict[str, Any]] = {
    name: {"stem_width": stem, "stage_widths": (stem, 2 * stem), "decoder_widths": (2 * stem, stem)}
    | {"width": width, "depth": depth, "decoder_depth": depth, "num_heads": num_heads}
    for name, stem, width, depth, num_heads in (
        ("vitamin_large", 160, 1024, 31, 16),
        ("vitamin_base", 128, 768, 14, 12),
    )
}
"""Sizes that the names of UniTok's networks stand for."""
SAME_ARGS = {
    "img_size": "image_size", "vq_beta": "vq_beta", "e_temp": "entropy_temperature", "drop_path": "drop_path",
    "embed_dim": "embed_dim", "text_vocab_size": "text_vocab_size", "text_context_length": "text_context",
    "text_width": "text_width", "text_heads": "text_heads", "text_layers": "text_layers",
}  # fmt: skip
"""Name in `args` and in our config of what has the same meaning and default in both."""
PROJECTION_KINDS = {"attn": "attention", "linear": "linear"}


def name_table(config: UniTokConfig) -> NameTable:
    """UniTok's names and ours, for a network with these stages; names in no other row are the same."""
    backbone, resblocks = "encoder.patch_embed.backbone", "text_encoder.transformer.resblocks.{a}"
    num_stages = len(config.decoder_widths)
    return NameTable(
        (
            ("quantizer.codebooks.{k}.codebook.weight", "quantizer.codebooks", "stack"),
            ("quantizer.codebooks.{k}.vocab_usage", "quantizer.usage", "stack"),
            (f"{backbone}.stages.{{a}}.{{b}}.shortcut.expand.{{rest}}", "encoder.stages.{a}.{b}.expand.{rest}"),
            *((f"{backbone}.{part}.{{rest}}", f"encoder.{part}.{{rest}}") for part in ("stages", "stem", "pool")),
            ("decoder.up_conv1.{rest}", "decoder.entry.{rest}"),
            *((f"decoder.up_conv{2 + s}.{{rest}}", f"decoder.stages.{s}.{{rest}}") for s in range(num_stages)),
            (f"decoder.up_conv{2 + num_stages}.{{rest}}", "decoder.head.{rest}"),
            (f"{resblocks}.ln_1.{{rest}}", "text_encoder.blocks.{a}.norm1.{rest}"),
            (f"{resblocks}.ln_2.{{rest}}", "text_encoder.blocks.{a}.norm2.{rest}"),
            (f"{resblocks}.attn.in_proj_weight", "text_encoder.blocks.{a}.attn.qkv.weight"),
            (f"{resblocks}.attn.in_proj_bias", "text_encoder.blocks.{a}.attn.qkv.bias"),
            (f"{resblocks}.attn.out_proj.{{rest}}", "text_encoder.blocks.{a}.attn.proj.{rest}"),
            (f"{resblocks}.mlp.c_fc.{{rest}}", "text_encoder.blocks.{a}.widen.{rest}"),
            (f"{resblocks}.mlp.c_proj.{{rest}}", "text_encoder.blocks.{a}.narrow.{rest}"),
            ("text_encoder.ln_final.{rest}", "text_encoder.norm.{rest}"),
            ("text_encoder.text_projection", "text_encoder.projection"),
            ("{rest}", "{rest}"),
        )
    )


def to_upstream(state: Mapping[str, Tensor], config: UniTokConfig) -> dict[str, Tensor]:
    """Our state dict under UniTok's names, with the frozen zeros that its loader expects."""
    state = {name: tensor for name, tensor in state.items() if name != "quantizer.num_updates"}
    theirs = name_table(config).to_theirs(state, codebook_size=config.codebook_size)
    return {POSITION_EMBEDDING: torch.zeros(1, 1, config.width), **theirs}


def config_from_args(args: Mapping[str, Any], *, projection_attention: AttentionKind | None = None) -> UniTokConfig:
    """Our config for the `args` of a UniTok checkpoint; missing ones take UniTok's defaults, unknown ones are ignored.
    `projection_attention`: None: what the file says, which only files that we wrote do, else "full"."""
    values = args[OUR_CONFIG] if OUR_CONFIG in args else values_from_args(args)
    chosen = {} if projection_attention is None else {"projection_attention": projection_attention}
    return UniTokConfig.from_dict({**values, **chosen})


def values_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our config that UniTok's own `args` decide."""
    model = args.get("model", "vitamin_large")
    if model not in UPSTREAM_MODELS:
        raise ValueError(f"the UniTok network must be one of {', '.join(UPSTREAM_MODELS)}, got {model!r}")
    if args.get("num_query", 0):
        raise ValueError(f"num_query must be 0, got {args['num_query']}; use a checkpoint without register tokens")
    num_codebooks, vector_width = args.get("num_codebooks", 8), args.get("vocab_width", 64)
    return {
        **UPSTREAM_MODELS[model],
        **{ours: args[theirs] for theirs, ours in SAME_ARGS.items() if theirs in args},
        "num_codebooks": num_codebooks,
        "codebook_size": args.get("vocab_size", 32768) // num_codebooks,  # upstream counts all codebooks together
        "code_width": vector_width // num_codebooks,
        "projection": PROJECTION_KINDS[args.get("quant_proj", "attn")],
        "projection_heads": UPSTREAM_MODELS[model]["width"] // vector_width,
    }


def args_from_config(config: UniTokConfig) -> dict[str, Any]:
    """The `args` that UniTok's loader reads; what they cannot express is added under a name that it ignores."""
    fits = (name for name, sizes in UPSTREAM_MODELS.items() if all(getattr(config, n) == s for n, s in sizes.items()))
    args: dict[str, Any] = {
        "model": next(fits, "vitamin_large"),
        "num_codebooks": config.num_codebooks,
        "vocab_size": config.num_codebooks * config.codebook_size,
        "vocab_width": config.vector_width,
        "quant_proj": next(theirs for theirs, ours in PROJECTION_KINDS.items() if ours == config.projection),
        **{theirs: getattr(config, ours) for theirs, ours in SAME_ARGS.items()},
    }
    expressed = values_from_args(args)
    if any(getattr(config, field.name) != expressed.get(field.name, field.default) for field in fields(config)):
        args[OUR_CONFIG] = config.to_dict()
    return args


class UpstreamCheckpoint(NamedTuple):
    """A checkpoint whose tensors are exactly those of the network that its config describes."""

    config: UniTokConfig
    state: Mapping[str, Tensor]  # UniTok's names; mapped from the file
    num_updates: int  # of the usage statistics; upstream does not store it, but its average has settled

    def our_state(self) -> dict[str, Tensor]:
        state = dict(self.state)
        zeros = state.pop(POSITION_EMBEDDING, None)
        if zeros is not None and zeros.any():
            raise ValueError(f"{POSITION_EMBEDDING} must be zero, got up to {zeros.abs().max():.3g}; use another file")
        return {**name_table(self.config).to_ours(state), "quantizer.num_updates": torch.tensor(self.num_updates)}

    def build(self) -> UniTok:
        """The tokenizer in evaluation mode; its weights are those of this object, not copies."""
        return build_empty(self.config).fill(self.our_state())


def read_upstream(path: str | Path, *, projection_attention: AttentionKind | None = None) -> UpstreamCheckpoint:
    """Read a checkpoint file; strict. `projection_attention`: checkpoints before April 2025 need "causal" and the
    released one "full"; None: what the file says (only files that `export_upstream` wrote do), else "full"."""
    path = Path(path)
    content = read_file(path)
    try:
        args, state = ({}, content) if path.suffix == SAFETENSORS else (content["args"], content["trainer"]["unitok"])
    except (KeyError, TypeError) as error:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} must be a UniTok checkpoint with args and trainer.unitok, got {found}") from error
    config = config_from_args(args, projection_attention=projection_attention)
    expected = to_upstream(build_empty(config).state_dict(), config)
    require_same_tensors(require_state_dict(state, path), expected, source=path)
    return UpstreamCheckpoint(config, state, int(args.get(NUM_UPDATES, FAST_UPDATES)))


def save_converted(checkpoint: UpstreamCheckpoint, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint as a folder that `UniTok.from_pretrained` reads. `dtype`: of encoder and decoder in the
    folder; None: as they are."""
    state = {
        name: tensor.to(dtype) if dtype is not None and name.startswith(CAST_PARTS) else tensor
        for name, tensor in checkpoint.our_state().items()
    }
    save_tokenizer(folder, checkpoint.config, state)


def export_upstream(folder: str | Path, path: str | Path) -> None:
    """Write a folder of ours as the .pth file that UniTok's own programs read."""
    path = Path(path)
    model = UniTok.from_pretrained(folder)
    state = model.state_dict()
    args = OrderedDict({**args_from_config(model.config), NUM_UPDATES: int(state["quantizer.num_updates"])})
    trainer = {"config": {}, "unitok": to_upstream(state, model.config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"args": args, "epoch": 0, "iter": 0, "trainer": trainer}, path)


class AttentionProbe(NamedTuple):
    """Mean PSNR of reconstructions in dB with each kind of attention in the projections."""

    full: float
    causal: float

    @property
    def answer(self) -> AttentionKind | None:
        """The kind that reconstructs; None where both do about as well."""
        if abs(self.full - self.causal) < CLEAR_MARGIN:
            return None
        return "full" if self.full > self.causal else "causal"


@torch.inference_mode()
def probe_attention(model: UniTok, pixels_B3HW: Tensor) -> AttentionProbe:
    """Find out which kind of attention the projections were trained with, by reconstructing images with both. UniTok's
    projections were causal before April 2025 and see the whole image since then. The weights have the same names and
    shapes, so the wrong kind loads without complaint and gives poor images."""

    def mean_psnr(kind: AttentionKind) -> float:
        twin = read_as(model, kind)
        parts = pixels_B3HW.split(1)  # one at a time, to save memory
        psnrs = [psnr(one, twin.decode(twin.encode(one), grid=twin.grid_of(one))) for one in parts]
        return float(torch.cat(psnrs).mean())

    return AttentionProbe(full=mean_psnr("full"), causal=mean_psnr("causal"))


def read_as(model: UniTok, projection_attention: AttentionKind) -> UniTok:
    """The same weights (shared, not copied) with this kind of attention in the projections."""
    return build_empty(replace(model.config, projection_attention=projection_attention)).fill(model.state_dict())
