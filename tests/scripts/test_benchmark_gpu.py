"""The GPU benchmark: every part runs on tiny sizes, and the report has each by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark_gpu.sh"
PARTS = ["products", "head", "drawing", "graphs", "prefill", "tokenizer", "training-1b", "training-7b"]


@pytest.mark.slow
def test_the_dry_run_writes_a_report(tmp_path: Path) -> None:
    command = ["bash", SCRIPT, str(tmp_path / "report.json"), "--tiny"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == PARTS and all(part["cases"] for part in report.values())
    limits = [int(line.split()[2]) for line in SCRIPT.read_text().splitlines() if line.startswith("part ")]
    assert len(limits) == len(PARTS) and sum(limits) < 480, "under eight minutes"
