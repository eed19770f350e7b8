"""What a run says about its decoding is what holds in the end, not only what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.cli.evaluation import benchmark_sampling
from mllm.evaluation.protocol import Benchmark
from mllm.evaluation.run import describe_decoding, describe_run
from mllm.evaluation.understanding.gqa import BENCHMARK
from mllm.pipeline import Pipeline

DRAWING = Benchmark(
    name="drawing", summary="", read_items=lambda questions, images: [], score=BENCHMARK.score, mode="image"
)


@pytest.fixture(scope="module")
def pipeline(random_model_folder: Path) -> Pipeline:
    return Pipeline.load(random_model_folder, device="cpu")


def test_greedy_texts_say_no_more_than_that(pipeline: Pipeline) -> None:
    asked = {"greedy": True, "max_new_tokens": 9}
    assert describe_decoding(pipeline, BENCHMARK, asked) == asked


def test_texts_are_greedy_unless_sampling_is_asked_for() -> None:
    cases = [
        ({}, {"greedy": True, "max_new_tokens": 128}),
        ({"temperature": 0.0, "seed": 1}, {"greedy": True, "max_new_tokens": 128}),  # how LLaVA's scripts say greedy
        ({"temperature": 0.2}, {"greedy": False, "max_new_tokens": 128, "temperature": 0.2}),
        ({"top_p": 0.9}, {"greedy": False, "max_new_tokens": 128, "top_p": 0.9}),
    ]
    for typed, expected in cases:
        assert benchmark_sampling(False, typed, 128) == expected
    assert benchmark_sampling(True, {"top_p": 0.9, "seed": 1}, None) == {"top_p": 0.9}


def test_sampled_texts_name_every_setting(pipeline: Pipeline) -> None:
    found = describe_decoding(pipeline, BENCHMARK, {"greedy": False, "max_new_tokens": 9, "temperature": 0.7})
    assert found == {
        "temperature": 0.7,
        "top_k": None,
        "top_p": 1.0,
        "guidance": 1.0,
        "greedy": False,
        "max_new_tokens": 9,
    }


def test_pictures_name_the_settings_of_the_checkpoint_too(pipeline: Pipeline) -> None:
    config = pipeline.config
    found = describe_decoding(pipeline, DRAWING, {"top_k": 5})
    assert found["top_k"] == 5 and found["guidance"] == config.image_guidance
    assert (found["temperature"], found["top_p"]) == (config.image_temperature, config.image_top_p)


def test_two_models_and_two_files_are_told_apart(pipeline: Pipeline, tmp_path: Path) -> None:
    def describe(text: str) -> dict:
        (tmp_path / "q.jsonl").write_text(text)
        return describe_run(
            pipeline, BENCHMARK, tmp_path / "q.jsonl", counts=(2, 3), seed=7, sampling={"greedy": True}, prompts="raw"
        )

    one, again, other = describe("{}"), describe("{}"), describe("{ }")
    assert one == again and one["questions"] != other["questions"]
    assert (one["items"], one["items_in_file"], one["seed"]) == (2, 3, 7)
    parameter = next(pipeline.model.parameters())
    kept = parameter.data.clone()
    parameter.data[0] += 1
    assert describe("{}")["model"]["fingerprint"] != one["model"]["fingerprint"]
    parameter.data.copy_(kept)
    assert describe("{}") == one
