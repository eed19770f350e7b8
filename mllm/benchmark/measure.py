"""Time several ways of doing one thing side by side: warmed up, interleaved, in an order that flips every round.

In: functions by name. Out: seconds per round of each. On a CPU the process's own seconds count, so that neighbours on
the machine disturb little; on a GPU events around the whole call. Absolute times move with the machine, ratios hold.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from mllm.files import TOOLKIT, version_of

WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every round."""

    rounds: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def time_interleaved(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device
) -> dict[str, Timing]:
    """Run each variant once per round, forwards and backwards in turn, after `WARM_UPS` rounds that do not count."""
    measure = seconds_on_gpu if device.type == "cuda" else seconds_of_process
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(WARM_UPS + rounds):
        order = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in order:
            taken = measure(variants[name])
            if number >= WARM_UPS:
                seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def seconds_of_process(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def seconds_on_gpu(work: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One thing, timed in several ways."""

    name: str
    facts: dict[str, Any]  # sizes and settings
    checks: dict[str, bool]  # equalities that were shown before anything was timed
    timings: dict[str, Timing]  # "ours" among them
    gate: str | None = None  # the variant that "ours" is asked to beat, if any
    floor: float | None = None  # seconds that the machine's memory and arithmetic need at least

    def speed_up(self, variant: str) -> float:
        """How many times longer the variant takes than ours, by the least of the rounds."""
        return self.timings[variant].least / self.timings["ours"].least

    def median_speed_up(self, variant: str) -> float:
        return self.timings[variant].median / self.timings["ours"].median


# The machine under a measurement: what it is, what else ran on it, and how fast its memory and arithmetic are.
#
# In: a device. Out: names and versions, and a roofline measured in the same run. Reads /proc where there is one.


CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
LARGE_COPY = 2**28  # bytes: larger than the caches
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Roofline:
    """Rates of this machine, measured beside what is compared with them."""

    copied_bytes_per_second: float  # read and written bytes together
    flops_per_second: float  # of a large matrix product

    def floor(self, *, num_bytes: float, flops: float) -> float:
        """Seconds below which moving these bytes and computing these operations cannot come."""
        return max(num_bytes / self.copied_bytes_per_second, flops / self.flops_per_second)


def measure_roofline(device: torch.device, dtype: torch.dtype, *, num_bytes: int = LARGE_COPY) -> Roofline:
    """Copy a buffer of this many bytes, and multiply two square matrices.

    Args:
        num_bytes: as large as the weights that are compared: small models stay in a cache, which is faster.
    """
    source = torch.ones(max(num_bytes, 2**16) // 4, dtype=torch.float32, device=device)
    target, side = torch.empty_like(source), PRODUCT_SIDE.get(device.type, 1024)
    left, repeats = torch.ones(side, side, dtype=dtype, device=device), max(1, LARGE_COPY // 4 // source.nbytes)

    def copy() -> None:
        for _ in range(repeats):
            target.copy_(source)

    timings = time_interleaved({"copy": copy, "product": lambda: left @ left}, rounds=ROUNDS, device=device)
    return Roofline(
        copied_bytes_per_second=2 * source.nbytes * repeats / timings["copy"].least,
        flops_per_second=2 * side**3 / timings["product"].least,
    )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Names and versions, for the file that the figures go into."""
    cpu = read_cpu()
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


def read_cpu() -> dict[str, str]:
    """The first processor in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def busy_seconds() -> float:
    """Processor seconds that everything on this machine has used so far; 0 where nobody counts."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    user, nice, system, _, _, interrupts, soft_interrupts = map(int, path.read_text().split()[1:8])
    return (user + nice + system + interrupts + soft_interrupts) / 100  # in hundredths on every Linux


def own_seconds() -> float:
    """Processor seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point so far: of the process, or of what torch holds on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


# What a benchmark found, as a table for a person and as JSON for a file.
#
# In: cases. Out: text, and a dictionary of plain values. Every ratio is of two times taken side by side: the least of
# the rounds of each; that of the medians stands beside it in the file.


OURS = "ours"


def run_benchmark(cases: Callable[[], Iterator[Case]], *, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Measure the machine, then all cases; everything that was found."""
    busy, own = busy_seconds(), own_seconds()
    roofline = measure_roofline(device, dtype)
    found = [describe_case(case) for case in cases()]
    foreign = max(0.0, busy_seconds() - busy - (own_seconds() - own))
    return {
        "version": version_of(TOOLKIT),
        "machine": describe_machine(device),
        "copied_bytes_per_second": roofline.copied_bytes_per_second,
        "flops_per_second": roofline.flops_per_second,
        "own_seconds": own_seconds() - own,
        "foreign_seconds": foreign,
        "peak_memory_bytes": peak_memory(device),
        "cases": found,
    }


def describe_case(case: Case) -> dict[str, Any]:
    """One case as plain values."""
    return {
        "name": case.name,
        "facts": case.facts,
        "checks": case.checks,
        "seconds": {
            name: {"least": timing.least, "median": timing.median, "rounds": list(timing.rounds)}
            for name, timing in case.timings.items()
        },
        "times_ours": {name: case.speed_up(name) for name in case.timings},
        "median_times_ours": {name: case.median_speed_up(name) for name in case.timings},
        "gate": case.gate,
        "floor_seconds": case.floor,
        "share_of_floor": None if case.floor is None else case.floor / case.timings[OURS].least,
    }


def as_table(report: dict[str, Any]) -> str:
    """The report for a console."""
    machine = report["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} thread(s), {machine['device']}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}, mllm {report['version']}",
        f"copies {report['copied_bytes_per_second'] / 1e9:.1f} GB/s, multiplies {report['flops_per_second'] / 1e9:.0f} "
        f"GFLOP/s; peak memory {report['peak_memory_bytes'] / 2**20:.0f} MiB; others used "
        f"{report['foreign_seconds']:.0f} s of processor time beside our {report['own_seconds']:.0f} s",
    ]
    for case in report["cases"]:
        lines += ["", case["name"], f"  {'':<30}{'least ms':>10}{'median ms':>11}{'x ours':>9}"]
        for name, seconds in case["seconds"].items():
            lines.append(
                f"  {name:<30}{seconds['least'] * 1e3:>10.1f}{seconds['median'] * 1e3:>11.1f}"
                f"{case['times_ours'][name]:>9.2f}"
            )
        if case["floor_seconds"] is not None:
            lines.append(
                f"  {'floor of this machine':<30}{case['floor_seconds'] * 1e3:>10.2f}{'':>11}"
                f"{case['share_of_floor']:>9.3f}"
            )
        lines += [f"  {name}: {'yes' if holds else 'NO'}" for name, holds in case["checks"].items()]
    return "\n".join(lines)


def complaints(report: dict[str, Any], *, least_speed_up: float | None) -> list[str]:
    """What is not as it must be: failed equalities, and cases slower than asked for."""
    found = []
    for case in report["cases"]:
        found += [f"{case['name']}: not so: {name}" for name, holds in case["checks"].items() if not holds]
        if least_speed_up is not None and case["gate"] is not None:
            speed_up = case["times_ours"][case["gate"]]
            if speed_up < least_speed_up:
                found.append(f"{case['name']}: {speed_up:.2f} times as fast as {case['gate']}, below {least_speed_up}")
    return found
