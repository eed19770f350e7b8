"""Checkpoint files of others: read without running their code, translated to our names and back.

`TensorFiles` and `read_tensors` map tensors from files, `NameTable` translates names in both directions. The rest is
about released UniTok checkpoints: `unitok_tokenizer.pth` holds settings in `args` and weights in `trainer.unitok`, next
to optimizer states that are not read. A .safetensors file with the same names is read as the released network.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenizer.config import AttentionKind, UniTokConfig
from tokenizer.quantizer import FAST_UPDATES
from tokenizer.unitok import UniTok, build_empty, save_tokenizer

SAFETENSORS = ".safetensors"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that transformers gives to the weights in a folder, the preferred one first; shards add ".index.json"."""
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    struct.error,
)
"""What the readers raise on bytes that are not a checkpoint, or only a part of one."""
ZIP_START = b"PK\x03\x04"  # PyTorch writes zip archives since 1.6; the format before cannot be mapped

SHOWN = 2  # names of each kind in an error; the rest is counted
NUM_UPDATES = "num_usage_updates"
"""In the `args` of files that we wrote: how often the usage statistics were updated, which upstream does not store."""
OUR_CONFIG = "unitok_config"
"""In the `args` of files that we wrote: our config, where UniTok's `args` cannot express it."""
POSITION_EMBEDDING = "encoder.pos_embed"  # frozen zeros that upstream adds; ours has none
CAST_PARTS = ("encoder.", "decoder.")
"""Parts that a conversion to another dtype applies to; projections and codebooks stay float32, and codes the same."""
CLEAR_MARGIN = 0.5  # dB of PSNR between the two readings below which images do not decide

UPSTREAM_MODELS: dict[str, dict[str, Any]] = {
    name: {
        "stem_width": stem,
        "stage_widths": (stem, 2 * stem),
        "width": width,
        "depth": depth,
        "decoder_depth": depth,
        "num_heads": num_heads,
        "decoder_widths": (2 * stem, stem),
    }
    for name, stem, width, depth, num_heads in (
        ("vitamin_large", 160, 1024, 31, 16),
        ("vitamin_base", 128, 768, 14, 12),
    )
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


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some files, mapped when they are asked for; keeps one file open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, Tensor] = {}
        """Every tensor on the meta device: its shape and type, nothing else."""
        self._path_of: dict[str, Path] = {}
        self._open: tuple[Path, Mapping[str, Tensor]] | None = None
        for path in paths:
            for name, tensor in read_tensors(path).items():
                self.shapes[name] = torch.empty_like(tensor, device="meta")
                self._path_of[name] = path

    def __getitem__(self, name: str) -> Tensor:
        path = self._path_of[name]
        if self._open is None or self._open[0] != path:
            self._open = path, read_tensors(path)
        return self._open[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._path_of)

    def __len__(self) -> int:
        return len(self._path_of)

    def close(self) -> None:
        """Release the open file, and with it the memory of its mapped pages."""
        self._open = None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: one, or the shards of its index."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return shards_of(index)
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(
        f"{folder} must hold {' or '.join(WEIGHT_FILES)} or an index of shards, got none of them; download them too"
    )


def shards_of(index: Path) -> list[Path]:
    """The shards that an index lists, all of them present."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} must be an index of shards, got {error}; download it again") from None
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} must list files of its own folder, got {foreign[0]!r}; use a trusted source")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index.parent} must hold all {len(names)} shards, got no {absent[0]}; download it")
    return [index.parent / name for name in names]


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    return require_state_dict(read_file(path), path)


def read_file(path: Path) -> Any:
    """What a safetensors or PyTorch file holds, its tensors mapped. Code in pickles is refused, not run."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of weights, got no such file; download it or correct the path")
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, *UNREADABLE) as error:
        code = re.search(r"(?:GLOBAL|class) (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise ValueError(f"{path} must hold tensors only, got program code ({code[1]}); it was not run") from None
        found = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise ValueError(f"{path} must be a readable checkpoint, got {found}; download it again") from None


def require_state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    """The content, if it is tensors by name."""
    is_state = isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state or not content:
        found = sorted(map(str, content))[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} must hold tensors by name, got {found}; give a state dict")
    return content


def require_same_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor] | Iterable[str], *, source: Any
) -> None:
    """Refuse a checkpoint that lacks a tensor, has an unexpected one, or has one of another shape.

    Args:
        expected: tensors (on any device), or names alone where any shape will do.
        source: what the error calls the checkpoint, such as its path.
    """
    shapes = {name: tensor.shape for name, tensor in expected.items()} if isinstance(expected, Mapping) else {}
    names = dict.fromkeys(expected)
    kinds = {
        "missing": [name for name in names if name not in found],
        "unexpected": [name for name in found if name not in names],
        "of another shape": [
            f"{name} ({tuple(found[name].shape)}, not {tuple(shape)})"
            for name, shape in shapes.items()
            if name in found and found[name].shape != shape
        ],
    }
    if any(kinds.values()):
        raise ValueError(
            f"{source} must have the {len(names)} tensors of its network, got "
            f"{'; '.join(f'{len(some)} {kind}: {shortened(some)}' for kind, some in kinds.items() if some)}; "
            "give the weights and the config that belong together"
        )


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


