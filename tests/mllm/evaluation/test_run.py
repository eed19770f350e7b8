"""The runner: interrupted and resumed = uninterrupted, several processes = one, any batch size = the same answers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from mllm.cli.evaluation import benchmark_sampling
from mllm.evaluation.answerer import describe_decoding, describe_run
from mllm.evaluation.images import GenEval
from mllm.evaluation.protocol import BenchmarkItem
from mllm.evaluation.run import RunFolder, run_items, shard_from_environment
from mllm.evaluation.vqa import GQA
from mllm.files import append_lines
from mllm.pipeline import Pipeline
from tests.mllm.evaluation.builders import DESCRIPTION, Answerer, contents, make_items, run

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from mllm.files import only_writer

with only_writer(Path(sys.argv[1]) / "parts", lock_name="00000.jsonl.lock"):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def complete(tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted run of one process leaves."""
    assert run(tmp_path / "complete", Answerer())
    return contents(tmp_path / "complete")


def test_answers_are_in_the_order_of_the_questions_for_any_batch_size(
    tmp_path: Path, complete: dict[str, bytes]
) -> None:
    answers = [json.loads(line) for line in complete["answers.jsonl"].splitlines()]
    assert [answer["question_id"] for answer in answers] == list(range(23))
    assert answers[7]["text"] == "question 7 seed 12"  # the run's seed plus its number
    assert set(answers[7]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert len({answer["answer_id"] for answer in answers}) == 23
    for batch_size in (1, 5, 100):
        assert run(tmp_path / str(batch_size), Answerer(), batch_size=batch_size)
        assert contents(tmp_path / str(batch_size)) == complete


def test_an_interrupted_run_resumes_and_ends_as_an_uninterrupted_one(
    tmp_path: Path, complete: dict[str, bytes]
) -> None:
    for count in (0, 3, 12, 20):
        folder, first, second = tmp_path / str(count), Answerer(stop_after=count), Answerer()
        with pytest.raises(KeyboardInterrupt):
            run(folder, first)
        assert not (folder / "answers.jsonl").exists()
        if count == 12:  # killed in the middle of a line
            part = RunFolder(folder).part_file(0)
            part.write_bytes(part.read_bytes()[:-9])
            first.asked.pop()
        assert run(folder, second)
        assert contents(folder) == complete
        assert sorted(first.asked + second.asked) == list(range(23))  # nothing twice, nothing left out
        third = Answerer()
        assert run(folder, third)
        assert third.asked == [] and contents(folder) == complete


def test_several_processes_leave_what_one_leaves(tmp_path: Path, complete: dict[str, bytes]) -> None:
    for size in (2, 3, 30):
        folder = tmp_path / str(size)
        finished = [run(folder, Answerer(), rank=rank, size=size) for rank in reversed(range(size))]
        assert finished == [False] * (size - 1) + [True]  # the last one merges
        assert contents(folder) == complete
    for rank in range(3):  # a run resumes with another number of processes
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", Answerer(stop_after=2), batch_size=2, rank=rank, size=3)
    answerers = [Answerer(), Answerer()]
    for rank, answerer in enumerate(answerers):
        run(tmp_path / "run", answerer, rank=rank, size=2)
    assert sorted(answerers[0].asked + answerers[1].asked) == list(range(6, 23))
    assert contents(tmp_path / "run") == complete


def test_images_are_written_as_png_and_survive_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Answerer(draws=True, stop_after=9))
    assert run(tmp_path / "run", Answerer(draws=True)) and run(tmp_path / "complete", Answerer(draws=True))
    files = contents(tmp_path / "run")
    assert files == contents(tmp_path / "complete")
    assert sum(data.startswith(b"\x89PNG") for data in files.values()) == 23
    assert json.loads(files["answers.jsonl"].splitlines()[3])["image"] == "images/00004.png"


def test_processes_are_counted_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, shard in (({}, (0, 1)), ({"RANK": "2", "WORLD_SIZE": "5"}, (2, 5)), ({"RANK": "2"}, None)):
        monkeypatch.setattr(os, "environ", environment)
        with nullcontext() if shard else pytest.raises(ValueError, match="torchrun"):
            assert shard_from_environment() == shard


