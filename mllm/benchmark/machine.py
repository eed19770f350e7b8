"""The machine under a measurement: what it is, what else ran on it, and how fast its memory and arithmetic are.

In: a device. Out: names and versions, and a roofline measured in the same run. Reads /proc where there is one.
"""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from mllm.benchmark.timing import time_interleaved

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
