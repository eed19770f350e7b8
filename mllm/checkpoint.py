"""Model folders: find one, load the model to where and how it computes, write a model card; the released layout in and
out.

In: what a person names (nothing for the bundled model, a folder, a hub id), and options. Out: a model or an image
tokenizer that is ready to use, or files. Knows no processor and no prompts.

Letters: K codebooks, C codes.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelCardData, split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, GenerationConfig
from transformers.modeling_utils import set_zero3_state
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from mllm.config import RELEASED_TYPE, MLLMConfig, from_released, to_released
from mllm.evaluation.intervals import percent
from mllm.files import read_json, write_json, write_text
from mllm.quantization import LAYERS, quantize_linears
from mllm.sequence import supported_sizes
from mllm.vocabulary import load_text_tokenizer, save_text_tokenizer
from tokenizer.number_format import fast_dtype
from tokenizer.released_checkpoint import UpstreamCheckpoint, export_upstream, read_upstream, save_converted
from tokenizer.unitok import WEIGHTS_FILE, UniTok
from tokenizer.weights import NameTable, Source, TensorFiles, require_same_tensors, weight_files

if TYPE_CHECKING:
    from mllm.model import MLLMForConditionalGeneration

ASSETS = Path(__file__).resolve().parent / "assets"
BUNDLED_MODELS = ("tiny", "emoji")
"""Models that come with the package, by name; the first one is the default."""
BUNDLED = ASSETS / BUNDLED_MODELS[0]
CONFIG_FILE, CARD_FILE, SOURCE_FILE = "config.json", "README.md", "SOURCE.json"
CARD_TEMPLATE = ASSETS / "model_card.md"
FILE_PATTERN, INDEX_FILE = "model{suffix}.safetensors", "model.safetensors.index.json"
IMAGE_TOKENIZER = "image_tokenizer"
RELEASED_FILES = ("unitok_tokenizer.pth", "unitok_tokenizer.safetensors")
"""The released image tokenizer, where somebody put it into a model folder."""
MODEL_TYPES = (MLLMConfig.model_type, RELEASED_TYPE)
"""The kinds of folder that this toolkit runs."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name; a path with one separator looks the same, so a folder is tried first."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FREE_SHARE = 0.85
"""Share of the free memory that weights may take; the rest is for caches."""
QUANTIZATIONS = (*LAYERS, "nf4", "bnb8")
"""The kinds of quantisation: 8 and 4 bits (mllm/quantization.py); with bitsandbytes, which is optional, 4 bits of
normal floats, doubly quantised, and LLM.int8(), whose products are in 8 bits and outliers in 16."""
KEPT = ["code_embedding", "lm_head", "code_head.linear_head"]
"""Modules that are not quantised: a few percent of the weights, and everything that is seen or said passes through
them. The embedding's projection is computed from its weights directly."""

