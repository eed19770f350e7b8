"""The parts of scripts/benchmark_gpu.sh: what a GPU does with the released sizes and random weights.

Each part runs in a process of its own, under a time limit, and reports result by result, so that what was measured
before a failure is kept. A result is a name, seconds, and what they are compared with.

Letters: B batch, T places of a prompt, D hidden width, R rows, K codebooks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mllm.benchmark.cases import (
    SIZES,
    Settings,
    Size,
    Work,
    build_random_model,
    build_random_tokenizer,
    head_case,
    num_parameters,
    position_cost,
    quantized,
)
from mllm.benchmark.measure import describe_machine, measure_roofline, peak_memory, time_interleaved
from mllm.config import MLLMConfig
from mllm.files import write_json
from mllm.model import MLLMForConditionalGeneration
from mllm.quantization import Int4Linear, Int8Linear
from mllm.sampling import SamplingConfig
from mllm.sequence import TokenSequence, pack

Result = dict[str, Any]
GUIDED = SamplingConfig(guidance=7.0)
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of everything."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    model: str = "7b"
    head: str = "head-7b"
    tokenizer: str = "large"
    batches: tuple[int, ...] = (1, 8, 32, 64)
    side: int = 6
    """Of the drawn images, in positions; seconds are reported per position."""
    prompt: int = 356
    tokenizer_batches: tuple[int, ...] = (1, 16, 64)
    rows: tuple[int, ...] = (1, 2, 8, 16, 64, 128, 256)
    product: tuple[int, int] = (4096, 11008)
    billion: Size = replace(SIZES["7b"], width=2048, heads=16, intermediate=5504, layers=16, embedder_heads=8)
    eight_layers: Size = replace(SIZES["7b"], layers=8)
    samples: int = 24
    """Text-to-image samples of a training step."""


def tiny_plan() -> Plan:
    size = replace(SIZES["XXS"], side=2)
    return Plan(
        device=torch.device("cpu"),
        dtype=torch.float32,
        model="XXS",
        head="XXS",
        tokenizer="tiny",
        batches=(1, 2),
        side=2,
        prompt=9,
        tokenizer_batches=(1, 2),
        rows=(1, 2),
        product=(64, 96),
        billion=size,
        eight_layers=size,
        samples=2,
    )


def timed(plan: Plan, run: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    """The median of some rounds after one that does not count."""
    return median(time_interleaved({"": run}, rounds=rounds, device=plan.device, warm_ups=1)[""])


# ---- the parts ----


def roofline_part(plan: Plan) -> Iterator[Result]:
    """Rates, and matrix products of few rows in every number of bits."""
    rates = measure_roofline(plan.device, plan.dtype)
    yield {
        "name": "rates",
        "read_bytes_per_second": rates.read_bytes_per_second,
        "flops_per_second": rates.flops_per_second,
    }
    linear = torch.nn.Linear(*plan.product, bias=False, device=plan.device, dtype=plan.dtype).requires_grad_(False)
    layers = {"plain": linear, "int8": Int8Linear(linear, plan.device), "int4": Int4Linear(linear, plan.device)}
    for rows in plan.rows:
        hidden_RD = torch.randn(rows, plan.product[0], device=plan.device, dtype=plan.dtype)
        for name, layer in layers.items():
            seconds = timed(plan, partial(repeat, 20, partial(layer, hidden_RD))) / 20
            yield {"name": f"product of {rows} rows, {name}", "seconds": seconds}


def repeat(count: int, run: Callable[[], object]) -> None:
    for _ in range(count):
        run()


def head_part(plan: Plan) -> Iterator[Result]:
    """The K codes of a position by upstream's algorithm, by ours, and in 8 bits."""
    settings = Settings(device=plan.device, dtype=plan.dtype, sampling=GUIDED, quantization=["int8"])
    rates = measure_roofline(plan.device, plan.dtype)
    for batch in plan.batches:
        case = head_case(settings, plan.head, batch)
        seconds = time_interleaved(case.variants, rounds=ROUNDS, device=plan.device, warm_ups=1)
        assert case.cost is not None and all(case.checks.values()), f"codes must be equal, got {case.checks}"
        for name, taken in seconds.items():
            per_position = median(taken) / case.facts["positions"]
            floor = rates.floor(case.cost) / case.facts["positions"]
            yield {"name": f"head, {batch} images, {name}", "seconds": per_position, "roofline_seconds": floor}


