"""The benchmark of packed rows: both ways train the same samples, and the ratio is that of their speeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mllm.cli.main import main
from mllm.sequence import TokenSequence
from train.benchmark_training import load, packed, padded


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


def test_the_command_prints_and_writes_the_ratio(
    random_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    words = ["--model", str(random_model_folder), "--samples", "5", "--length", "160", "--rows", "2", "--rounds", "1"]
    assert main(["benchmark", "training", *words, "--device", "cpu", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert f"packed is {figures['ratio']:.2f} times as fast as padded" in capsys.readouterr().out
    speeds = [figures[way]["positions_per_second"] for way in ("packed", "padded")]
    assert figures["ratio"] == pytest.approx(speeds[0] / speeds[1])
    targets = [figures[way]["targets_per_second"] * figures[way]["seconds"] for way in ("packed", "padded")]
    assert targets[0] == pytest.approx(targets[1]) and targets[0] > 5
    _, samples = load(str(random_model_folder), 5, 160, torch.device("cpu"))
    for way in ("packed", "padded"):
        real = figures[way]["positions"] * (1 - figures[way]["padding_share"])
        assert real == pytest.approx(sum(map(len, samples)))