Join = Literal["stack", "cat"]


class Source(NamedTuple):
    """What a tensor of ours is made of."""

    keys: list[str]  # of the other checkpoint, in order
    join: Join | None  # None: one tensor that is only renamed

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """The tensor, from the tensors of the other checkpoint."""
        parts = [state[key] for key in self.keys]
        return parts[0] if self.join is None else torch.stack(parts) if self.join == "stack" else torch.cat(parts)


class NameTable:
    """Names of another checkpoint beside ours, for both directions; the first row that matches a name counts.

    Args:
        rows: (their name, our name) or (their name, our name, join). `{rest}` stands for anything and any other field
            for a number. In rows with a join, `{k}` counts the tensors there that are a single one here.
    """

    def __init__(self, rows: Iterable[tuple[str, str] | tuple[str, str, Join]]) -> None:
        self._rows = [(row[0], row[1], row[2] if len(row) == 3 else None) for row in rows]
        self._patterns = [(name_pattern(theirs), name_pattern(ours)) for theirs, ours, _ in self._rows]

    def sources(self, keys: Iterable[str]) -> dict[str, Source]:
        """Our names, and what each tensor is made of; every key is used."""
        numbered: dict[str, dict[int, str]] = defaultdict(dict)
        joins: dict[str, Join | None] = {}
        for key in keys:
            index, found = self._find(key, side=0)
            number = int(found.pop("k", 0))
            name = self._rows[index][1].format(**found)
            numbered[name][number] = key
            joins[name] = self._rows[index][2]
        for name, parts in numbered.items():
            if missing := sorted(set(range(len(parts))) - set(parts)):
                raise ValueError(f"{name} must be complete, got no part {missing[0]}; download the checkpoint again")
        return {name: Source([parts[k] for k in sorted(parts)], joins[name]) for name, parts in numbered.items()}

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: source.read(state) for name, source in self.sources(state).items()}

    def to_theirs(self, state: Mapping[str, Tensor], *, codebook_size: int) -> dict[str, Tensor]:
        """Our state dict under their names; the inverse of `to_ours`. Parts are views, not copies.

        Args:
            codebook_size: rows of each part of a tensor joined by "cat".
        """
        result: dict[str, Tensor] = {}
        for key in state:
            index, found = self._find(key, side=1)
            theirs, _, join = self._rows[index]
            if join is None:
                result[theirs.format(**found)] = state[key]
            else:
                parts = state[key].unbind() if join == "stack" else state[key].split(codebook_size)
                result.update((theirs.format(**found, k=k), part) for k, part in enumerate(parts))
        return result

    def _find(self, key: str, *, side: int) -> tuple[int, dict[str, str]]:
        for index, patterns in enumerate(self._patterns):
            if match := patterns[side].fullmatch(key):
                return index, match.groupdict()
        raise ValueError(f"tensor names must be of the released layout, got {key!r}; give such a checkpoint")


def name_pattern(template: str) -> re.Pattern[str]:
    """A name of a `NameTable` as a regular expression."""

    def group(field: re.Match[str]) -> str:
        return f"(?P<{field[1]}>{'.+' if field[1] == 'rest' else '[0-9]+'})"

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))


def name_table(config: UniTokConfig) -> NameTable:
    """UniTok's names and ours, for a network with these stages."""
    backbone, resblocks = "encoder.patch_embed.backbone", "text_encoder.transformer.resblocks.{a}"
    num_stages = len(config.decoder_widths)
    return NameTable(
        (
            ("quantizer.codebooks.{k}.codebook.weight", "quantizer.codebooks", "stack"),
            ("quantizer.codebooks.{k}.vocab_usage", "quantizer.usage", "stack"),
            (f"{backbone}.stages.{{a}}.{{b}}.shortcut.expand.{{rest}}", "encoder.stages.{a}.{b}.expand.{rest}"),
            (f"{backbone}.stages.{{rest}}", "encoder.stages.{rest}"),
            (f"{backbone}.stem.{{rest}}", "encoder.stem.{rest}"),
            (f"{backbone}.pool.{{rest}}", "encoder.pool.{rest}"),
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
            *((name, name) for name in ("text_encoder.positional_embedding", "logit_scale")),
            *(
                (f"{prefix}.{{rest}}", f"{prefix}.{{rest}}")
                for prefix in (
                    *("encoder.blocks", "encoder.norm", "quant_proj", "post_quant_proj", "decoder.blocks"),
                    *("decoder.norm", "text_encoder.token_embedding", "fc_norm", "projection"),
                )
            ),
        )
    )


def from_upstream(
    state: Mapping[str, Tensor], config: UniTokConfig, *, num_updates: int = FAST_UPDATES
) -> dict[str, Tensor]:
    """UniTok's state dict under our names.

    Args:
        num_updates: of the usage statistics; upstream does not store it, but its average has settled.
    """
    state = dict(state)
    zeros = state.pop(POSITION_EMBEDDING, None)
    if zeros is not None and zeros.any():
        raise ValueError(
            f"{POSITION_EMBEDDING} must be zero, got values up to {zeros.abs().max():.3g}; use another one"
        )
    return {**name_table(config).to_ours(state), "quantizer.num_updates": torch.tensor(num_updates)}