def drawing_part(plan: Plan) -> Iterator[Result]:
    """Guided drawing, per position: batches, and weights in 8 bits."""
    size, rates = replace(SIZES[plan.model], side=plan.side), measure_roofline(plan.device, plan.dtype)
    plain = build(plan, size)
    for name, model in (("", plain), (", int8", None)):
        model = model or quantized(plain, "int8")
        for batch in plan.batches:
            work = Work.build(size, batch, GUIDED, device=plan.device)
            seconds = timed(plan, partial(work.ours, model, GUIDED), rounds=2) / work.num_positions
            floor = rates.floor(position_cost(plain, rows=2 * batch, context=size.prompt + work.num_positions / 2))
            yield {"name": f"draw, {batch} images{name}", "seconds": seconds, "roofline_seconds": floor}


def prefill_part(plan: Plan) -> Iterator[Result]:
    """The backbone over prompts, eager."""
    model = build(plan, SIZES[plan.model])
    for batch in plan.batches:
        prompts_BTD = torch.randn(batch, plan.prompt, model.config.hidden_size, device=plan.device, dtype=plan.dtype)
        with torch.inference_mode():
            seconds = timed(plan, partial(model.backbone, inputs_embeds=prompts_BTD))
        yield {"name": f"prefill, {batch} x {plan.prompt} places", "seconds": seconds, "per_second": batch / seconds}


def tokenizer_part(plan: Plan) -> Iterator[Result]:
    """Images to codes and back, in float32 and with encoder and decoder in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        unitok = build_random_tokenizer(plan.tokenizer, device=plan.device)
        unitok.encoder.to(dtype), unitok.decoder.to(dtype)
        unitok.for_inference()
        side = unitok.config.image_size
        for batch in plan.tokenizer_batches:
            pixels_B3HW = torch.rand(batch, 3, side, side, device=plan.device) * 2 - 1
            codes_BKN = unitok.encode(pixels_B3HW)
            for way, run in (
                ("encode", partial(unitok.encode, pixels_B3HW)),
                ("decode", partial(unitok.decode, codes_BKN)),
            ):
                seconds, name = timed(plan, run), str(dtype).removeprefix("torch.")
                yield {"name": f"{way}, {batch} images, {name}", "seconds": seconds, "per_second": batch / seconds}


def training_part(plan: Plan, size: Size, name: str) -> Iterator[Result]:
    """Steps of AdamW on packed text-to-image samples; the share of the rate of a large product (MFU)."""
    model, rates = build(plan, size).train().requires_grad_(True), measure_roofline(plan.device, plan.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    samples = [text_to_image(size, model.config, seed=n) for n in range(plan.samples)]
    length = sum(map(len, samples))
    batch = {key: value.to(plan.device) for key, value in pack(samples, length=length, pad_token_id=0).items()}

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds, flops = timed(plan, step), training_flops(model, samples)
    yield {
        "name": f"training, {name}, {length} places",
        "seconds": seconds,
        "per_second": plan.samples / seconds,
        "roofline_seconds": flops / rates.flops_per_second,
        "peak_memory_bytes": peak_memory(plan.device),
    }


def text_to_image(size: Size, config: MLLMConfig, *, seed: int) -> TokenSequence:
    """Text without meaning, and an image of random codes."""
    rng, num_positions = np.random.default_rng(seed), size.side**2
    text = rng.integers(7, 1000, size.prompt)
    image = [config.begin_image_id, *[config.image_token_id] * num_positions, config.end_image_id]
    ids = np.concatenate([text, image])
    labels = np.full_like(ids, -100)
    labels[-1] = config.end_image_id
    return TokenSequence(
        token_ids_T=ids,
        labels_T=labels,
        codes_PK=rng.integers(0, size.codebook_size, (num_positions, size.codebooks)),
        image_lengths_I=np.array([num_positions]),
        code_targets_P=np.ones(num_positions, dtype=bool),
    )


def training_flops(model: MLLMForConditionalGeneration, samples: list[TokenSequence]) -> float:
    """Operations of a forward and a backward pass: 6 per weight and place where it is used, and attention."""
    config, embedding = model.config, model.code_embedding
    places, codes = sum(map(len, samples)), sum(len(sample.codes_PK) for sample in samples)
    labelled = sum(int((sample.labels_T >= 0).sum()) for sample in samples)
    head = num_parameters(model.code_head.layers, model.code_head.linear_head) * config.num_codebooks
    used = num_parameters(model.backbone.layers) * places + head * codes + num_parameters(model.lm_head) * labelled
    used += num_parameters(embedding.projection, embedding.projector) * codes
    squares = sum(len(sample) ** 2 for sample in samples)
    return 6.0 * used + 6.0 * config.text_config.num_hidden_layers * config.hidden_size * squares


def build(plan: Plan, size: Size) -> MLLMForConditionalGeneration:
    """A model of random weights, made in its number format."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(plan.dtype)
    try:
        return build_random_model(size, device=plan.device, dtype=plan.dtype)
    finally:
        torch.set_default_dtype(default)


