"""The two jobs of `mllm prepare`: parsed words in; shards, pictures and a few printed lines out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mllm.config import MLLMConfig
from mllm.loading.device import choose_device
from mllm.loading.image_tokenizer import find_image_tokenizer
from mllm.loading.model_folder import find_model_folder
from mllm.processor import PROCESSOR_FILE, read_preparation
from mllm.sizes import Size, best_sizes
from tokenizer.image_processor import PREPARATIONS
from tokenizer.model import UniTok
from train.data.prepare_folder import LEFT_OUT, prepare_folder
from train.data.prepare_unit import UnitOptions
from train.data.processes import Processes
from train.data.shard_folder import ShardFolder, describe
from train.data.shard_format import codes_made_by
from train.data.show_samples import show_samples


def prepare(arguments: argparse.Namespace) -> None:
    """Make the shards that are missing."""
    processes = Processes()
    tokenizer = load_image_tokenizer(arguments, processes)
    options = unit_options(arguments, tokenizer)
    totals = prepare_folder(
        arguments.sources,
        arguments.out,
        tokenizer=tokenizer,
        options=options,
        shard_size=arguments.shard_size,
        format_name=arguments.format,
        processes=processes,
    )
    if processes.is_first:
        made_by = describe(codes_made_by(tokenizer))
        print(f"{arguments.out}: {totals.records} records in {totals.shards} shards, codes of {made_by}")
        if totals.left_out:
            print(f"{totals.left_out} broken records were left out; see {arguments.out / LEFT_OUT}")


def show(arguments: argparse.Namespace) -> None:
    """Print samples of a prepared folder."""
    processes = Processes()
    if not processes.is_first:
        return
    folder = ShardFolder(str(arguments.out))
    tokenizer = load_image_tokenizer(arguments, processes)
    model = model_folder(arguments)
    style = MLLMConfig.from_pretrained(model).prompt_style if model else "native"
    show_samples(
        folder,
        arguments.show,
        tokenizer=tokenizer,
        style=style,
        seed=arguments.seed,
        pictures=arguments.out / "samples",
        in_color=sys.stdout.isatty(),
    )


def load_image_tokenizer(arguments: argparse.Namespace, processes: Processes) -> UniTok:
    """The image tokenizer of --image-tokenizer, or of --model, or of the toolkit's model."""
    named = arguments.image_tokenizer or arguments.model
    device = choose_device(arguments.device) if arguments.device else processes.device
    return find_image_tokenizer(str(named) if named else None, device=device)


def model_folder(arguments: argparse.Namespace) -> Path | None:
    """The model that was named; the toolkit's, where no image tokenizer was named either."""
    return find_model_folder(arguments.model) if arguments.model or not arguments.image_tokenizer else None


def unit_options(arguments: argparse.Namespace, tokenizer: UniTok) -> UnitOptions:
    """How to read and encode: what was typed, else what the model wants, else the tokenizer's size."""
    side = tokenizer.config.image_size
    sizes: tuple[Size, ...] = ((side, side),)
    preparation = "cover"
    if folder := model_folder(arguments):
        sizes = tuple(best_sizes(MLLMConfig.from_pretrained(folder)))
        preparation = read_preparation(folder / PROCESSOR_FILE)
    if arguments.size:
        sizes = (arguments.size,)
    preparation = arguments.preparation or preparation
    if preparation not in PREPARATIONS:
        raise ValueError(f"unknown preparation: found {preparation!r}; use one of {', '.join(sorted(PREPARATIONS))}")
    patch = tokenizer.config.patch_size
    if any(side % patch for size in sizes for side in size):
        raise ValueError(f"sides of pictures must be multiples of {patch}: found {sizes}; mend --size")
    return UnitOptions(
        sizes=sizes,
        preparation=preparation,
        pictures=arguments.pictures,
        skip_broken=arguments.skip_broken,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
