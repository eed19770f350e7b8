"""`mllm benchmark training`: the speed of training on packed rows and on padded ones, on the same samples.

Upstream's collator pads; ours packs (mllm/sequence.py). Both batchings go forward and backward through the same model
in turn, so that a busy machine slows both. Counted are positions without padding, and targets: both have as many.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

from mllm.benchmark.measure import time_interleaved
from mllm.checkpoint import choose_device, find_model_folder
from mllm.files import write_json
from mllm.model import MLLMForConditionalGeneration, count_items
from mllm.processor import MLLMProcessor
from mllm.sequence import PackedBatch, TokenSequence, pack, sample_numbers, take_row
from train.data.batches import encode_world
from train.data.packing import BatchShape, Tokenizers
from train.data.world import WorldSequences
from train.hardware import speed_up
from train.recipe import WorldData

JOBS = {"draw": 3.0, "edit": 1.0, "ask": 3.0, "describe": 2.0, "multi_turn": 1.0, "talk": 2.0}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one way of batching."""

    rows: int
    positions: int
    padding_share: float
    seconds: float  # median of the rounds; on a CPU, the process's own
    positions_per_second: float  # real ones
    targets_per_second: float  # text tokens and codes that are learned


def benchmark_training(options: Namespace) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        model, samples = load(options.model, options.samples, options.length, choose_device(options.device))
        batches = {
            "padded": padded(samples, rows=options.rows),
            "packed": packed(samples, rows=options.rows, length=options.length),
        }
        speeds = measure(model, batches, rounds=options.rounds)
    finally:
        torch.set_num_threads(num_threads)
    ratio = speeds["packed"].positions_per_second / speeds["padded"].positions_per_second
    print(f"{'':8}{'rows':>6}{'positions':>10}{'padding':>9}{'seconds':>9}{'positions/s':>13}{'targets/s':>11}")
    for name, speed in speeds.items():
        numbers = f"{speed.rows:6}{speed.positions:10}{speed.padding_share:9.1%}{speed.seconds:9.2f}"
        print(f"{name:8}{numbers}{speed.positions_per_second:13.0f}{speed.targets_per_second:11.0f}")
    print(f"packed is {ratio:.2f} times as fast as padded")
    if options.json:
        figures = {"ratio": ratio, **{name: asdict(speed) for name, speed in speeds.items()}}
        write_json(options.json, figures)


def load(
    name: str | None, num_samples: int, length: int, device: torch.device
) -> tuple[MLLMForConditionalGeneration, list[TokenSequence]]:
    """The model in training mode, and samples of a mixture of jobs that fit a row."""
    folder = find_model_folder(name)
    model = MLLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device).train()
    if device.type == "cpu":
        speed_up(model.backbone, compiles=False)
    processor = MLLMProcessor.from_pretrained(folder, device=device)
    tokenizers = Tokenizers(text=processor.tokenizer, image=processor.image_tokenizer, config=model.config)
    data = WorldData(episodes=8, dense_every=1, jobs=JOBS)
    with tempfile.TemporaryDirectory() as scratch:
        episodes, codes = encode_world(data, Path(scratch), tokenizers, num_workers=0)
        source = WorldSequences(data, episodes, codes, tokenizers, BatchShape(rows=1, length=length))
        rng = Random(0)
        samples: list[TokenSequence] = []
        while len(samples) < num_samples:
            sample = source.draw(rng)
            if len(sample) <= length:
                samples.append(sample)
    return model, samples


def padded(samples: Sequence[TokenSequence], *, rows: int) -> list[PackedBatch]:
    """One sample to a row, as long as the longest of its batch."""
    groups = [samples[first : first + rows] for first in range(0, len(samples), rows)]
    return [stack([[sample] for sample in group], length=max(map(len, group))) for group in groups]


def packed(samples: Sequence[TokenSequence], *, rows: int, length: int) -> list[PackedBatch]:
    """Rows as training fills them (mllm/sequence.py), from all samples at once."""
    waiting, filled = list(samples), []
    while waiting:
        taken = take_row([len(sample) for sample in waiting], length)
        filled.append([waiting[index] for index in taken])
        waiting = [sample for index, sample in enumerate(waiting) if index not in taken]
    return [stack(filled[first : first + rows], length=length) for first in range(0, len(filled), rows)]


def stack(rows: Sequence[Sequence[TokenSequence]], *, length: int) -> PackedBatch:
    batches = [pack(row, length=length, pad_token_id=0) for row in rows]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def measure(
    model: MLLMForConditionalGeneration, batchings: Mapping[str, Sequence[PackedBatch]], *, rounds: int
) -> dict[str, Speed]:
    """Forward and backward through all batches of each batching, in turn."""
    device = next(model.parameters()).device

    def once(batches: Sequence[PackedBatch]) -> None:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()

    works = {name: partial(once, batches) for name, batches in batchings.items()}
    timings = time_interleaved(works, rounds=rounds, device=device)
    num_codebooks = model.config.num_codebooks
    return {name: speed_of(batches, timings[name].median, num_codebooks) for name, batches in batchings.items()}


def speed_of(batches: Sequence[PackedBatch], seconds: float, num_codebooks: int) -> Speed:
    """Counts of batches that took so many seconds."""
    is_real = [sample_numbers(batch["position_ids"]) > 0 for batch in batches]
    real, positions = sum(int(mask.sum()) for mask in is_real), sum(mask.numel() for mask in is_real)
    targets = sum(
        int(count_items(batch["labels"], batch["code_targets"], num_codebooks=num_codebooks, text_weight=1.0))
        for batch in batches
    )
    return Speed(
        rows=sum(len(mask) for mask in is_real),
        positions=positions,
        padding_share=1 - real / positions,
        seconds=seconds,
        positions_per_second=real / seconds,
        targets_per_second=targets / seconds,
    )
