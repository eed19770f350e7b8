"""The GPU benchmark: every part runs on tiny sizes, and one that fails or hangs is reported while the others go on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mllm.benchmark.cases import SIZES, build_random_model
from scripts.benchmark_gpu import PARTS, as_table, collect, main, text_to_image, tiny_plan, training_flops


def test_every_part_runs_on_tiny_sizes() -> None:
    plan, parts = tiny_plan(), {}
    for name, (limit, part) in PARTS.items():
        results = list(part(plan))
        assert limit > 0 and results and all(result.get("seconds", 1) > 0 for result in results), name
        parts[name] = {"results": results, "error": None, "seconds": 1.0}
    assert sum(limit for limit, _ in PARTS.values()) < 480, "under eight minutes"
    table = as_table({"parts": parts})
    assert all(result["name"] in table for part in parts.values() for result in part["results"] if "seconds" in result)
    assert "draw, 2 images" in table and "training, 1 B" in table


def test_operations_of_training_are_those_of_the_cost_model() -> None:
    """A text-to-image sample of the released model costs about 20.2 TFLOP."""
    size = SIZES["7b"]
    with torch.device("meta"):
        model = build_random_model(size, device=torch.device("meta"), dtype=torch.bfloat16)
    assert training_flops(model, [text_to_image(size, model.config, seed=0)]) == pytest.approx(20.2e12, rel=0.02)


def test_results_before_a_failure_are_kept_and_nothing_takes_longer_than_its_limit() -> None:
    class Receiver:
        def __init__(self, *messages: object) -> None:
            self.messages = list(messages)

        def poll(self, seconds: float) -> bool:
            if not self.messages:
                time.sleep(min(seconds, 0.01))
            return bool(self.messages)

        def recv(self) -> object:
            message = self.messages.pop(0)
            if isinstance(message, type):
                raise message
            return message

    first = {"name": "first", "seconds": 1.0}
    assert collect(Receiver(first, None), limit=1) == ([first], None)
    assert collect(Receiver(first, "ValueError: no"), limit=1) == ([first], "ValueError: no")
    assert collect(Receiver(first, EOFError), limit=1) == ([first], "the process ended without a word")
    assert collect(Receiver(first), limit=0.01) == ([first], "not done after 0 s")


@pytest.mark.slow
def test_the_dry_run_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    assert main([str(path), "--tiny"]) == 0 and path.stat().st_size > 500
    printed = capsys.readouterr().out
    assert all(name in printed for name in PARTS)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.accelerator.is_available():
        assert main([]) == 2 and "there must be a GPU, got none" in capsys.readouterr().err
