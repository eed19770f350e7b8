"""The work of `mllm convert`. Parsed words in; folders, files and a few printed lines out.

Letters: B pictures, H W pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

from torch import Tensor
from transformers.utils import logging

from mllm.checkpoint import (
    DTYPES,
    IMAGE_TOKENIZER,
    convert_released,
    export_released,
    find_image_tokenizer,
    released_image_tokenizer,
)
from mllm.world.render import render
from mllm.world.scene import random_scene
from tokenizer.checkpoint import (
    CLEAR_MARGIN,
    AttentionProbe,
    UpstreamCheckpoint,
    export_upstream,
    load_upstream,
    probe_attention,
    read_upstream,
    save_converted,
)
from tokenizer.images import ImageProcessor, open_image

NUM_GENERATED = 4
GB = 10**9


def unitok(arguments: argparse.Namespace) -> None:
    """The released image tokenizer to a folder of ours."""
    require_new(arguments.output)
    checkpoint = read_image_tokenizer(arguments.source, arguments)
    save_converted(checkpoint, arguments.output, dtype=DTYPES.get(arguments.dtype))
    describe_image_tokenizer(arguments.output, checkpoint)


def unitok_mllm(arguments: argparse.Namespace) -> None:
    """The released MLLM to a folder of ours."""
    logging.set_verbosity_error()
    require_new(arguments.output)
    path = arguments.image_tokenizer or released_image_tokenizer(arguments.source)
    checkpoint = None if path is None else read_image_tokenizer(path, arguments)
    config = convert_released(
        arguments.source,
        arguments.output,
        image_tokenizer=checkpoint,
        dtype=DTYPES.get(arguments.dtype),
        max_shard_bytes=int(arguments.shard_size * GB),
    )
    print(f"{arguments.output}: a model of width {config.hidden_size} in {config.dtype}".replace("torch.", ""))
    if checkpoint is None:
        print(
            "no image tokenizer: without one the model can neither draw nor look; convert again with --image-tokenizer"
        )
    else:
        describe_image_tokenizer(arguments.output / IMAGE_TOKENIZER, checkpoint)


def export_unitok(arguments: argparse.Namespace) -> None:
    """An image tokenizer of ours to the released file."""
    require_new(arguments.output)
    export_upstream(arguments.source, arguments.output)
    print(arguments.output)


def export_unitok_mllm(arguments: argparse.Namespace) -> None:
    """A model of ours to the released layout."""
    logging.set_verbosity_error()
    require_new(arguments.output)
    export_released(arguments.source, arguments.output, max_shard_bytes=int(arguments.shard_size * GB))
    print(arguments.output)


def probe(arguments: argparse.Namespace) -> None:
    """Print how well the pictures come back under both readings, and which one to use."""
    model = find_image_tokenizer(str(arguments.source))
    result = probe_attention(model, read_pictures(arguments.pictures, model.config.image_size))
    print_probe(result)
    if result.answer is None:
        print(f"the pictures do not decide: the readings differ by less than {CLEAR_MARGIN} dB; give others")
    else:
        print(f"use --attention {result.answer}")


def read_image_tokenizer(path: Path, arguments: argparse.Namespace) -> UpstreamCheckpoint:
    """The checkpoint with the attention that was asked for, or found out."""
    attention = arguments.attention
    if attention == "probe":
        model = load_upstream(path)
        result = probe_attention(model, read_pictures(arguments.pictures, model.config.image_size))
        print_probe(result)
        if (attention := result.answer) is None:
            raise ValueError(
                f"the pictures do not decide how {path} attends: found less than {CLEAR_MARGIN} dB of difference; "
                "give others with --pictures, or say --attention full or causal"
            )
    return read_upstream(path, projection_attention=attention)


def read_pictures(paths: list[Path] | None, side: int) -> Tensor:
    """The pictures given, or scenes of the synthetic world, as pixels."""
    pictures = [open_image(path) for path in paths or ()]
    pictures = pictures or [render(random_scene(Random(seed)), side) for seed in range(NUM_GENERATED)]
    return ImageProcessor(height=side, width=side)(pictures)


def print_probe(result: AttentionProbe) -> None:
    print(f"attention  PSNR dB\nfull       {result.full:7.2f}\ncausal     {result.causal:7.2f}")


def describe_image_tokenizer(folder: Path, checkpoint: UpstreamCheckpoint) -> None:
    config = checkpoint.config
    codebooks = f"{config.num_codebooks} codebooks of {config.codebook_size}"
    print(f"{folder}: {codebooks}, pictures of {config.image_size} pixels, {config.projection_attention} attention")


def require_new(path: Path) -> None:
    """Never write over something: a source that is mapped would be destroyed while it is read."""
    is_taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if is_taken:
        raise ValueError(f"{path} is already there; remove it first, or name another place")
