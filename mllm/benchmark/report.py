"""What a benchmark found, as a table for a person and as JSON for a file.

In: cases. Out: text, and a dictionary of plain values. Every ratio is of two times taken side by side: the least of
the rounds of each; that of the medians stands beside it in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mllm.benchmark.machine import busy_seconds, describe_machine, measure_roofline, own_seconds, peak_memory
from mllm.benchmark.timing import Case
from mllm.files import TOOLKIT, version_of

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
