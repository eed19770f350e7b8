"""The benchmark of packed rows: both ways train the same samples, and the ratio is that of their speeds."""

import json
from pathlib import Path

import pytest
import torch

from mllm.benchmark.measure import THIS
from mllm.cli.main import main
from train.benchmark_training import load_samples


def test_both_ways_train_the_same_samples_and_are_reported(
    random_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    words = ["--model", str(random_model_folder), "--samples", "5", "--length", "160", "--rows", "2", "--rounds", "1"]
    assert main(["benchmark", "training", *words, "--device", "cpu", "--json", str(file)]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    assert "forward and backward" in capsys.readouterr().out and case["ratios"]["padded"] > 0
    dense, short = case["facts"][THIS], case["facts"]["padded"]
    assert dense["targets"] == short["targets"] > 5 and 0 <= dense["padding_share"] < 1
    samples, _ = load_samples(str(random_model_folder), 5, 160, torch.device("cpu"))
    assert dense["positions"] == short["positions"] == sum(map(len, samples))