RELEASED = NameTable(
    (
        ("model.multi_embedder.quantizer.codebooks.{k}.codebook.weight", "code_embedding.codebooks", "stack"),
        ("model.multi_embedder.quantizer.codebooks.{k}.vocab_usage", "code_embedding.codebook_usage", "stack"),
        ("model.multi_embedder.attn_projection.{rest}", "code_embedding.projection.{rest}"),
        ("model.multi_embedder.mm_projector.0.{rest}", "code_embedding.projector.norm.{rest}"),
        ("model.multi_embedder.mm_projector.1.{rest}", "code_embedding.projector.linear1.{rest}"),
        ("model.multi_embedder.mm_projector.3.{rest}", "code_embedding.projector.linear2.{rest}"),
        ("ar_head.codebooks.{k}.weight", "code_head.codebooks.weight", "cat"),
        ("ar_head.layers.{rest}", "code_head.layers.{rest}"),
        ("ar_head.norm.{rest}", "code_head.norm.{rest}"),
        ("ar_head.linear_head.{rest}", "code_head.linear_head.{rest}"),
        ("model.{rest}", "backbone.{rest}"),
        ("lm_head.{rest}", "lm_head.{rest}"),
    )
)
"""Names in the released MLLM (type `mini_gemini`) and ours."""
RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tables that old versions of transformers saved although they follow from the config."""
EMBEDDING = "backbone.embed_tokens.weight"
MAX_SHARD_BYTES = 10**9
SAME_ENTRY = 0.999
"""Cosine from which two codebook entries are the same one stored in different types."""

TAGS = ["text-to-image", "image-to-text", "image-to-image", "unitok"]
RATE_FIELDS = {"rate", "low", "high", "passed", "total"}
"""Of a rate among the scores."""
NAMELESS = ("scores", "skills")
"""Levels of the scores that a reader need not see."""


def installed_models() -> list[str]:
    """Names of the bundled models that this installation has, the default one first."""
    return [name for name in BUNDLED_MODELS if (ASSETS / name).is_dir()]


def find_model_folder(name: str | Path | None) -> Path:
    """The folder of a model; None is the default one. A folder that is no model does not hide a bundled one's name."""
    if name is not None and not isinstance(name, str | Path):
        raise ValueError(f"model must be a folder or a hub id, got {name!r}; give its path as a string")
    folder = BUNDLED if name is None else Path(name).expanduser()
    if str(name) in BUNDLED_MODELS and not (folder / CONFIG_FILE).is_file():
        folder = ASSETS / str(name)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"the bundled model {str(name)!r} must be in {folder}, which is not there; install a release that has "
                f"it, or build it with scripts/build_{name}_model.sh"
            )
    if not os.path.exists(folder) and HUB_ID.fullmatch(str(name)):  # unlike Path's, False for names that are too long
        folder = fetch_from_hub(str(name))
    if not os.path.isdir(folder):
        what = "is no folder" if os.path.exists(folder) else "is not there"
        raise FileNotFoundError(f"model must be a folder or a hub id, got {folder}, which {what}; check the path")
    if not (folder / CONFIG_FILE).is_file():
        is_adapter = (folder / "adapter_config.json").is_file()
        remedy = "it is an adapter: mllm merge makes a model of it" if is_adapter else "give another"
        if (folder / "final" / CONFIG_FILE).is_file():  # the output folder of a training
            remedy = f"give {folder / 'final'}"
        raise FileNotFoundError(f"a model folder must have a {CONFIG_FILE}, got none in {folder}; {remedy}")
    try:
        kind = read_json(folder / CONFIG_FILE).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} must be a model's config, got {error}; restore the file") from error
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"the model in {folder} must be of type {' or '.join(MODEL_TYPES)}, got {kind!r}; give another folder"
        )
    return folder


def fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name))
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise FileNotFoundError(
            f"model must be a folder or on the hub, got {name!r}, which is no folder and could not be fetched "
            f"({type(error).__name__}); give a folder, or go online"
        ) from error


def model_type_of(folder: Path) -> str | None:
    """The `model_type` of a folder's config: "" where it names none, None where there is no config to read."""
    try:
        return read_json(folder / CONFIG_FILE).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        return None


def is_released_folder(name: Any) -> bool:
    return isinstance(name, str | Path) and model_type_of(Path(name)) == RELEASED_TYPE


def released_image_tokenizer(folder: Path) -> Path | None:
    return next((folder / name for name in RELEASED_FILES if (folder / name).is_file()), None)


def load_image_tokenizer(folder: Path, *, device: torch.device | str | None = None) -> UniTok | None:
    """The image tokenizer of a model folder: ours, or the released file; None where there is neither. It decodes in the
    number format that is fastest on the machine, and encodes in float32."""
    device = torch.device(device or "cpu")
    if (folder / IMAGE_TOKENIZER).is_dir():
        tokenizer = UniTok.from_pretrained(folder / IMAGE_TOKENIZER, device=device)
    elif (released := released_image_tokenizer(folder)) is not None:
        tokenizer = read_upstream(released).build().to(device)
    else:
        return None
    dtype = fast_dtype(device)
    return tokenizer.for_inference(None if dtype == tokenizer.dtype else dtype)


