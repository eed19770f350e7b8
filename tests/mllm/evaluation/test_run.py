"""The runner: interrupted and resumed = uninterrupted, several processes = one, any batch size = the same answers.
Questions and answers that do not fit are named with file and line; a part is never taken for the whole.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.evaluation import benchmark_sampling
from mllm.cli.main import main
from mllm.evaluation.answerer import describe_decoding, describe_run
from mllm.evaluation.protocol import BenchmarkItem, match_answers
from mllm.evaluation.run import RunFolder, run_items, shard_from_environment
from mllm.evaluation.text_to_image import GenEval
from mllm.evaluation.vqa import GQA
from mllm.files import append_lines, only_writer, read_json, read_lines
from mllm.pipeline import Pipeline
from tests.mllm.evaluation.builders import contents, write_json, write_jsonl
from tests.train.launching import run_program

DESCRIPTION = {"benchmark": "gqa", "items": 23, "seed": 5, "model": {"fingerprint": "abc"}}


def make_items(count: int, *, draws: bool = False) -> list[BenchmarkItem]:
    return [
        BenchmarkItem(str(n), f"questions.jsonl, line {n + 1}", n, f"question {n}", output=name if draws else None)
        for n, name in enumerate(f"images/{n + 1:05d}.png" for n in range(count))
    ]


class Answerer:
    """Answers with the item's words and seed; is interrupted after so many."""

    def __init__(self, *, stop_after: int | None = None, draws: bool = False) -> None:
        self.stop_after, self.draws = stop_after, draws
        self.asked: list[int | str] = []

    def __call__(
        self, items: Sequence[BenchmarkItem], seeds: Sequence[int], at_once: int
    ) -> Iterator[tuple[int, str | Image.Image]]:
        """Of `at_once` items the last ends first."""
        for start in range(0, len(items), at_once):
            for index in reversed(range(start, min(start + at_once, len(items)))):
                if len(self.asked) == self.stop_after:
                    raise KeyboardInterrupt
                self.asked.append(items[index].question_id)
                seed = seeds[index]
                text = f"{items[index].prompt} seed {seed}"
                yield index, Image.new("RGB", (4, 4), (seed, 0, 0)) if self.draws else text


def run(folder: Path, answerer: Answerer, *, batch_size: int = 4, shard: tuple[int, int] = (0, 1)) -> bool:
    items = make_items(23, draws=answerer.draws)
    return run_items(items, answerer, RunFolder(folder), batch_size=batch_size, description=DESCRIPTION, shard=shard)


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
    folder = tmp_path / "images"
    with pytest.raises(KeyboardInterrupt):
        run(folder, Answerer(draws=True, stop_after=9))
    assert run(folder, Answerer(draws=True)) and run(tmp_path / "complete images", Answerer(draws=True))
    files = contents(folder)
    assert files == contents(tmp_path / "complete images")
    assert sum(data.startswith(b"\x89PNG") for data in files.values()) == 23
    assert json.loads(files["answers.jsonl"].splitlines()[3])["image"] == "images/00004.png"


def test_several_processes_leave_what_one_leaves(
    tmp_path: Path, complete: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (2, 3, 30):
        folder = tmp_path / str(size)
        finished = [run(folder, Answerer(), shard=(rank, size)) for rank in reversed(range(size))]
        assert finished == [False] * (size - 1) + [True]  # the last one merges
        assert contents(folder) == complete
    for rank in range(3):  # a run resumes with another number of processes
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", Answerer(stop_after=2), batch_size=2, shard=(rank, 3))
    answerers = [Answerer(), Answerer()]
    for rank, answerer in enumerate(answerers):
        run(tmp_path / "run", answerer, shard=(rank, 2))
    assert sorted(answerers[0].asked + answerers[1].asked) == list(range(6, 23))
    assert contents(tmp_path / "run") == complete
    for environment, shard in (({}, (0, 1)), ({"RANK": "2", "WORLD_SIZE": "5"}, (2, 5))):
        monkeypatch.setattr(os, "environ", environment)
        assert shard_from_environment() == shard


def test_a_folder_that_is_not_of_this_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Answerer())
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r'model.*"abc".*"xyz"'):
        folder.open({**DESCRIPTION, "model": {"fingerprint": "xyz"}})
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


def test_a_run_in_progress_is_not_started_a_second_time(tmp_path: Path) -> None:
    folder, refused = RunFolder(tmp_path), Answerer()
    folder.open(DESCRIPTION)
    with only_writer(tmp_path / "parts", lock_name="00000.jsonl.lock"):
        with pytest.raises(ValueError, match="one run at a time"):
            run(tmp_path, refused)
    assert refused.asked == [] and run(tmp_path, Answerer())


def test_a_run_says_which_decoding_model_and_questions_are_in_effect(random_model_folder: Path, tmp_path: Path) -> None:
    """And not only what was given."""
    pipeline = Pipeline.load(random_model_folder, device="cpu")
    for typed, expected in (
        ({}, {"greedy": True}),
        ({"temperature": 0.0}, {"greedy": True}),  # how LLaVA's scripts say greedy
        ({"temperature": 0.2}, {"greedy": False, "temperature": 0.2}),
    ):
        assert benchmark_sampling(False, typed, 128) == {"max_new_tokens": 128, **expected}
    config, drawn = pipeline.config, describe_decoding(pipeline, GenEval(), {"top_k": 5})
    assert drawn["top_k"] == 5 and drawn["guidance"] == config.image_guidance
    assert (drawn["temperature"], drawn["top_p"]) == (config.image_temperature, config.image_top_p)

    def describe(text: str) -> dict:
        (tmp_path / "q.jsonl").write_text(text)
        return describe_run(pipeline, GQA(), tmp_path / "q.jsonl", counts=(2, 3), seed=7, sampling={"greedy": True})

    one = describe("{}")
    assert one == describe("{}") and one["questions"] != describe("{ }")["questions"]
    assert (one["items"], one["items_in_file"], one["seed"]) == (2, 3, 7)
    next(pipeline.model.parameters()).data[0] += 1
    assert describe("{}")["model"]["fingerprint"] != one["model"]["fingerprint"]