PARTS: dict[str, tuple[float, Callable[[Plan], Iterator[Result]]]] = {
    "roofline": (30, roofline_part),
    "head": (50, head_part),
    "drawing": (180, drawing_part),
    "prefill": (40, prefill_part),
    "tokenizer": (60, tokenizer_part),
    "training 1b": (40, lambda plan: training_part(plan, plan.billion, "1 B")),
    "training 7b": (60, lambda plan: training_part(plan, plan.eight_layers, "8 of 32 layers of 7 B")),
}
"""Seconds at most, and the part; 460 seconds in all."""


# ---- running them ----


def run_parts(plan: Plan, parts: dict[str, float]) -> dict[str, Any]:
    """Each part in a process that imported everything before and nothing of the GPU; what they found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.benchmark_gpu"])
    first = context.Process(target=bool)  # starts the server, which imports; no part pays for it
    first.start()
    first.join()
    found = {}
    for name, limit in parts.items():
        begin = time.monotonic()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_part, args=(name, plan, sender), daemon=True)
        process.start()
        sender.close()
        results, error = collect(receiver, limit=limit)
        process.kill()
        process.join()
        found[name] = {"results": results, "error": error, "seconds": time.monotonic() - begin}
    return found


def run_part(name: str, plan: Plan, sender: Connection) -> None:
    """Send the results of a part one by one; at the end None, or what went wrong."""
    try:
        for result in PARTS[name][1](plan):
            sender.send(result)
        sender.send(None)
    except Exception as error:  # reported, and the other parts go on
        sender.send(f"{type(error).__name__}: {error}")


def collect(receiver: Connection, *, limit: float) -> tuple[list[Result], str | None]:
    """The results that come in time, and an error if not all did."""
    results: list[Result] = []
    end = time.monotonic() + limit
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            match receiver.recv():
                case dict() as result:
                    results.append(result)
                case error:
                    return results, error
    except EOFError:
        return results, "the process ended without a word"
    return results, f"not done after {limit:.0f} s"


def as_table(report: dict[str, Any]) -> str:
    """The report for a console."""
    lines = [f"{'':46}{'ms':>10}{'per second':>12}{'roofline':>10}"]
    for name, part in report["parts"].items():
        lines.append(f"{name}: {part['seconds']:.0f} s" + (f", {part['error']}" if part["error"] else ""))
        for result in part["results"]:
            if "seconds" in result:
                seconds, rate, floor = (result.get(key) for key in ("seconds", "per_second", "roofline_seconds"))
                rate, share = f"{rate:.1f}" if rate else "", f"{floor / seconds:.2f}" if floor else ""
                lines.append(f"  {result['name']:44}{1e3 * seconds:10.3f}{rate:>12}{share:>10}")
            else:
                lines.append("  " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run all parts, write the report and print it; 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, default=Path("benchmark_gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU")
    words = parser.parse_args(argv)
    if not words.tiny and not torch.accelerator.is_available():
        print("benchmark_gpu: there must be a GPU, got none; use --tiny for a dry run on the CPU", file=sys.stderr)
        return 2
    plan = tiny_plan() if words.tiny else Plan(device=torch.device("cuda"))
    patience = 10 if words.tiny else 1
    parts = run_parts(plan, {name: patience * limit for name, (limit, _) in PARTS.items()})
    report = {"parts": parts, "machine": describe_machine(plan.device)}
    write_json(words.report, report)
    print(as_table(report))
    return int(any(part["error"] for part in parts.values()))


if __name__ == "__main__":
    from scripts import benchmark_gpu  # what processes are given must be found under its own name

    sys.exit(benchmark_gpu.main())