def to_upstream(state: Mapping[str, Tensor], config: UniTokConfig) -> dict[str, Tensor]:
    """Our state dict under UniTok's names, with the frozen zeros that its loader expects."""
    state = {name: tensor for name, tensor in state.items() if name != "quantizer.num_updates"}
    theirs = name_table(config).to_theirs(state, codebook_size=config.codebook_size)
    return {POSITION_EMBEDDING: torch.zeros(1, 1, config.width), **theirs}


def config_from_args(args: Mapping[str, Any], *, projection_attention: AttentionKind | None = None) -> UniTokConfig:
    """Our config for the `args` of a UniTok checkpoint; missing ones take UniTok's defaults, unknown ones are ignored.

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
        raise ValueError(f"the UniTok network must be one of {', '.join(UPSTREAM_MODELS)}, got {model!r}")
    if args.get("num_query", 0):
        raise ValueError(f"num_query must be 0, got {args['num_query']}; use a checkpoint without register tokens")
    num_codebooks, vector_width = args.get("num_codebooks", 8), args.get("vocab_width", 64)
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


def args_from_config(config: UniTokConfig) -> dict[str, Any]:
    """The `args` that UniTok's loader reads; what they cannot express is added under a name that it ignores."""
    fits = (name for name, sizes in UPSTREAM_MODELS.items() if all(getattr(config, n) == s for n, s in sizes.items()))
    args: dict[str, Any] = {
        "model": next(fits, "vitamin_large"),
        "num_codebooks": config.num_codebooks,
        "vocab_size": config.num_codebooks * config.codebook_size,
        "vocab_width": config.vector_width,
        "quant_proj": next(theirs for theirs, ours in PROJECTION_KINDS.items() if ours == config.projection),
        **{theirs: getattr(config, ours) for theirs, ours in SAME_ARGS},
    }
    expressed = values_from_args(args)
    if any(getattr(config, field.name) != expressed.get(field.name, field.default) for field in fields(config)):
        args[OUR_CONFIG] = config.to_dict()
    return args


class UpstreamCheckpoint(NamedTuple):
    """A checkpoint whose tensors are exactly those of the network that its config describes."""

    config: UniTokConfig
    state: Mapping[str, Tensor]
    """UniTok's names; mapped from the file."""
    num_updates: int

    def our_state(self) -> dict[str, Tensor]:
        return from_upstream(self.state, self.config, num_updates=self.num_updates)

    def build(self) -> UniTok:
        """The tokenizer in evaluation mode; its weights are those of this object, not copies."""
        model = build_empty(self.config)
        model.load_state_dict(self.our_state(), assign=True)
        return model.eval()


def read_upstream(path: str | Path, *, projection_attention: AttentionKind | None = None) -> UpstreamCheckpoint:
    """Read a checkpoint file; strict.

    Args:
        projection_attention: checkpoints before April 2025 need "causal" and the released one "full"; None: what the
            file says (only files that `export_upstream` wrote do), else "full".
    """
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


def load_upstream(path: str | Path, *, projection_attention: AttentionKind | None = None) -> UniTok:
    """A tokenizer straight from a checkpoint file, without a conversion; see `read_upstream`."""
    return read_upstream(path, projection_attention=projection_attention).build()


def save_converted(checkpoint: UpstreamCheckpoint, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint as a folder that `UniTok.from_pretrained` reads.

    Args:
        dtype: of encoder and decoder in the folder; None: as they are.
    """
    state = {
        name: tensor.to(dtype) if dtype is not None and name.startswith(CAST_PARTS) else tensor
        for name, tensor in checkpoint.our_state().items()
    }
    save_tokenizer(folder, checkpoint.config, state)


def export_upstream(folder: str | Path, path: str | Path) -> None:
    """Write a folder of ours as the .pth file that UniTok's own programs read."""
    path = Path(path)
    if path.suffix == SAFETENSORS:
        raise ValueError(f"a checkpoint for UniTok's programs must end in .pth, got {path}; rename it")
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
    """Find out which kind of attention the projections were trained with, by reconstructing images with both.

    UniTok's projections were causal before April 2025 and see the whole image since then. The weights have the same
    names and shapes, so the wrong kind loads without complaint and gives poor images.
    """
    from tokenizer.metrics import psnr  # it imports this module

    def mean_psnr(kind: AttentionKind) -> float:
        twin = read_as(model, kind)
        parts = pixels_B3HW.split(1)  # one at a time, to save memory
        psnrs = [psnr(one, twin.decode(twin.encode(one), grid=twin.grid_of(one))) for one in parts]
        return float(torch.cat(psnrs).mean())

    return AttentionProbe(full=mean_psnr("full"), causal=mean_psnr("causal"))


def read_as(model: UniTok, projection_attention: AttentionKind) -> UniTok:
    """The same weights (shared, not copied) with this kind of attention in the projections."""
    twin = build_empty(replace(model.config, projection_attention=projection_attention))
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()