def find_image_tokenizer(name: str | None, *, device: torch.device | str | None = None) -> UniTok:
    """The image tokenizer that a person named: by a model, a folder that is one itself, or the released file."""
    path = Path(name or "").expanduser()
    if name is not None and path.is_file():
        return read_upstream(path).build().to(device or "cpu")
    if name is not None and (path / WEIGHTS_FILE).is_file() and model_type_of(path) == "":  # models name theirs
        return UniTok.from_pretrained(path, device=device)
    folder = find_model_folder(name)
    tokenizer = load_image_tokenizer(folder, device=device)
    if tokenizer is None:
        raise FileNotFoundError(f"{folder} must have {IMAGE_TOKENIZER}/ or {RELEASED_FILES[0]}, got neither; add one")
    return tokenizer


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
        if found.type == "meta":
            raise RuntimeError("it holds no values")
        return found
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one of this machine, got {device!s} ({reason}); use cpu") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to load; None means: what suits the machine and the checkpoint."""

    device: str | torch.device | None = None
    """Where to compute; default: a GPU if there is one."""
    dtype: str | torch.dtype | None = None
    """Number format of the language model; default: bfloat16 on a GPU, float32 on a CPU."""
    quantization: str | None = None
    """One of QUANTIZATIONS; default: none."""
    device_map: Literal["auto"] | dict[str, Any] | None = None
    """"auto": the layers of the backbone over all GPUs, then the CPU; or a device for every module."""
    embedding_context: str | None = None
    """What a code embedding may see while an image is drawn (see MLLMConfig); default: the checkpoint's."""

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("quantization", QUANTIZATIONS)):
            value = getattr(self, name)
            if value not in (None, *known) and not (name == "dtype" and isinstance(value, torch.dtype)):
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}; use one of them")
        if isinstance(self.device_map, str) and self.device_map != "auto":
            raise ValueError(f"device_map must be 'auto' or a device per module, got {self.device_map!r}; use 'auto'")

    @property
    def main_device(self) -> torch.device:
        """The device that embeds, samples and decodes images."""
        return choose_device(self.device)

    @property
    def number_format(self) -> torch.dtype:
        default = torch.float32 if self.main_device.type == "cpu" else torch.bfloat16
        return DTYPES.get(self.dtype, self.dtype or default)


def load_model(folder: Path, options: LoadOptions) -> MLLMForConditionalGeneration:
    from mllm.model import MLLMForConditionalGeneration

    dtype, config = options.number_format, MLLMConfig.from_pretrained(folder, local_files_only=True)
    if options.embedding_context is not None:
        config.embedding_context = options.embedding_context
        config.check()
    arguments: dict[str, Any] = {"config": config, "dtype": dtype, "local_files_only": True}
    device_map = options.device_map
    if device_map == "auto":
        device_map = spread(config, dtype=dtype, first=options.main_device)
    if options.quantization in LAYERS:
        model = MLLMForConditionalGeneration.from_pretrained(folder, **arguments)
        quantize_linears(model, options.quantization, device=options.main_device, kept=KEPT)
        if device_map is None:
            return model.to(options.main_device)
        from accelerate import dispatch_model  # here, because it takes a second to import

        return dispatch_model(model, device_map)
    if options.quantization is not None:
        arguments["quantization_config"] = quantization_config(options.quantization, dtype=dtype)
        device_map = device_map or {"": options.main_device}  # weights are quantised where they will stay
    model = MLLMForConditionalGeneration.from_pretrained(folder, device_map=device_map, **arguments)
    return model.to(options.main_device) if device_map is None else model


