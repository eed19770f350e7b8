"""`mllm benchmark` on tiny sizes: what it prints, writes and refuses.

No time is asserted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.cli.main import main

RUNS = {
    "draw": (["--sizes", "XXS", "--batch", "1", "2"], ["draw XXS, batch 1", "draw XXS, batch 2"]),
    "head": (
        ["--sizes", "XXS", "--batch", "3", "--guidance", "1"],
        ["head XXS, 3 images", "choice unfiltered, 8 rows", "choice top-k and top-p, 8 rows"],
    ),
    "tokenizer": (
        ["--batch", "1"],
        [
            "encode tiny, 1 images",
            "decode tiny, 1 images",
            "upsample 64 channels, 32 to 64",
            "look up 8 x 4096, 1 images",
        ],
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_the_figures_are_printed_and_written(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, names = RUNS[what]
    path = tmp_path / "figures.json"
    assert main(["benchmark", what, *words, "--rounds", "2", "--device", "cpu", "--json", str(path)]) == 0
    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert {"cpu", "cpu_flags", "threads", "torch", "transformers", "python", "device"} <= set(report["machine"])
    assert report["machine"]["threads"] == 1 and report["copied_bytes_per_second"] > 0
    assert report["flops_per_second"] > 0 and report["peak_memory_bytes"] > 0
    assert [case["name"] for case in report["cases"]] == names
    for case in report["cases"]:
        assert case["name"] in printed and case["checks"] and all(case["checks"].values())
        assert {"upstream", "ours"} <= set(case["seconds"]) and case["times_ours"]["ours"] == 1
        assert all(len(seconds["rounds"]) == 2 for seconds in case["seconds"].values())
        if case["floor_seconds"] is not None:
            assert 0 < case["share_of_floor"]


def test_half_precision_is_timed_after_equality_in_float32(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sizes", "XXS", "--batch", "1", "--rounds", "1", "--dtype", "bfloat16", "--device", "cpu"]
    assert main(["benchmark", "draw", *words]) == 0
    assert "greedy codes equal: yes" in capsys.readouterr().out


def test_a_speed_that_is_not_reached_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sizes", "XXS", "--batch", "1", "--rounds", "1", "--device", "cpu", "--require", "10000"]
    assert main(["benchmark", "draw", *words]) == 1
    assert "times as fast as upstream, below 10000" in capsys.readouterr().err
