"""The benchmarks by their names on the command line. A module is imported when its benchmark is asked for."""

from __future__ import annotations

import importlib

from mllm.evaluation.benchmark import Benchmark

BENCHMARKS = {
    "vqav2": "mllm.evaluation.understanding.vqav2",
    "gqa": "mllm.evaluation.understanding.gqa",
    "textvqa": "mllm.evaluation.understanding.textvqa",
    "pope": "mllm.evaluation.understanding.pope",
    "mme": "mllm.evaluation.understanding.mme",
    "mmvet": "mllm.evaluation.understanding.mmvet",
    "genai-bench-527": "mllm.evaluation.generation.genai_bench:BENCHMARK_527",
    "genai-bench-1600": "mllm.evaluation.generation.genai_bench:BENCHMARK_1600",
    "geneval": "mllm.evaluation.generation.geneval",
    "dpg-bench": "mllm.evaluation.generation.dpg_bench",
    "t2i-compbench": "mllm.evaluation.generation.compbench",
    "mjhq-30k": "mllm.evaluation.generation.mjhq",
    "class-samples": "mllm.evaluation.generation.class_samples",
}
"""Name -> module that defines `BENCHMARK`, or module:NAME of it."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name."""
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; choose among {', '.join(BENCHMARKS)}")
    module, _, attribute = BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute or "BENCHMARK")