def spread(config: MLLMConfig, *, dtype: torch.dtype, first: torch.device) -> dict[str, int | str | torch.device]:
    """The layers of the backbone over the devices there are; all else, which decoding calls directly, on the first."""
    from mllm.model import MLLMForConditionalGeneration

    if first.type == "cpu":
        return {"": first}
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import get_max_memory

    with init_empty_weights():
        model = MLLMForConditionalGeneration(config)
    main, backbone = first.index or 0, dict(model.backbone.named_children())
    name, layers = next((name, module) for name, module in backbone.items() if isinstance(module, nn.ModuleList))
    in_layers = sum(parameter.numel() for parameter in layers.parameters())
    around = (model.num_parameters() - in_layers) * dtype.itemsize
    free = {device: int(FREE_SHARE * room) for device, room in get_max_memory().items()}
    left = free.pop(main, 0) - around
    free = {main: max(left, 0), **free, "disk": 0}
    # accelerate wants room for one more layer on the first device, for those that it brings back from other devices
    devices = infer_auto_device_map(layers, free, no_split_module_classes=list(model._no_split_modules), dtype=dtype)
    if left < 0 or "disk" in devices.values():
        raise ValueError(
            f"the devices must have room for {around + in_layers * dtype.itemsize} bytes of weights, got {free} beside "
            f"the {around} bytes around the layers; use quantization, a smaller dtype, or more devices"
        )
    here = [*(f"backbone.{child}" for child in backbone if child != name), *dict(model.named_children())]
    return {child: main for child in here if child != "backbone"} | {
        f"backbone.{name}.{number}".removesuffix("."): device for number, device in devices.items()
    }


def quantization_config(name: str, *, dtype: torch.dtype, kept: Sequence[str] = tuple(KEPT)) -> BitsAndBytesConfig:
    """The config of a kind of quantisation by bitsandbytes. `dtype`: to compute in. `kept`: modules that are not
    quantised."""
    if find_spec("bitsandbytes") is None:
        raise ImportError(
            f"bitsandbytes must be installed for quantization {name!r}, got no such package; "
            "run: pip install 'mllm-toolkit[quantization]'"
        )
    if name == "bnb8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(kept))
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=list(kept), **options)


