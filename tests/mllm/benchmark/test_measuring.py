"""Timing, the machine's rates, and what a report says of them."""

from __future__ import annotations

import pytest
import torch

from mllm.benchmark.cases import SIZES, Follower, build_random_model, head_cost, num_parameters, position_cost
from mllm.benchmark.measure import (
    WARM_UPS,
    Case,
    Roofline,
    Timing,
    as_table,
    busy_seconds,
    complaints,
    describe_case,
    describe_machine,
    measure_roofline,
    own_seconds,
    peak_memory,
    time_interleaved,
)
from mllm.sampling import SamplingConfig

CPU = torch.device("cpu")


def test_rounds_are_interleaved_in_flipping_order_and_warm_ups_do_not_count() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = time_interleaved(variants, rounds=3, device=CPU)
    assert WARM_UPS == 2 and "".join(calls) == "abc" + "cba" + "abc" + "cba" + "abc"
    assert all(len(timing.rounds) == 3 and timing.least >= 0 for timing in timings.values())


def build_case(**fields: object) -> Case:
    timings = {"upstream": Timing((4.0, 6.0, 9.0)), "ours": Timing((2.5, 2.0, 3.0))}
    return Case(**{"name": "c", "facts": {}, "checks": {"equal": True}, "timings": timings, **fields})


def test_ratios_are_of_the_least_and_of_the_median_rounds() -> None:
    described = describe_case(build_case(floor=0.5))
    assert described["times_ours"] == {"upstream": 2.0, "ours": 1.0}
    assert described["median_times_ours"] == {"upstream": 2.4, "ours": 1.0}
    assert described["share_of_floor"] == 0.25


def test_complaints_name_what_failed() -> None:
    cases = [build_case(gate="upstream"), build_case(name="d", checks={"equal": False})]
    report = {"cases": [describe_case(case) for case in cases]}
    assert complaints(report, least_speed_up=None) == ["d: not so: equal"]
    assert complaints(report, least_speed_up=2.0) == ["d: not so: equal"]
    assert complaints(report, least_speed_up=2.5)[0] == "c: 2.00 times as fast as upstream, below 2.5"


def test_the_table_holds_every_variant_and_check() -> None:
    report = {
        "version": "1",
        "machine": describe_machine(CPU),
        "copied_bytes_per_second": 1e9,
        "flops_per_second": 1e9,
        "own_seconds": own_seconds(),
        "foreign_seconds": 0.0,
        "peak_memory_bytes": peak_memory(CPU),
        "cases": [describe_case(build_case(floor=0.5, checks={"equal": False}))],
    }
    lines = as_table(report).splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    assert [line.split() for line in lines[5:]] == [
        ["upstream", "4000.0", "6000.0", "2.00"],
        ["ours", "2000.0", "2500.0", "1.00"],
        ["floor", "of", "this", "machine", "500.00", "0.250"],
        ["equal:", "NO"],
    ]


def test_a_follower_tells_how_far_another_code_was_ahead() -> None:
    """With this noise code 1 is 0.5 ahead of code 2 and 0.2 ahead of code 0."""
    logits_NC, noise_NC = torch.tensor([[1.0, 2.0, 3.0]]).expand(3, -1), torch.tensor([[2.8, 2.0, 0.5]])
    for codes, distance in (([1, 1, 1], 0.0), ([1, 2, 1], 0.5), ([1, 1, 0], 0.2)):
        follower = Follower(torch.tensor(codes)[:, None, None])
        chosen_N = follower.choose(logits_NC, SamplingConfig(), noise_NC)
        assert chosen_N.tolist() == codes and follower.largest_distance == pytest.approx(distance, abs=1e-6)


def test_the_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    roofline = Roofline(copied_bytes_per_second=10.0, flops_per_second=4.0)
    assert roofline.floor(num_bytes=20, flops=4) == 2.0
    assert roofline.floor(num_bytes=20, flops=40) == 10.0


def test_the_machine_has_rates() -> None:
    roofline = measure_roofline(CPU, torch.float32, num_bytes=2**20)
    assert roofline.copied_bytes_per_second > 1e6 and roofline.flops_per_second > 1e6
    assert peak_memory(CPU) > 2**20
    assert busy_seconds() == 0.0 or busy_seconds() >= own_seconds() * 0.5


def test_costs_are_those_of_the_released_model() -> None:
    """Section by section as the roofline of the released system has it: 12.95 GB of backbone, 8 x 1.248 GB of head."""
    with torch.device("meta"):
        model = build_random_model(SIZES["7b"], device=torch.device("meta"), dtype=torch.bfloat16)
    head, whole = head_cost(model, rows=2), position_cost(model, rows=2, context=190)
    assert head.weight_bytes == pytest.approx(9.98e9, rel=2e-3)
    assert whole.weight_bytes == pytest.approx(22.9e9, rel=5e-3)
    assert whole.cache_bytes - head.cache_bytes == pytest.approx(2 * 190 * 0.524e6, rel=1e-2)
    assert whole.flops == pytest.approx(2 * 23.1e9, rel=2e-2)
    assert num_parameters(model.backbone.layers) == 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
