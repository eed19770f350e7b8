"""The released MLLM to a folder of ours, and back, tensor by tensor.

In: a folder in one layout. Out: a complete folder in the other: weights, config, text tokenizer, image tokenizer,
model card. The config is written last, so that an interrupted conversion does not look like a model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig

from mllm.config import MLLMConfig
from mllm.loading.image_tokenizer import RELEASED_FILES, released_image_tokenizer
from mllm.loading.model_folder import CONFIG_FILE, IMAGE_TOKENIZER, check_kind
from mllm.model import MLLMForConditionalGeneration
from mllm.model_card import save_model_card
from mllm.processor import MLLMProcessor
from mllm.released.config import RELEASED_TYPE, from_released, to_released
from mllm.released.folder import (
    ReleasedTensors,
    is_released_folder,
    open_released,
    our_shapes,
)
from mllm.released.sharding import write_shards
from mllm.released.weights import upstream_pieces
from mllm.vocabulary import load_text_tokenizer, save_text_tokenizer
from tokenizer.key_report import require_same_tensors
from tokenizer.tensor_files import TensorFiles, weight_files
from tokenizer.upstream_file import UpstreamCheckpoint, export_upstream, save_converted

MAX_SHARD_BYTES = 10**9
SAME_ENTRY = 0.999
"""Cosine from which two codebook entries are the same one stored in different types."""


def convert_released(
    source: Path,
    folder: Path,
    *,
    image_tokenizer: UpstreamCheckpoint | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MLLMConfig:
    """Write a released model as a folder of ours; strict.

    Args:
        image_tokenizer: goes into the folder too; it must have the codebooks that the model was trained with.
        dtype: of the language model; None: as it is stored.
    """
    require_released(source)
    config = MLLMConfig.from_pretrained(source, local_files_only=True)
    tensors = open_released(source, MLLMForConditionalGeneration, config)
    text_tokenizer = load_text_tokenizer(source)
    if image_tokenizer is not None:
        require_same_codebooks(tensors, config, image_tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = our_shapes(MLLMForConditionalGeneration, config)
    stored = {
        key: shape.to(tensors.files.shapes[tensors.recipes[key].sources[0]].dtype) for key, shape in shapes.items()
    }
    write_shards(
        stored, tensors.__getitem__, folder, max_bytes=max_shard_bytes, dtype=dtype, after_shard=tensors.files.close
    )
    MLLMProcessor(text_tokenizer, None, config, preparation="understanding").save_pretrained(folder)
    if image_tokenizer is not None:
        save_converted(image_tokenizer, folder / IMAGE_TOKENIZER)
    config.dtype = dtype or tensors.dtype
    config.architectures = [MLLMForConditionalGeneration.__name__]
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    save_model_card(folder, config)
    config.save_pretrained(folder)
    return config


def require_released(source: Path) -> None:
    """Refuse a folder that is not there or holds another kind of model."""
    if not (source / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"there is no model in {source}: found no {CONFIG_FILE}; give the downloaded folder")
    check_kind(source / CONFIG_FILE)
    if not is_released_folder(source):
        raise ValueError(f"{source} is no released model: its type is not {RELEASED_TYPE!r}; it needs no conversion")


def require_same_codebooks(tensors: ReleasedTensors, config: MLLMConfig, image_tokenizer: UpstreamCheckpoint) -> None:
    """Refuse an image tokenizer whose codes mean something else to this model."""
    theirs, geometry = image_tokenizer.our_state()["quantizer.codebooks"], image_tokenizer.config
    ours: Tensor = tensors["code_embedding.codebooks"]
    if theirs.shape != ours.shape or geometry.patch_size != config.patch_size:
        raise ValueError(
            f"the image tokenizer does not fit the model: found codebooks {tuple(theirs.shape)} and patches of "
            f"{geometry.patch_size}, the model has {tuple(ours.shape)} and {config.patch_size}; give the one it was "
            "trained with"
        )
    cosine_KC = F.cosine_similarity(theirs.float(), ours.float(), dim=-1)
    if num_other := int((cosine_KC < SAME_ENTRY).sum()):
        raise ValueError(
            f"the image tokenizer is not the one that the model was trained with: found {num_other} of "
            f"{cosine_KC.numel()} codebook entries that differ; give the right one"
        )


def export_released(folder: Path, out: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a folder of ours in the released layout, for programs that read that; bit-equal weights."""
    if is_released_folder(folder):
        raise ValueError(f"{folder} already has the released layout; give a folder of this toolkit")
    config = MLLMConfig.from_pretrained(folder, local_files_only=True)
    released = MLLMConfig.from_dict(from_released({"model_type": RELEASED_TYPE}))
    fields = to_released(config.to_dict(), released.to_dict())
    files = TensorFiles(weight_files(folder))
    shapes = our_shapes(MLLMForConditionalGeneration, config)
    require_same_tensors(files.shapes, shapes, source=folder)
    source_of = {
        theirs: (ours, piece)
        for ours in shapes
        for theirs, piece in upstream_pieces(ours, files.shapes[ours], codebook_size=config.codebook_size).items()
    }

    def read(key: str) -> Tensor:
        ours, _ = source_of[key]
        return upstream_pieces(ours, files[ours], codebook_size=config.codebook_size)[key]

    out.mkdir(parents=True, exist_ok=True)
    pieces = {key: piece for key, (_, piece) in source_of.items()}
    write_shards(pieces, read, out, max_bytes=max_shard_bytes, after_shard=files.close)
    save_text_tokenizer(load_text_tokenizer(folder), out)
    export_image_tokenizer(folder, out)
    (out / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def export_image_tokenizer(folder: Path, out: Path) -> None:
    """Put the image tokenizer beside the model, in its own released form."""
    if (folder / IMAGE_TOKENIZER).is_dir():
        export_upstream(folder / IMAGE_TOKENIZER, out / RELEASED_FILES[0])
    elif released := released_image_tokenizer(folder):
        shutil.copyfile(released, out / released.name)
