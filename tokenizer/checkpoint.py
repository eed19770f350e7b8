"""Names, sizes and settings of the released UniTok checkpoints: one table, both ways.

Comes in: a state dict with UniTok's names, or the `args` beside it. Goes out: ours, and back. Nothing is dropped
silently: a key that no row translates is an error, and a round trip returns every tensor. Knows no files.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer.config import UniTokConfig
from tokenizer.quantizer import FAST_UPDATES
from tokenizer.unitok import CONFIG_FILE, WEIGHTS_FILE, UniTok, build_empty

# Does a checkpoint fit a network, tensor by tensor? One sentence that names what does not.
#
# In: two mappings from names to tensors (the meta device is enough). Out: nothing, or a ValueError. Knows no files.


SHOWN = 4
"""Names of each kind in the sentence; the rest is counted."""


def require_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: Any) -> None:
    """Refuse a checkpoint that lacks a tensor, has one more, or has one of another shape.

    Args:
        source: what the sentence calls the checkpoint, such as its path.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} (found {tuple(found[name].shape)}, expected {tuple(expected[name].shape)})"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    parts = [f"{len(names)} {kind}: {some(names)}" for kind, names in kinds if names]
    if parts:
        raise ValueError(
            f"{source} does not fit the network that its config describes: of {len(expected)} tensors found "
            f"{'; '.join(parts)}; give the checkpoint and the config that belong together"
        )


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


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


# Tensors in files, read one at a time: safetensors or PyTorch's pickles, whole or in shards that an index lists.
#
# In: a file or a folder. Out: a mapping from names to tensors that are mapped from the file, so that memory is used
# only
# for what is looked at. Pickles are read with `weights_only`: code in them is refused, not run. Knows no model.


SAFETENSORS = ".safetensors"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that transformers gives to the weights in a folder, the preferred first; with ".index.json" for shards."""
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    struct.error,
)
"""What the readers raise, one or another, on bytes that are no checkpoint or only a part of one."""
ZIP_START = b"PK\x03\x04"  # PyTorch writes zip archives since 1.6


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some files; keeps one file open. A tensor that was read keeps its file mapped."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, Tensor] = {}
        """Every tensor on the meta device: its shape and type, nothing else."""
        self._path_of: dict[str, Path] = {}
        self._open: tuple[Path, Mapping[str, Tensor]] | None = None
        for path in paths:
            for name, tensor in tensors_of(read_file(path), path).items():
                self.shapes[name] = torch.empty_like(tensor, device="meta")
                self._path_of[name] = path

    def __getitem__(self, name: str) -> Tensor:
        path = self._path_of[name]
        if self._open is None or self._open[0] != path:
            self._open = path, tensors_of(read_file(path), path)
        return self._open[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._path_of)

    def __len__(self) -> int:
        return len(self._path_of)

    def close(self) -> None:
        """Let go of the open file, and with it of the memory that its mapped pages occupy."""
        self._open = None


def read_file(path: Path) -> Any:
    """What a file holds, its tensors mapped; one clear sentence where it cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}; give the downloaded file")
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except pickle.UnpicklingError as error:
        if found := re.search(r"(?:GLOBAL|class) (\S+)", str(error)):
            raise ValueError(
                f"{path} holds program code, not only tensors: found {found[1]}, which was not run; "
                "use a file from a source that you trust, saved as safetensors"
            ) from None
        raise damaged(path, error) from None
    except UNREADABLE as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ValueError:
    """The error for a file that is cut off or is no checkpoint."""
    found = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{path} is damaged or no checkpoint: {found[0][:150]}; download it again")


def is_zip(path: Path) -> bool:
    """Whether PyTorch can map this file; the format before 1.6 has to be read as a whole."""
    with path.open("rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


def tensors_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The content as a state dict, if it is one."""
    is_state = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state or not content:
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds no tensors by name: found {found}; give a state dict")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: one, or the shards of its index."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return shards_of(index)
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(
        f"the folder {folder} holds no weights: found none of {', '.join(WEIGHT_FILES)}, and no index of shards; "
        "download them too"
    )


def shards_of(index: Path) -> list[Path]:
    """The shards that an index lists, all of them present."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {error}; download it again") from None
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} leads out of its folder: found {foreign[0]!r}; use an index from a trusted source")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{len(absent)} of {len(names)} shards are missing in {index.parent}: found no {absent[0]}; download it"
        )
    return [index.parent / name for name in names]


# Checkpoint files of UniTok: read, convert to a folder of ours, and write back.
#
# `unitok_tokenizer.pth` is a training checkpoint: `args` with the settings and `trainer.unitok` with the weights,
# beside
# things that nobody needs for inference and that are not read. A .safetensors file with the same names is read as the
# released network. Projections and quantizer stay in float32 whatever type is asked for, so that codes stay the same.


NUM_UPDATES = "num_usage_updates"
"""In the `args` of files that we wrote: how often the usage statistics were updated, which upstream does not store."""
CAST_PARTS = ("encoder.", "decoder.")
"""What a type asked for applies to."""


