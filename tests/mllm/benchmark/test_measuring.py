"""`mllm benchmark` on tiny sizes: timing, the report, what is compared, and what is refused. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from mllm.benchmark import measure
from mllm.benchmark.cases import (
    SIZES,
    build_random_model,
    head_cost,
    num_parameters,
    position_cost,
    random_sample,
    training_flops,
)
from mllm.benchmark.growth import COSTS, fit_costs
from mllm.benchmark.work import WORK, Before
from mllm.cli.main import main
from mllm.pipeline import Pipeline
from tests.train.launching import ROOT, run_program
from train.benchmark_training import load_samples

CPU = torch.device("cpu")
RUNS = {
    "draw": "--sizes bundled XXS --batch 2 --quantization int8 --model {folder}",
    "ask": "--sizes XXS --batch 3 --model {folder}",
    "edit": "--model {folder}",
    "requests": "--requests 6 --model {folder}",
    "head": "--sizes XXS --batch 3 --guidance 1",
    "tokenizer": "--batch 1",
    "product": "--sizes S --batch 3",
    "prefill": "--sizes XXS --batch 2",
    "step": "--sizes XXS",
    "load": "--model {folder}",
}
ALONE = ("prefill", "step", "load")
"""Measured without anything beside it."""


def test_every_benchmark_compares_prints_and_writes(
    random_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    for what, words in RUNS.items():
        options = [*words.format(folder=random_model_folder).split(), "--rounds", "1", "--device", "cpu"]
        assert main(["benchmark", what, *options, "--json", str(path)]) == 0, what
        printed, report = capsys.readouterr().out, json.loads(path.read_text())
        assert report["machine"]["threads"] == 1 and report["read_bytes_per_second"] > 0 and report["cases"]
        for case in report["cases"]:
            others = case["seconds"].keys() - {measure.THIS, "bfloat16"}
            assert bool(others) == (what not in ALONE) and ("int8" in others or "int8" not in words)
            assert "upstream" in others or what not in ("head", "tokenizer")
            assert case["name"] in printed and all(case["checks"].values()) and case["ratios"][measure.THIS] == 1
            assert case["checks"] or not case["name"].startswith(("text", "draw X", "head"))
            assert case["roofline_seconds"] is None or 0 < case["share_of_roofline"]


def test_passes_of_drawings_and_edits_are_counted(
    random_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "passes.json"
    assert main(["benchmark", "passes", "--count", "2", "--model", str(random_model_folder), "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    positions = Pipeline.load(random_model_folder, device="cpu").config.positions_per_image
    for image in ("drawing", "edit"):
        counts = found[image]["codes"]["counts"]
        assert len(counts) == 2 and all(0 < count <= positions for count in counts)
    assert "edit        codes" in capsys.readouterr().out


def test_half_precision_is_timed_after_equality_in_float32_and_a_missed_speed_is_an_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--sizes", "XXS", "--batch", "1", "--rounds", "1", "--device", "cpu", "--dtype", "bfloat16"]
    assert main(["benchmark", "draw", *words, "--require", "10000"]) == 1
    captured = capsys.readouterr()
    assert "greedy codes equal: yes" in captured.out
    assert "times as fast as upstream, below 10000" in captured.err


def test_growth_is_fitted_and_plotted_and_fitted_rates_are_those_that_made_the_times(tmp_path: Path) -> None:
    rates, generator, cases = dict(zip(COSTS, (1e-4, 2e-10, 3e-10, 1e-11), strict=True)), Random(0), []
    for _ in range(9):
        facts = {name: generator.random() * 1e-2 / rate for name, rate in rates.items()}
        seconds = sum(facts[name] * rate for name, rate in rates.items())
        cases.append({"facts": facts, "seconds": {measure.THIS: {"median": seconds}}})
    fit = fit_costs({"cases": cases})
    assert fit["seconds_per"] == pytest.approx(rates, rel=1e-6) and fit["mean_relative_error"] < 1e-6
    pytest.importorskip("matplotlib")
    words = ["--sizes", "XXS", "--growth", "images", "--rounds", "1", "--device", "cpu"]
    files = ["--plot", str(tmp_path / "growth.png"), "--json", str(tmp_path / "growth.json")]
    assert main(["benchmark", "draw", *words, *files]) == 0
    report = json.loads((tmp_path / "growth.json").read_text())
    assert (tmp_path / "growth.png").stat().st_size > 1000 and set(report["fit"]["seconds_per"]) == set(COSTS)
    assert [case["name"] for case in report["cases"][-4:]] == [f"images {count}" for count in (1, 2, 4, 8)]


@pytest.mark.slow
def test_another_commit_draws_the_same_greedy_codes_in_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--before must be a commit"):
        Before("no-such-commit", threads=1)
    listing = ["git", "-C", str(ROOT), "worktree", "list"]
    if (found := subprocess.run(listing, capture_output=True, text=True)).returncode:
        pytest.skip("the tests do not run in a git repository")
    words = ["--sizes", "XXS", "--batch", "2", "--before", "HEAD", "--rounds", "2", "--device", "cpu"]
    assert main(["benchmark", "draw", *words, "--json", str(tmp_path / "figures.json")]) == 0
    (case,) = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert case["checks"]["greedy codes equal those before"] and case["ratios"]["before"] > 0
    after = subprocess.run(listing, capture_output=True, text=True).stdout
    assert len(after.splitlines()) == len(found.stdout.splitlines()), "no worktree is left behind"


def test_rounds_are_interleaved_in_flipping_order_and_warm_ups_do_not_count() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = measure.time_interleaved(variants, rounds=3, device=CPU)
    assert measure.WARM_UPS == 2 and "".join(calls) == "abc" + "cba" + "abc" + "cba" + "abc"
    assert all(len(taken) == 3 and min(taken) >= 0 for taken in seconds.values())


def test_ratios_are_of_medians_and_complaints_name_what_failed() -> None:
    slow, fast = iter([9.0, 9.0, 4.0, 6.0, 9.0]), iter([9.0, 9.0, 2.5, 2.0, 3.0])
    variants = {"upstream": lambda: next(slow), measure.THIS: lambda: next(fast)}
    case = measure.Case(name="c", variants=variants, checks={"equal": False}, gate="upstream")
    found = measure.measure_case(case, measure.Roofline(1.0, 1.0), rounds=3, device=CPU)
    assert found["ratios"] == {"upstream": 2.4, measure.THIS: 1.0} and found["roofline_seconds"] is None
    report = {"cases": [found]}
    assert (
        measure.complaints(report, least_speed_up=None)
        == measure.complaints(report, least_speed_up=2.4)
        == ["c: not so: equal"]
    )
    assert measure.complaints(report, least_speed_up=2.5)[1] == "c: 2.40 times as fast as upstream, below 2.5"
    report["cases"][0]["gate"] = None
    assert "got nothing" in measure.complaints(report, least_speed_up=2.5)[-1]
    assert "equal: NO" in measure.as_table(measure.run_benchmark([], rounds=1, device=CPU) | report)


def test_work_may_measure_itself() -> None:
    assert 0 < WORK["start"](words=["-m", "mllm", "--version"])() < 60


def test_the_floor_is_the_slower_of_memory_and_arithmetic_and_the_machine_has_rates() -> None:
    roofline = measure.Roofline(read_bytes_per_second=10.0, flops_per_second=4.0)
    assert roofline.floor(measure.Cost(15, 5, 4)) == 2.0 and roofline.floor(measure.Cost(15, 5, 4).times(2)) == 4.0
    assert roofline.floor(measure.Cost(20, 0, 40)) == 10.0
    assert min(measure.measure_roofline(CPU, torch.float32, num_bytes=2**20)) > 1e6 and measure.peak_memory(CPU) > 2**20


def test_costs_are_those_of_the_released_model() -> None:
    """Section by section as the roofline of the released system has it: 12.95 GB of backbone, 8 x 1.248 GB of head."""
    with torch.device("meta"):
        model = build_random_model(SIZES["7b"], device=torch.device("meta"), dtype=torch.bfloat16)
    head, whole = head_cost(model, rows=2), position_cost(model, rows=2, context=190)
    assert head.weight_bytes == pytest.approx(9.98e9, rel=2e-3)
    assert whole.weight_bytes == pytest.approx(22.9e9, rel=5e-3)
    assert whole.cache_bytes - head.cache_bytes == pytest.approx(2 * 190 * 0.524e6, rel=1e-2)
    assert whole.flops == pytest.approx(2 * 23.1e9, rel=2e-2)
    sample = random_sample(SIZES["7b"], model.config, seed=0)  # about 20.2 TFLOP forward and backward
    assert training_flops(model, [sample]) == pytest.approx(20.2e12, rel=0.02)
    assert num_parameters(model.backbone.layers) == 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)


def test_packed_and_padded_rows_train_the_same_samples(random_model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    words = ["--model", str(random_model_folder), "--samples", "5", "--length", "160", "--rows", "2", "--rounds", "1"]
    assert main(["benchmark", "training", *words, "--device", "cpu", "--json", str(file)]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    dense, short = case["facts"][measure.THIS], case["facts"]["padded"]
    assert dense["targets"] == short["targets"] > 5 and 0 <= dense["padding_share"] < 1 and case["ratios"]["padded"] > 0
    samples, _ = load_samples(str(random_model_folder), 5, 160, CPU)
    assert dense["positions"] == short["positions"] == sum(map(len, samples))


GPU = ROOT / "scripts" / "benchmark_gpu.sh"
PARTS = ["products", "head", "drawing", "graphs", "prefill", "tokenizer", "training-1b", "training-7b"]


@pytest.mark.slow
def test_the_dry_run_of_the_gpu_benchmark_writes_a_report(tmp_path: Path) -> None:
    run_program("bash", GPU, tmp_path / "report.json", "--tiny", PYTHON=sys.executable)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == PARTS and all(part["cases"] for part in report.values())
    limits = [int(line.split()[2]) for line in GPU.read_text().splitlines() if line.startswith("part ")]
    assert len(limits) == len(PARTS) and sum(limits) < 480, "under eight minutes"
