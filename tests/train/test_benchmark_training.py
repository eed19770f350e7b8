"""The benchmark of packed rows: both ways train the same samples, and the ratio is that of their speeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm.benchmark.measure import THIS
from mllm.cli.main import main
from mllm.sequence import TokenSequence
from train.benchmark_training import load_samples, packed, padded


def sample(length: int) -> TokenSequence:
    return TokenSequence(
        token_ids_T=np.full(length, length),
        labels_T=np.full(length, length),
        codes_PK=np.zeros((0, 3), dtype=np.int64),
        image_lengths_I=np.zeros(0, dtype=np.int64),
        code_targets_P=np.zeros(0, dtype=bool),
    )


def test_both_ways_hold_the_same_samples() -> None:
    samples = [sample(length) for length in (7, 3, 5, 4, 6)]
    short = padded(samples, rows=2)
    assert [tuple(batch["input_ids"].shape) for batch in short] == [(2, 7), (2, 5), (1, 6)]
    dense = packed(samples, rows=2, length=10)
    assert [tuple(batch["input_ids"].shape) for batch in dense] == [(2, 10), (1, 10)]
    for batches in (short, dense):
        ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
        assert sorted(ids[ids > 0].tolist()) == sorted(n for n in (7, 3, 5, 4, 6) for _ in range(n))


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