class UpstreamCheckpoint(NamedTuple):
    """A checkpoint file in which every tensor has its place."""

    config: UniTokConfig
    state: Mapping[str, Tensor]
    """UniTok's names; mapped from the file."""
    num_updates: int

    def our_state(self) -> dict[str, Tensor]:
        """Our names."""
        return from_upstream(self.state, self.config, num_updates=self.num_updates)

    def build(self) -> UniTok:
        """The tokenizer in evaluation mode; its weights are those of this object, not copies."""
        model = build_empty(self.config)
        model.load_state_dict(self.our_state(), assign=True)
        return model.eval()


def read_upstream(path: str | Path, *, projection_attention: ProjectionAttention | None = None) -> UpstreamCheckpoint:
    """Read a checkpoint file; strict.

    Args:
        projection_attention: checkpoints before April 2025 need "causal" and the released one "full"; None: what the
            file says (only files that `export_upstream` wrote do), else "full".
    """
    path = Path(path)
    content = read_file(path)
    args, state = ({}, content) if path.suffix == SAFETENSORS else unpack(content, path)
    config = config_from_args(args, projection_attention=projection_attention)
    require_fit(tensors_of(state, path), config, source=path)
    return UpstreamCheckpoint(config, state, int(args.get(NUM_UPDATES, FAST_UPDATES)))


def unpack(checkpoint: Any, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `args` and the network's state dict inside a training checkpoint."""
    try:
        return dict(checkpoint["args"]), checkpoint["trainer"]["unitok"]
    except (KeyError, TypeError) as error:
        found = sorted(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(
            f"{path} is not a UniTok checkpoint; got {found}; it needs 'args' and 'trainer' with 'unitok' inside"
        ) from error


def load_upstream(path: str | Path, *, projection_attention: ProjectionAttention | None = None) -> UniTok:
    """A tokenizer straight from a checkpoint file, without a conversion; see `read_upstream`."""
    return read_upstream(path, projection_attention=projection_attention).build()


def save_converted(checkpoint: UpstreamCheckpoint, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint as a folder that `UniTok.from_pretrained` reads.

    Args:
        dtype: of encoder and decoder in the folder; None: as they are.
    """
    ours = {
        name: tensor.to(dtype) if dtype is not None and name.startswith(CAST_PARTS) else tensor
        for name, tensor in checkpoint.our_state().items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    values = checkpoint.config.to_dict()
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def export_upstream(folder: str | Path, path: str | Path) -> None:
    """Write a folder of ours as the .pth file that UniTok's own programs read."""
    if Path(path).suffix == SAFETENSORS:
        raise ValueError(f"UniTok's own programs read PyTorch files: found {path}; give a name that ends in .pth")
    model = UniTok.from_pretrained(folder)
    state = model.state_dict()
    args = args_from_config(model.config)
    args[NUM_UPDATES] = int(state["quantizer.num_updates"])
    trainer = {"config": {}, "unitok": to_upstream(state, model.config)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"args": args, "epoch": 0, "iter": 0, "trainer": trainer}, path)


# Tensors by name from a file that others published: safetensors or PyTorch's, never arbitrary pickles.


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}; download it first or mend the path")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"cannot read the weights in {path}; {reason}; download the file again") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} does not hold tensors by name; found {type(state).__name__}; give a state dict, not a whole model"
        )
    return dict(state)


def require_names(state: Mapping[str, Tensor], names: Iterable[str], *, kind: str) -> None:
    """Exactly these names, or an error that says which are missing and which nobody knows."""
    wanted = set(names)
    missing, unknown = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
    if missing or unknown:
        raise ValueError(
            f"these are not {kind}; missing are {missing[:3]} ({len(missing)} in all), unknown are {unknown[:3]} "
            f"({len(unknown)} in all); give the published file"
        )


# Which attention do the projections of an old checkpoint have? Reconstruct pictures with both readings and compare.
#
# UniTok's projections were causal before April 2025 and see the whole picture since then; the weights have the same
# names
# and shapes, and no mark tells them apart, so the wrong reading loads without complaint and gives poor pictures.


CLEAR_MARGIN = 0.5
"""dB between the two readings below which the pictures do not decide."""


class AttentionProbe(NamedTuple):
    """Mean PSNR in dB of the pictures under each reading."""

    full: float
    causal: float

    @property
    def answer(self) -> ProjectionAttention | None:
        """The reading that reconstructs; None where both do about as well."""
        if abs(self.full - self.causal) < CLEAR_MARGIN:
            return None
        return "full" if self.full > self.causal else "causal"


@torch.inference_mode()
def probe_attention(model: UniTok, pixels_B3HW: Tensor) -> AttentionProbe:
    """Reconstruct with the weights of this model under both readings; the model stays as it is."""
    return AttentionProbe(*(reconstruction_psnr(read_as(model, kind), pixels_B3HW) for kind in ("full", "causal")))


def read_as(model: UniTok, projection_attention: ProjectionAttention) -> UniTok:
    """The same weights (shared, not copied) under one of the two readings."""
    twin = build_empty(replace(model.config, projection_attention=projection_attention))
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def reconstruction_psnr(model: UniTok, pixels_B3HW: Tensor) -> float:
    """Mean PSNR in dB, one picture after another to spare memory."""
    from tokenizer.metrics import psnr

    grid = model.grid_of(pixels_B3HW)
    values = [
        psnr(pixels_13HW, model.decode(model.encode(pixels_13HW), grid=grid)) for pixels_13HW in pixels_B3HW.split(1)
    ]
    return float(torch.cat(values).mean())
