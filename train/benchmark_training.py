"""`mllm benchmark training`: the speed of training on packed rows and on padded ones, on the same samples.

Upstream's collator pads; ours packs (mllm/sequence.py). Both batchings go forward and backward through the same model
in turn, so that a busy machine slows both. Counted are positions without padding, and targets: both have as many.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from mllm.benchmark.cases import Settings
from mllm.benchmark.measure import THIS, Case
from mllm.benchmark.work import WORK, Run
from mllm.checkpoint import find_model_folder
from mllm.config import MLLMConfig
from mllm.model import count_items
from mllm.processor import MLLMProcessor
from mllm.sequence import PackedBatch, TokenSequence, pack_rows, sample_numbers, take_row
from train.data.batches import encode_world
from train.data.packing import BatchShape, Tokenizers
from train.data.world import WorldSequences
from train.recipe import WorldData

JOBS = {"draw": 3.0, "edit": 1.0, "ask": 3.0, "describe": 2.0, "multi_turn": 1.0, "talk": 2.0}


def training_cases(options: Namespace) -> Callable[[Settings], Iterator[Case]]:
    """The case that `mllm benchmark training` runs: packed, padded, and packed by the commit to compare with."""

    def cases(settings: Settings) -> Iterator[Case]:
        folder = str(find_model_folder(settings.model))
        samples, num_codebooks = load_samples(folder, options.samples, options.length, settings.device)
        dense = packed(samples, rows=options.rows, length=options.length)
        batches = {THIS: dense, "padded": padded(samples, rows=options.rows)}
        with tempfile.TemporaryDirectory() as scratch:
            variants: dict[str, Run] = {}
            for name, listed in batches.items():
                path = str(Path(scratch) / f"{name}.pt")
                torch.save(listed, path)
                arguments = {"model": folder, "device": str(settings.device), "batches": path}
                variants[name] = WORK["train_step"](**arguments)
                if name == THIS and settings.before is not None:
                    variants["before"] = settings.before.prepare("train_step", **arguments)
            facts = {name: count(listed, num_codebooks) for name, listed in batches.items()}
            yield Case(name="forward and backward", variants=variants, facts=facts, gate="padded")

    return cases


def load_samples(folder: str, num_samples: int, length: int, device: torch.device) -> tuple[list[TokenSequence], int]:
    """Samples of a mixture of jobs that fit a row, and the number of codebooks."""
    processor = MLLMProcessor.from_pretrained(folder, device=device)
    config = MLLMConfig.from_pretrained(folder)
    tokenizers = Tokenizers(text=processor.tokenizer, image=processor.need_image_tokenizer(), config=config)
    data = WorldData(episodes=8, dense_every=1, jobs=JOBS)
    with tempfile.TemporaryDirectory() as scratch:
        episodes, codes = encode_world(data, Path(scratch), tokenizers)
        source = WorldSequences(data, episodes, codes, tokenizers, BatchShape(rows=1, length=length))
        rng = Random(0)
        samples: list[TokenSequence] = []
        while len(samples) < num_samples:
            sample = source.draw(rng)
            if len(sample) <= length:
                samples.append(sample)
    return samples, config.num_codebooks


def padded(samples: Sequence[TokenSequence], *, rows: int) -> list[PackedBatch]:
    """One sample to a row, as long as the longest of its batch."""
    groups = [samples[first : first + rows] for first in range(0, len(samples), rows)]
    return [pack_rows([[one] for one in group], length=max(map(len, group)), pad_token_id=0) for group in groups]


def packed(samples: Sequence[TokenSequence], *, rows: int, length: int) -> list[PackedBatch]:
    """Rows as training fills them (mllm/sequence.py), from all samples at once."""
    waiting, filled = list(samples), []
    while waiting:
        taken = take_row([len(sample) for sample in waiting], length)
        filled.append([waiting[index] for index in taken])
        waiting = [sample for index, sample in enumerate(waiting) if index not in taken]
    parts = [filled[first : first + rows] for first in range(0, len(filled), rows)]
    return [pack_rows(part, length=length, pad_token_id=0) for part in parts]


def count(batches: Sequence[PackedBatch], num_codebooks: int) -> dict[str, Any]:
    """Rows, positions with and without padding, and targets of batches."""
    is_real = [sample_numbers(batch["position_ids"]) > 0 for batch in batches]
    real, positions = sum(int(mask.sum()) for mask in is_real), sum(mask.numel() for mask in is_real)
    targets = sum(
        int(count_items(batch["labels"], batch["code_targets"], num_codebooks=num_codebooks, text_weight=1.0))
        for batch in batches
    )
    rows = sum(len(mask) for mask in is_real)
    return {"rows": rows, "positions": real, "padding_share": 1 - real / positions, "targets": targets}