# ---- questions and answers that do not fit; parts ----

FILES = ["--questions", "q.jsonl", "--annotations", "gold.json"]
SCORE, SCORE_RUN = ["evaluate", "score", "a.jsonl", "--benchmark", "gqa", *FILES], ["evaluate", "score", "run", *FILES]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five questions with images, answers and gold, in the working directory."""
    monkeypatch.chdir(tmp_path)
    records = [{"question_id": str(n), "image": f"{n}.png", "text": f"question {n}"} for n in range(5)]
    write_jsonl(tmp_path / "q.jsonl", records)
    (tmp_path / "images").mkdir()
    for n in range(5):
        Image.new("RGB", (20, 30), "red").save(tmp_path / "images" / f"{n}.png")
    write_answers(tmp_path, *range(5))
    write_json(tmp_path / "gold.json", {str(n): {"answer": "yes"} for n in range(5)})
    return tmp_path


def write_answers(folder: Path, *numbers: int) -> None:
    records = [{"question_id": str(n), "prompt": f"question {n}", "text": "Yes." if n % 2 else "no"} for n in numbers]
    write_jsonl(folder / "a.jsonl", records)


def test_an_answers_file_from_elsewhere_is_scored_without_torch_and_a_part_is_called_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f"import sys; from mllm.cli.main import main; assert main({SCORE!r}) == 0\n"
    script += "assert not {'torch', 'transformers'} & set(sys.modules)"
    printed = run_program(sys.executable, "-c", script, folder=folder)
    result = read_json(folder / "result.json")
    assert result["scores"]["accuracy"]["value"] == pytest.approx(40.0)
    assert result["model"] == result["decoding"] == "unknown: the answers were made elsewhere"
    assert "gqa@exact-match-custom-5, all 5 items" in printed
    (folder / "result.json").unlink()
    write_answers(folder, 0, 1, 3)
    assert main(SCORE) == 2
    out, err = capsys.readouterr()
    assert out == "" and "got 3 answers" in err and "'2' (q.jsonl, line 3)" in err
    assert not (folder / "result.json").exists()
    assert main([*SCORE, "--partial"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "PARTIAL: 3 of 5 items" in lines[0] and all(line.endswith("PARTIAL") for line in lines[3:])
    result = read_json(folder / "result.json")
    assert (result["items_expected"], result["items_scored"], result["is_complete"]) == (5, 3, False)
    submit = ["evaluate", "submit", "a.jsonl", "--questions", "q.jsonl", "--benchmark", "gqa"]
    assert main([*submit, "--partial"]) == 0
    assert capsys.readouterr().out == "gqa_predictions.json  PARTIAL: 3 of 5\n"


def test_a_question_or_answer_that_does_not_fit_is_named(folder: Path) -> None:
    good, before = {"question_id": "7", "image": "7.png", "text": "x"}, contents(folder)
    for file, record in (
        ("a.jsonl", good | {"question_id": "1"}),  # the second answer to one question
        ("a.jsonl", good | {"question_id": "9"}),
        ("a.jsonl", good | {"question_id": "1", "text": None}),
        ("a.jsonl", {}),
        ("q.jsonl", good | {"question_id": "2"}),
        ("q.jsonl", good | {"image": ""}),
        ("q.jsonl", good | {"text": " "}),
        ("q.jsonl", good | {"question_id": None}),
    ):
        (folder / file).write_bytes(before[file] + json.dumps(record).encode())
        with pytest.raises(ValueError, match=f"{file}, line 6"):
            items = GQA().read_items(folder / "q.jsonl", None)
            match_answers(GQA(), items, read_lines(folder / "a.jsonl"), answers=folder / "a.jsonl")
        (folder / file).write_bytes(before[file])


def test_an_image_that_does_not_open_is_named_and_what_is_answered_is_a_part(
    folder: Path, random_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = folder / "images" / "3.png"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"q.jsonl, line 4.*3.png"):
        GQA().read_items(folder / "q.jsonl", folder / "images")
    image.write_bytes(b"")
    words = ["evaluate", "gqa", "--questions", "q.jsonl", "--images", "images", "--model", str(random_model_folder)]
    run = [*words, "--output", "run", "--max-new-tokens", "3", "--batch-size", "2"]
    assert main(run) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "q.jsonl, line 4" in error and "3.png" in error
    assert main(SCORE_RUN) == 2
    assert "3 of 5 answers" in capfd.readouterr().err  # what was answered before the error is kept
    image.write_bytes(content)
    assert main(run) == 0 and main(SCORE_RUN) == 0
    assert "all 5 items" in capfd.readouterr().out
    (folder / "q.jsonl").write_text((folder / "q.jsonl").read_text().replace("question 4", "question four"))
    assert main(SCORE_RUN) == 2
    assert "q.jsonl" in capfd.readouterr().err
