"""MM-Vet: the judge's prompt, reading its grades by hand, a judge on this machine, stopping and going on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mllm.evaluation.protocol import ScoreOptions
from mllm.evaluation.understanding.judge import Judge
from mllm.evaluation.understanding.judge_prompt import ASK_AGAIN, FEW_SHOT, judge_question, read_grade
from mllm.evaluation.understanding.mmvet import BENCHMARK, GRADES_FILE, name_of, score, submit
from tests.mllm.evaluation.fake_judge import FakeJudge, exact_grade, serve
from tests.mllm.evaluation.understanding.scoring import answered, as_item, write_json

PROMPT_HASH = "d1b3e0a5b4e72c88"

# (what the judge says, the grade; None: ask again)
BY_HAND = [
    ("0.0", 0.0),
    ("0", 0.0),
    ("0.1", 0.1),
    ("0.5", 0.5),
    ("1.0", 1.0),
    ("1", 1.0),
    ("1.", 1.0),
    (".5", 0.5),
    ("0.55", 0.55),
    ("0.7 because", 0.7),
    ("0.7\n", 0.7),
    ("0.7 | 0.8", 0.7),
    (" 0.7", None),  # the first word is empty
    ("\n0.7", 0.7),
    ("1.1", None),
    ("-0.1", None),
    ("10", None),
    ("0,5", None),
    ("50%", None),
    ("half", None),
    ("", None),
    ("Score: 0.5", None),
    ("0.5.", None),
    ("nan", None),
    ("inf", None),
    ("1e-1", 0.1),
    ("0.5|", None),
]


@pytest.mark.parametrize(("content", "grade"), BY_HAND, ids=[repr(content) for content, _ in BY_HAND])
def test_a_grade_is_read_as_the_evaluator_reads_it(content: str, grade: float | None) -> None:
    assert read_grade(content) == grade


def test_the_few_shot_prompt_is_the_published_one() -> None:
    """The hash of the prompt of the official evaluator; any change of it would change scores."""
    assert hashlib.sha256(FEW_SHOT.encode()).hexdigest()[:16] == PROMPT_HASH
    assert "Question | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\n" in FEW_SHOT


def test_the_last_line_waits_for_the_grade() -> None:
    asked = judge_question("What?", "a<AND>b<OR>c", "a cat")
    assert asked == FEW_SHOT + "\nWhat? | a <AND> b <OR> c | a cat | "
    assert judge_question("What?", "a", "b", again=True).endswith("What? | a | b | " + ASK_AGAIN)


TRUTH = {
    "v1_0": {"question": "What color?", "answer": "red", "capability": ["rec"]},
    "v1_1": {"question": "How many?", "answer": "2", "capability": ["rec", "math"]},
    "v1_2": {"question": "What does it say?", "answer": "stop", "capability": ["ocr"]},
}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_json(tmp_path / "mm-vet.json", TRUTH)


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    with serve(exact_grade) as judge:
        yield judge


def options(annotations: Path, judge: FakeJudge, **fields: Any) -> ScoreOptions:
    return ScoreOptions(
        annotations=annotations,
        folder=annotations.parent,
        judge=Judge(model="judge-7", url=judge.url, pause=0.0, **fields),
    )


def test_scores_by_capability_and_names_the_judge(annotations: Path, judge: FakeJudge) -> None:
    scores = score(answered("red", "3", "stop"), options(annotations, judge))
    values = {name: (value.value, value.count) for name, value in scores.scores.items()}
    assert values == {
        "total": (pytest.approx(100 * 2.3 / 3), 3),
        "rec": (pytest.approx(65.0), 2),
        "math": (pytest.approx(30.0), 1),
        "ocr": (pytest.approx(100.0), 1),
    }
    assert scores.judge == {
        "asked": "judge-7",
        "at": judge.url.removeprefix("http://").removesuffix("/v1"),
        "answered": ["fake-judge-2026-11-01"],
        "runs": 1,
        "prompt": "mm-vet few-shot",
        "not_a_number": 0,
    }
    assert scores.protocol == "mmvet@judge-judge-7-custom-3"


def test_the_judge_is_asked_as_the_evaluator_asks(
    annotations: Path, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
    score(answered("red"), options(annotations, judge))
    [request], [headers] = judge.requests, judge.headers
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-7", 0.0, 3)
    assert request["messages"] == [{"role": "user", "content": judge_question("What color?", "red", "red")}]
    assert headers["Authorization"] == "Bearer secret-7"
    assert "secret-7" not in (annotations.parent / GRADES_FILE).read_text()


def test_another_judge_grades_anew(annotations: Path, judge: FakeJudge) -> None:
    score(answered("red"), options(annotations, judge))
    with serve(lambda request: (200, "0.2")) as other:
        assert score(answered("red"), options(annotations, other)).scores["total"].value == pytest.approx(20.0)
    assert score(answered("red"), options(annotations, judge)).scores["total"].value == 100.0
    assert len(judge.requests) == 1  # its grade was kept
    assert Judge(url="https://key@host.org/v1").address == "host.org"


def test_runs_are_averaged_and_their_spread_is_told(annotations: Path) -> None:
    grades = iter(["0.2", "1.0", "0.6", "1.0"])  # run 0: two answers, run 1: two answers
    with serve(lambda request: (200, next(grades))) as judge:
        scores = score(answered("red", "2"), options(annotations, judge, runs=2))
    assert scores.scores["total"].value == pytest.approx(70.0)
    assert scores.extra["totals of runs"] == [pytest.approx(60.0), pytest.approx(80.0)]
    assert scores.extra["standard deviation of runs"] == pytest.approx(10.0)


def test_a_judge_that_gives_no_number_is_asked_again_and_then_grades_nothing(annotations: Path) -> None:
    with serve(lambda request: (200, "well")) as judge:
        scores = score(answered("red"), options(annotations, judge))
    assert scores.scores["total"].value == 0.0 and scores.judge is not None and scores.judge["not_a_number"] == 1
    assert [request["temperature"] for request in judge.requests] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert all(request["messages"][0]["content"].endswith(ASK_AGAIN) for request in judge.requests[1:])


def test_the_first_number_counts(annotations: Path) -> None:
    contents = iter(["well", "hm", "0.4"])
    with serve(lambda request: (200, next(contents))) as judge:
        assert score(answered("red"), options(annotations, judge)).scores["total"].value == pytest.approx(40.0)


def test_a_stopped_scoring_goes_on(annotations: Path) -> None:
    fail_after = 2

    def reply(request: dict) -> tuple[int, Any]:
        return exact_grade(request) if len(judge.requests) <= fail_after else (401, {"error": "expired"})

    texts = answered("red", "2", "stop")
    with serve(reply) as judge:
        with pytest.raises(ValueError, match="does not answer: found status 401.*grades so far are kept"):
            score(texts, options(annotations, judge))
        grades = annotations.parent / GRADES_FILE
        grades.write_text(grades.read_text() + '{"name": "v1_2", "ru')  # and the process was killed while writing
        fail_after = 99
        asked = len(judge.requests)
        scores = score(texts, options(annotations, judge))
        assert len(judge.requests) == asked + 1 and scores.scores["total"].value == 100.0
        assert score(texts, options(annotations, judge)).scores == scores.scores
        assert len(judge.requests) == asked + 1  # all grades are there
        changed = answered("red", "3", "stop")
        assert score(changed, options(annotations, judge)).scores["total"].value == pytest.approx(100 * 2.3 / 3)
        assert len(judge.requests) == asked + 2  # another answer is graded anew


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_judge_is_asked_again(annotations: Path, status: int) -> None:
    statuses = iter([status, status, 200])

    def reply(request: dict) -> tuple[int, Any]:
        status = next(statuses)
        return exact_grade(request) if status == 200 else (status, {"error": "busy"})

    with serve(reply) as judge:
        assert score(answered("red"), options(annotations, judge)).scores["total"].value == 100.0
    assert len(judge.requests) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [({"detail": "no"}, "does not speak OpenAI's protocol"), (b"<html>", "no JSON"), ({"choices": []}, "not speak")],
)
def test_a_server_that_is_no_judge_is_named(annotations: Path, body: Any, message: str) -> None:
    with serve(lambda request: (200, body)) as judge, pytest.raises(ValueError, match=message):
        score(answered("red"), options(annotations, judge))


def test_an_address_where_nobody_listens_is_named(annotations: Path) -> None:
    judge = Judge(url="http://127.0.0.1:9/v1", attempts=2, pause=0.0)
    with pytest.raises(ValueError, match="the judge at http://127.0.0.1:9/v1 does not answer"):
        score(answered("red"), ScoreOptions(annotations=annotations, folder=annotations.parent, judge=judge))


def test_the_submission_has_the_official_names(tmp_path: Path) -> None:
    [path] = submit(answered("red", "two dogs"), ScoreOptions(folder=tmp_path))
    assert json.loads(path.read_text()) == {"v1_0": "red", "v1_1": "two dogs"}
    assert name_of(as_item("v1_17")) == "v1_17"
    assert BENCHMARK.max_new_tokens == 1024


def test_what_does_not_fit_is_refused(annotations: Path, judge: FakeJudge) -> None:
    with pytest.raises(ValueError, match="no question 'v1_5': it is asked in questions, line 1"):
        score(answered("red", first_id=5), options(annotations, judge))
    with pytest.raises(ValueError, match="graded by a judge: found none"):
        score(answered("red"), ScoreOptions(annotations=annotations, folder=annotations.parent))
    write_json(annotations, {"v1_0": {"question": "x"}})
    with pytest.raises(ValueError, match="holds no MM-Vet questions"):
        score(answered("red"), options(annotations, judge))
    with pytest.raises(ValueError, match="no URL: found 'localhost'"):
        Judge(url="localhost")
    with pytest.raises(ValueError, match="found 0 runs"):
        Judge(runs=0)
