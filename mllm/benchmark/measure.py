"""Time several ways of doing one thing side by side, and report them beside what the machine could do.

In: cases, each with variants by name. Out: seconds per round of each, ratios, and a lower bound (roofline) from rates
that are measured in the same run. Variants are warmed up and interleaved, in an order that flips every round. On a CPU
the processor time of the process counts, so that neighbours on the machine disturb little; on a GPU events around the
whole call. Absolute times move with the machine, ratios hold: they are of medians.
"""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from mllm.benchmark.work import Run, seconds_of
from mllm.files import TOOLKIT, counted, version_of

THIS = "this version"
"""The variant that the others are compared with."""
WARM_UPS = 2
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PRODUCT_SIDE = {"cpu": 512, "cuda": 8192}
LARGE_READ = 2**28  # bytes: larger than the caches
RATE_ROUNDS = 3


class Cost(NamedTuple):
    """What a piece of work reads and computes, with every weight read once per use."""

    weight_bytes: float
    cache_bytes: float
    flops: float

    def times(self, count: float) -> "Cost":
        return Cost(*(count * value for value in self))


class Roofline(NamedTuple):
    """Rates of this machine, measured beside what is compared with them."""

    read_bytes_per_second: float
    flops_per_second: float  # of a large matrix product

    def floor(self, cost: Cost) -> float:
        """The fewest seconds in which these bytes can be read and these operations computed."""
        num_bytes = cost.weight_bytes + cost.cache_bytes
        return max(num_bytes / self.read_bytes_per_second, cost.flops / self.flops_per_second)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    name: str
    variants: dict[str, Run]  # THIS among them
    facts: dict[str, Any] = field(default_factory=dict)  # sizes and settings
    checks: dict[str, bool] = field(default_factory=dict)  # equalities that were shown before anything is timed
    gate: str | None = None  # the variant that THIS is asked to beat, if any
    cost: Cost | None = None  # of THIS, for the roofline
    warm_ups: int = WARM_UPS


def time_interleaved(
    variants: Mapping[str, Run], *, rounds: int, device: torch.device, warm_ups: int = WARM_UPS
) -> dict[str, list[float]]:
    """Run each variant once per round, forwards and backwards in turn, after rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_ups + rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            taken = seconds_of(variants[name], on_gpu=device.type == "cuda")
            if number >= warm_ups:
                seconds[name].append(taken)
    return seconds


def measure_roofline(device: torch.device, dtype: torch.dtype, *, num_bytes: float = LARGE_READ) -> Roofline:
    side = PRODUCT_SIDE.get(device.type, 512)
    left = torch.ones(side, side, dtype=dtype, device=device)
    seconds = time_interleaved({"product": lambda: left @ left}, rounds=RATE_ROUNDS, device=device, warm_ups=1)
    return Roofline(measure_reading(device, num_bytes=num_bytes), 2 * side**3 / min(seconds["product"]))


def measure_reading(device: torch.device, *, num_bytes: float) -> float:
    """Bytes per second that are read from a buffer as large as what is compared: small models stay in a cache."""
    source = torch.ones(max(int(num_bytes), 2**16) // 4, dtype=torch.float32, device=device)
    repeats = max(1, LARGE_READ // 4 // source.nbytes)
    reads = {"read": lambda: [source.sum() for _ in range(repeats)]}
    seconds = time_interleaved(reads, rounds=RATE_ROUNDS, device=device, warm_ups=1)
    return source.nbytes * repeats / min(seconds["read"])


def describe_machine(device: torch.device) -> dict[str, Any]:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().split("\n\n")[0].splitlines() if about.is_file() else []  # of the first processor
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    machine = {
        "cpu": cpu.get("model name", platform.processor() or "unknown"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in cpu.get("flags", "").split()],
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
    return machine


def busy_seconds() -> float:
    """Processor seconds that everything on this machine has used so far; 0 where the system does not tell."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    user, nice, system, _, _, interrupts, soft_interrupts = map(int, path.read_text().split()[1:8])
    return (user + nice + system + interrupts + soft_interrupts) / 100  # in hundredths on every Linux


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point so far: of the process, or of what torch holds on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


def run_benchmark(
    cases: Iterable[Case], *, rounds: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    busy, own = busy_seconds(), time.process_time()
    roofline = measure_roofline(device, dtype)
    found = [measure_case(case, roofline, rounds=rounds, device=device) for case in cases]
    own = time.process_time() - own
    return {
        "version": version_of(TOOLKIT),
        "machine": describe_machine(device),
        **roofline._asdict(),
        "own_seconds": own,
        "foreign_seconds": max(0.0, busy_seconds() - busy - own),
        "peak_memory_bytes": peak_memory(device),
        "cases": found,
    }


def measure_case(case: Case, roofline: Roofline, *, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time one case; what was found, as plain values. The rate of reading is measured for the size of its weights."""
    seconds = time_interleaved(case.variants, rounds=rounds, device=device, warm_ups=case.warm_ups)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    floor = None
    if case.cost is not None:
        reading = measure_reading(device, num_bytes=case.facts["weight_bytes"])
        floor = roofline._replace(read_bytes_per_second=reading).floor(case.cost)
    return {
        "name": case.name,
        "facts": case.facts,
        "checks": case.checks,
        "seconds": {
            name: {"min": min(taken), "median": medians[name], "rounds": taken} for name, taken in seconds.items()
        },
        "ratios": {name: median / medians[THIS] for name, median in medians.items()},
        "gate": case.gate,
        "roofline_seconds": floor,
        "share_of_roofline": None if floor is None else floor / medians[THIS],
    }


def as_table(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"{machine['cpu']}, {counted(machine['threads'], 'thread')}, {machine['device']}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}, mllm {report['version']}",
        f"reads {report['read_bytes_per_second'] / 1e9:.1f} GB/s, multiplies {report['flops_per_second'] / 1e9:.0f} "
        f"GFLOP/s; peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB; others used "
        f"{report['foreign_seconds']:.0f} s of processor time beside our {report['own_seconds']:.0f} s",
    ]
    for case in report["cases"]:
        lines += ["", case["name"], f"  {'':<30}{'min ms':>10}{'median ms':>11}{'ratio':>9}"]
        for name, seconds in case["seconds"].items():
            lines.append(
                f"  {name:<30}{seconds['min'] * 1e3:>10.1f}{seconds['median'] * 1e3:>11.1f}{case['ratios'][name]:>9.2f}"
            )
        if case["roofline_seconds"] is not None:
            share = case["share_of_roofline"]
            lines.append(f"  {'roofline':<30}{case['roofline_seconds'] * 1e3:>10.2f}{'':>11}{share:>9.3f}")
        lines += [f"  {name}: {'yes' if holds else 'NO'}" for name, holds in case["checks"].items()]
    return "\n".join(lines)


def complaints(report: dict[str, Any], *, least_speed_up: float | None) -> list[str]:
    """What is not as it must be: failed equalities, and cases slower than asked for."""
    found = []
    for case in report["cases"]:
        found += [f"{case['name']}: not so: {name}" for name, holds in case["checks"].items() if not holds]
        speed_up = case["ratios"].get(case["gate"])
        if None not in (least_speed_up, speed_up) and speed_up < least_speed_up:
            found.append(f"{case['name']}: {speed_up:.2f} times as fast as {case['gate']}, below {least_speed_up}")
    if least_speed_up is not None and not any(case["gate"] in case["ratios"] for case in report["cases"]):
        found.append("--require must have something to compare with, got nothing; give --before COMMIT")
    return found