def keep_precise(config: QuantizationConfigMixin | dict[str, Any]) -> QuantizationConfigMixin:
    """A config of any quantiser of transformers that names the modules to keep, where it says nothing about them."""
    config = AutoQuantizationConfig.from_dict(dict(config)) if isinstance(config, dict) else copy.copy(config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if getattr(config, name, ...) is None:
            setattr(config, name, list(KEPT))
    return config


def open_released(
    folder: Path, model_class: type[nn.Module], config: MLLMConfig
) -> tuple[TensorFiles, dict[str, Source]]:
    """The files of a released model, and where in them each tensor of ours is, which may be several of theirs joined;
    refuses the folder unless it has exactly the tensors of a model of this config."""
    files = TensorFiles(weight_files(folder))
    keys = [key for key in files if not RECOMPUTED.fullmatch(key)]
    expected = RELEASED.to_theirs(our_shapes(model_class, config), codebook_size=config.codebook_size)
    require_same_tensors({key: files.shapes[key] for key in keys}, expected, source=folder)
    return files, RELEASED.sources(keys)


def our_shapes(model_class: type[nn.Module], config: MLLMConfig) -> dict[str, Tensor]:
    """Every tensor of a model that is stored, on the meta device, whole also under DeepSpeed ZeRO-3."""
    with torch.device("meta"), set_zero3_state():
        state = model_class(config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def own_memory(model: nn.Module, read: Mapping[str, Tensor]) -> None:
    """Copy the weights that still lie in mapped files, so that the files may be changed or removed."""
    mapped = {tensor.data_ptr() for tensor in read.values()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
            if is_plain and tensor.data_ptr() in mapped:
                tensor.data = tensor.data.clone()


def convert_released(
    source: Path,
    folder: Path,
    *,
    image_tokenizer: UpstreamCheckpoint | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MLLMConfig:
    """Write a released model as a complete folder of ours: weights, tokenizers, card, and last the config, so that an
    interrupted conversion does not look like a model. Strict; no more than one shard is in memory. `image_tokenizer`:
    goes into the folder too; it must have the codebooks that the model was trained with. `dtype`: of the language
    model; None: as it is stored."""
    from mllm.model import MLLMForConditionalGeneration
    from mllm.processor import MLLMProcessor

    source = find_model_folder(source)
    if not is_released_folder(source):
        raise ValueError(f"{source} must be of type {RELEASED_TYPE!r} to convert, got our own; use it as it is")
    config = MLLMConfig.from_pretrained(source, local_files_only=True)
    files, sources = open_released(source, MLLMForConditionalGeneration, config)
    text_tokenizer = load_text_tokenizer(source)
    if image_tokenizer is not None:
        require_same_codebooks(sources["code_embedding.codebooks"].read(files), config, image_tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = our_shapes(MLLMForConditionalGeneration, config)
    stored = {key: shape.to(files.shapes[sources[key].keys[0]].dtype) for key, shape in shapes.items()}
    options: dict[str, Any] = {"max_bytes": max_shard_bytes, "dtype": dtype, "after_shard": files.close}
    write_shards(stored, lambda key: sources[key].read(files), folder, **options)
    MLLMProcessor(text_tokenizer, None, config, preparation="understanding").save_pretrained(folder)
    if image_tokenizer is not None:
        save_converted(image_tokenizer, folder / IMAGE_TOKENIZER)
    config.dtype = dtype or stored[EMBEDDING].dtype
    config.architectures = [MLLMForConditionalGeneration.__name__]
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    save_model_card(folder, config)
    config.save_pretrained(folder)
    return config


def require_same_codebooks(ours: Tensor, config: MLLMConfig, image_tokenizer: UpstreamCheckpoint) -> None:
    """Refuse an image tokenizer whose codes mean something else to this model."""
    theirs, geometry = image_tokenizer.our_state()["quantizer.codebooks"], image_tokenizer.config
    if theirs.shape != ours.shape or geometry.patch_size != config.patch_size:
        raise ValueError(
            f"the image tokenizer must have codebooks {tuple(ours.shape)} and patches of {config.patch_size}, as the "
            f"model, got {tuple(theirs.shape)} and {geometry.patch_size}; give the one it was trained with"
        )
    cosine_KC = F.cosine_similarity(theirs.float(), ours.float(), dim=-1)
    if num_other := int((cosine_KC < SAME_ENTRY).sum()):
        raise ValueError(
            f"the image tokenizer must have the model's codebooks, got {num_other} of {cosine_KC.numel()} entries that "
            "differ; give the one it was trained with"
        )


def export_released(folder: Path, out: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a folder of ours in the released layout, for programs that read that; bit-equal weights."""
    from mllm.model import MLLMForConditionalGeneration

    if is_released_folder(folder):
        raise ValueError(f"{folder} must be a folder of this toolkit, got the released layout; use it as it is")
    config = MLLMConfig.from_pretrained(folder, local_files_only=True)
    plain = MLLMConfig.from_dict(from_released({"model_type": RELEASED_TYPE}))
    fields = to_released(config.to_dict(), plain.to_dict())
    files = TensorFiles(weight_files(folder))
    shapes = our_shapes(MLLMForConditionalGeneration, config)
    require_same_tensors(files.shapes, shapes, source=folder)

    def pieces(ours: str, tensor: Tensor) -> dict[str, Tensor]:
        return RELEASED.to_theirs({ours: tensor}, codebook_size=config.codebook_size)

    theirs = {key: (ours, shape) for ours in shapes for key, shape in pieces(ours, files.shapes[ours]).items()}
    out.mkdir(parents=True, exist_ok=True)
    write_shards(
        {key: shape for key, (_, shape) in theirs.items()},
        lambda key: pieces(theirs[key][0], files[theirs[key][0]])[key],
        out,
        max_bytes=max_shard_bytes,
        after_shard=files.close,
    )
    save_text_tokenizer(load_text_tokenizer(folder), out)
    if (folder / IMAGE_TOKENIZER).is_dir():
        export_upstream(folder / IMAGE_TOKENIZER, out / RELEASED_FILES[0])
    elif released := released_image_tokenizer(folder):
        shutil.copyfile(released, out / released.name)
    write_json(out / CONFIG_FILE, fields)


def write_shards(
    shapes: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    folder: Path,
    *,
    max_bytes: int,
    dtype: torch.dtype | None = None,
    after_shard: Callable[[], None] = lambda: None,
) -> None:
    """Write every tensor of `shapes` (meta device) into `folder`.

    Args:
        max_bytes: of one shard; a larger tensor is a shard by itself.
        dtype: of the floating-point tensors; None: as they are.
        after_shard: called when the tensors of a shard are no longer needed.
    """
    planned = {
        name: shape.to(dtype) if dtype is not None and shape.is_floating_point() else shape
        for name, shape in shapes.items()
    }
    plan = split_state_dict_into_shards_factory(
        planned, get_storage_size=lambda tensor: tensor.nbytes, filename_pattern=FILE_PATTERN, max_shard_size=max_bytes
    )
    require_room(folder, sum(tensor.nbytes for tensor in planned.values()))
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: read(name).to(planned[name].dtype).contiguous() for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        del tensors
        after_shard()
    if plan.is_sharded:
        write_json(folder / INDEX_FILE, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"the disk of {folder} must have {num_bytes / 1e9:.1f} GB free, got {free / 1e9:.1f}; make room"
        )


def model_card(config: MLLMConfig, *, scores: dict[str, Any] | None = None, note: str | None = None) -> ModelCard:
    data = ModelCardData(library_name="transformers", pipeline_tag="any-to-any", tags=list(TAGS))
    sizes = [f"{width}x{height}" for width, height in supported_sizes(config)]
    rates, numbers = score_rows(scores or {})
    filled = {"config": config, "sizes": sizes, "note": note, "rates": rates, "numbers": numbers}
    return ModelCard.from_template(data, str(CARD_TEMPLATE), **filled)


def score_rows(scores: dict[str, Any], prefix: str = "") -> tuple[list[str], list[str]]:
    """A row for every rate, with its interval, and one for every number that is no part of a rate."""
    rates: list[str] = []
    numbers: list[str] = []
    is_rate = scores.keys() >= RATE_FIELDS
    if is_rate and scores["rate"] is not None:
        interval = f"{100 * scores['low']:.1f} to {100 * scores['high']:.1f}"
        rates.append(f"| {prefix} | {percent(scores['rate'])} % | {interval} | {scores['total']} |")
    for name, value in scores.items():
        path = ": ".join(part for part in (prefix, name if name not in NAMELESS else "") if part)
        match value:
            case dict():
                below = score_rows(value, path)
                rates, numbers = rates + below[0], numbers + below[1]
            case int() | float() if not isinstance(value, bool) and not (is_rate and name in RATE_FIELDS):
                numbers.append(f"| {path} | {round(value, 4)} |")
            case [int() | float(), *_]:
                numbers.append(f"| {path} | {', '.join(f'{item:.4g}' for item in value)} |")
    return rates, numbers


def save_model_card(folder: str | os.PathLike, config: MLLMConfig) -> None:
    path = Path(folder) / SOURCE_FILE
    source = read_json(path) if path.is_file() else {}
    card = model_card(config, scores=source.get("scores"), note=source.get("note"))
    write_text(Path(folder) / CARD_FILE, str(card))
