"""The runner: stopped and continued = uninterrupted, several processes = one, any batch size gives the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.evaluation.protocol import Item
from mllm.evaluation.run import RunFolder, Share, run_items
from tests.mllm.evaluation.runs import DESCRIPTION, Answerer, contents, make_items, run

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from mllm.evaluation.run import RunFolder

with RunFolder(Path(sys.argv[1])).hold_part(0):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted run of one process leaves."""
    assert run(tmp_path / "whole", Answerer())
    return contents(tmp_path / "whole")


def test_answers_stand_in_the_order_of_the_questions(whole: dict[str, bytes]) -> None:
    answers = [json.loads(line) for line in whole["answers.jsonl"].splitlines()]
    assert [answer["question_id"] for answer in answers] == list(range(23))
    assert answers[7]["text"] == "question 7 seed 12"  # the run's seed plus its number
    assert set(answers[7]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert len({answer["answer_id"] for answer in answers}) == 23


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_stopped(
    tmp_path: Path, whole: dict[str, bytes], batches: int
) -> None:
    first, second = Answerer(stop_after=batches), Answerer()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", first)
    assert not (tmp_path / "run" / "answers.jsonl").exists()
    assert run(tmp_path / "run", second)
    assert contents(tmp_path / "run") == whole
    assert sorted(first.asked + second.asked) == list(range(23))  # nothing twice, nothing left out


def test_a_line_cut_off_by_a_kill_is_done_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Answerer(stop_after=3))
    part = RunFolder(tmp_path / "run").part_file(0)
    part.write_bytes(part.read_bytes()[:-9])
    again = Answerer()
    assert run(tmp_path / "run", again)
    assert again.asked == list(range(11, 23))
    assert contents(tmp_path / "run") == whole


def test_a_finished_run_asks_nothing(tmp_path: Path, whole: dict[str, bytes]) -> None:
    run(tmp_path / "run", Answerer())
    again = Answerer()
    assert run(tmp_path / "run", again)
    assert again.asked == [] and contents(tmp_path / "run") == whole


@pytest.mark.parametrize("size", [2, 3, 30])
def test_several_processes_leave_what_one_leaves(tmp_path: Path, whole: dict[str, bytes], size: int) -> None:
    finished = [run(tmp_path / "run", Answerer(), rank=rank, size=size) for rank in reversed(range(size))]
    assert finished == [False] * (size - 1) + [True]  # whoever comes last merges
    assert contents(tmp_path / "run") == whole


def test_a_run_may_go_on_with_another_number_of_processes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for rank in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", Answerer(stop_after=1), batch_size=2, rank=rank, size=3)
    answerers = [Answerer(), Answerer()]
    for rank, answerer in enumerate(answerers):
        run(tmp_path / "run", answerer, rank=rank, size=2)
    assert sorted(answerers[0].asked + answerers[1].asked) == list(range(6, 23))
    assert contents(tmp_path / "run") == whole


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_nothing(tmp_path: Path, whole: dict[str, bytes], batch_size: int) -> None:
    assert run(tmp_path / "run", Answerer(), batch_size=batch_size)
    assert contents(tmp_path / "run") == whole


def test_pictures_are_written_as_png_and_survive_a_stop(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", Answerer(pictures=True))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Answerer(pictures=True, stop_after=2))
    assert run(tmp_path / "run", Answerer(pictures=True))
    files = contents(tmp_path / "run")
    assert files == contents(tmp_path / "whole")
    assert sum(data.startswith(b"\x89PNG") for data in files.values()) == 23
    assert json.loads(files["answers.jsonl"].splitlines()[3])["image"] == "images/00004.png"


def test_processes_are_counted_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Share.from_environment() == Share(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert list(Share.from_environment().indices(13)) == [2, 7, 12]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start them with torchrun"):
        Share.from_environment()


# ---- what is refused ----


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Answerer())
    with pytest.raises(ValueError, match=r'belongs to another run: found model .*"abc".* there, .*"xyz".* here'):
        RunFolder(tmp_path).open({**DESCRIPTION, "model": {"fingerprint": "xyz"}})
    with pytest.raises(ValueError, match="found limit null there, 5 here"):
        RunFolder(tmp_path).open({**DESCRIPTION, "limit": 5})


def test_answers_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    run(tmp_path, Answerer())
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="whose are they"):
        run(tmp_path, Answerer())


def test_a_damaged_part_is_named_with_its_line(tmp_path: Path) -> None:
    run(tmp_path, Answerer())
    part = RunFolder(tmp_path).part_file(0)
    part.write_bytes(part.read_bytes().replace(b'{"index": 3', b'{"ind ex: 3'))
    with pytest.raises(ValueError, match=r"00000.jsonl, line 4 is no JSON"):
        run(tmp_path, Answerer())


def test_a_run_that_is_going_on_is_not_started_a_second_time(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Another process holds the part; when it is killed, the system gives the part free."""
    folder = RunFolder(tmp_path / "run")
    folder.open(DESCRIPTION)
    command = [sys.executable, "-c", HOLDER, str(folder.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        refused = Answerer()
        with pytest.raises(ValueError, match="belongs to a run that is going on"):
            run(tmp_path / "run", refused)
        assert refused.asked == []
        other.kill()
    assert run(tmp_path / "run", Answerer())
    assert contents(tmp_path / "run") == whole


def test_two_answers_to_one_item_are_refused_unless_they_agree(tmp_path: Path) -> None:
    run(tmp_path, Answerer())
    folder = RunFolder(tmp_path)
    folder.append(7, [{"index": 3, "text": "question 3 seed 8"}])
    assert run(tmp_path, Answerer())
    folder.append(7, [{"index": 4, "text": "something else"}])
    with pytest.raises(ValueError, match="answers item 4 differently"):
        run(tmp_path, Answerer())


def test_an_error_names_the_item_it_is_about(tmp_path: Path) -> None:
    def answer(items: list[Item], seeds: list[int]) -> list[str]:
        if any(item.question_id == 6 for item in items):
            raise ValueError("cannot read picture x.png")
        return ["yes" for _ in items]

    with pytest.raises(ValueError, match=r"questions.jsonl, line 7: cannot read picture x.png"):
        run_items(make_items(9), answer, RunFolder(tmp_path), description=DESCRIPTION, batch_size=4)
    assert sorted(RunFolder(tmp_path).read_parts()) == [0, 1, 2, 3]  # what was done before is kept