def test_a_folder_that_is_not_of_this_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Answerer())
    folder = RunFolder(tmp_path)
    for change, parts in (
        ({"model": {"fingerprint": "xyz"}}, r'model.*"abc".*"xyz"'),
        ({"limit": 5}, "limit.*null.*5"),
    ):
        with pytest.raises(ValueError, match=parts):
            folder.open({**DESCRIPTION, **change})
    content = folder.part_file(0).read_bytes()
    folder.part_file(0).write_bytes(content.replace(b'{"index": 3', b'{"ind ex: 3'))
    with pytest.raises(ValueError, match=r"00000.jsonl, line 1"):
        run(tmp_path, Answerer())
    folder.part_file(0).write_bytes(content)
    append_lines(folder.part_file(7), [{"index": 3, "text": "question 3 seed 8"}])  # a second answer that agrees
    assert run(tmp_path, Answerer())
    append_lines(folder.part_file(7), [{"index": 4, "text": "something else"}])
    with pytest.raises(ValueError, match="item 4"):
        run(tmp_path, Answerer())
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="no run.json"):
        run(tmp_path, Answerer())


def test_a_run_in_progress_is_not_started_a_second_time(tmp_path: Path, complete: dict[str, bytes]) -> None:
    """Another process holds the part; when it is killed, the system releases the lock."""
    folder = RunFolder(tmp_path / "run")
    folder.open(DESCRIPTION)
    command = [sys.executable, "-c", HOLDER, str(folder.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        refused = Answerer()
        with pytest.raises(ValueError, match="one run at a time"):
            run(tmp_path / "run", refused)
        assert refused.asked == []
        other.kill()
    assert run(tmp_path / "run", Answerer())
    assert contents(tmp_path / "run") == complete


def test_what_was_answered_before_an_error_is_kept(tmp_path: Path) -> None:
    def answer(items: list[BenchmarkItem], seeds: list[int], at_once: int) -> Iterator[tuple[int, str]]:
        yield from ((place, "yes") for place in (1, 0, 2, 5, 3))
        raise ValueError("cannot read image x.png")

    with pytest.raises(ValueError, match="cannot read image x.png"):
        run_items(make_items(9), answer, RunFolder(tmp_path), description=DESCRIPTION, batch_size=4)
    assert sorted(RunFolder(tmp_path).read_parts()) == [0, 1, 2, 3, 5]


# ---- what a run says about its decoding is what is in effect, not only what was given ----


@pytest.fixture(scope="module")
def pipeline(random_model_folder: Path) -> Pipeline:
    return Pipeline.load(random_model_folder, device="cpu")


def test_decoding_is_described_completely(pipeline: Pipeline) -> None:
    for typed, expected in (
        ({}, {"greedy": True}),
        ({"temperature": 0.0}, {"greedy": True}),  # how LLaVA's scripts say greedy
        ({"temperature": 0.2}, {"greedy": False, "temperature": 0.2}),
    ):
        assert benchmark_sampling(False, typed, 128) == {"max_new_tokens": 128, **expected}
    assert benchmark_sampling(True, {"top_p": 0.9}, None) == {"top_p": 0.9}
    asked = {"greedy": True, "max_new_tokens": 9}
    assert describe_decoding(pipeline, GQA(), asked) == asked
    found = describe_decoding(pipeline, GQA(), {"greedy": False, "max_new_tokens": 9, "temperature": 0.7})
    sampled = {"temperature": 0.7, "top_k": None, "top_p": 1.0, "guidance": 1.0}
    assert found == {**sampled, "greedy": False, "max_new_tokens": 9}
    config, drawn = pipeline.config, describe_decoding(pipeline, GenEval(), {"top_k": 5})
    assert drawn["top_k"] == 5 and drawn["guidance"] == config.image_guidance
    assert (drawn["temperature"], drawn["top_p"]) == (config.image_temperature, config.image_top_p)


def test_models_and_question_files_are_told_apart(pipeline: Pipeline, tmp_path: Path) -> None:
    def describe(text: str) -> dict:
        (tmp_path / "q.jsonl").write_text(text)
        return describe_run(pipeline, GQA(), tmp_path / "q.jsonl", counts=(2, 3), seed=7, sampling={"greedy": True})

    one = describe("{}")
    assert one == describe("{}") and one["questions"] != describe("{ }")["questions"]
    assert (one["items"], one["items_in_file"], one["seed"]) == (2, 3, 7)
    parameter = next(pipeline.model.parameters())
    parameter.data[0] += 1
    assert describe("{}")["model"]["fingerprint"] != one["model"]["fingerprint"]
