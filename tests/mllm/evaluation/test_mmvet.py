"""MM-Vet: the judge's prompt, reading its grades by hand, a judge on this machine, interrupting and resuming."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mllm.evaluation.mmvet import ASK_AGAIN, GRADES_FILE, PROMPT, Judge, MMVet, judge_question, read_grade
from mllm.evaluation.protocol import ScoreOptions, Scores
from tests.mllm.evaluation.builders import FakeJudge, answered, exact_grade, serve, write_json

TRUTH = {
    "v1_0": {"question": "What color?", "answer": "red", "capability": ["rec"]},
    "v1_1": {"question": "How many?", "answer": "2", "capability": ["rec", "math"]},
    "v1_2": {"question": "What does it say?", "answer": "stop", "capability": ["ocr"]},
}
Score = Callable[..., Scores]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    annotations = write_json(tmp_path / "mm-vet.json", TRUTH)

    def score(judge: FakeJudge, *texts: str, first_id: int = 0, **fields: Any) -> Scores:
        asked = Judge(model="judge-7", url=judge.url, **fields)
        options = ScoreOptions(folder=tmp_path, judge=asked)
        return MMVet().score(answered(*texts, first_id=first_id), annotations, options)

    return score


def total(scores: Scores) -> float:
    return scores.scores["total"].value


def test_the_prompt_is_the_published_one_and_a_grade_is_read_as_the_evaluator_reads_it() -> None:
    """The hash of the prompt of the official evaluator; any change of it would change scores."""
    few_shot = PROMPT.read_text()
    assert hashlib.sha256(few_shot.encode()).hexdigest()[:16] == "d1b3e0a5b4e72c88"
    assert judge_question("What?", "a<AND>b<OR>c", "a cat") == few_shot + "\nWhat? | a <AND> b <OR> c | a cat | "
    assert judge_question("What?", "a", "b", again=True).endswith("What? | a | b | " + ASK_AGAIN)
    for content, grade in {
        **{"0.0": 0.0, "1": 1.0, "1.": 1.0, ".5": 0.5, "1e-1": 0.1, "0.7 because": 0.7, "0.7 | 0.8": 0.7, "\n0.7": 0.7},
        **dict.fromkeys(["1.1", "-0.1", "0,5", "50%", "half", "", "Score: 0.5", "0.5.", "nan", "inf", "0.5|"]),
        " 0.7": None,  # the first word is empty
    }.items():
        assert read_grade(content) == grade, content


def test_scores_by_capability_and_asks_as_the_evaluator_does(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
    with serve(exact_grade) as judge:
        scores = score(judge, "red", "3", "stop")
    found = {name: (pytest.approx(value.value), value.count) for name, value in scores.scores.items()}
    assert found == {"total": (100 * 2.3 / 3, 3), "rec": (65.0, 2), "math": (30.0, 1), "ocr": (100.0, 1)}
    address = judge.url.removeprefix("http://").removesuffix("/v1")
    about = {"asked": "judge-7", "at": address, "answered": ["fake-judge-2026-11-01"], "runs": 1, "not_a_number": 0}
    assert scores.judge == {**about, "prompt": "mm-vet few-shot"}
    assert scores.protocol == "mmvet@judge-judge-7-custom-3"
    request = judge.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-7", 0.0, 3)
    assert request["messages"] == [{"role": "user", "content": judge_question("What color?", "red", "red")}]
    assert judge.headers[0]["authorization"] == "Bearer secret-7"
    assert "secret-7" not in (tmp_path / GRADES_FILE).read_text()
    assert Judge(url="https://key@host.org/v1").address == "host.org"
    [path] = MMVet().submit(answered("red", "two dogs"), tmp_path, annotations=None, split=None)
    assert json.loads(path.read_text()) == {"v1_0": "red", "v1_1": "two dogs"}


def test_runs_are_averaged_and_a_judge_that_gives_no_number_or_is_busy_is_asked_again(score: Score) -> None:
    grades = iter(["0.2", "1.0", "0.6", "1.0"])  # run 0: two answers, run 1: two answers
    with serve(lambda request: (200, next(grades))) as judge:
        scores = score(judge, "red", "2", runs=2)
    assert total(scores) == pytest.approx(70.0)
    assert scores.extra["totals of runs"] == [pytest.approx(60.0), pytest.approx(80.0)]
    assert scores.extra["standard deviation of runs"] == pytest.approx(10.0)
    with serve(lambda request: (200, "well")) as judge:
        scores = score(judge, "blue")
    assert total(scores) == 0.0 and scores.judge is not None and scores.judge["not_a_number"] == 1
    assert [request["temperature"] for request in judge.requests] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert all(request["messages"][0]["content"].endswith(ASK_AGAIN) for request in judge.requests[1:])
    replies = iter([(200, "well"), (429, {"error": "busy"}), (503, {"error": "busy"}), (200, "0.4")])
    with serve(lambda request: next(replies)) as judge:
        assert total(score(judge, "green")) == pytest.approx(40.0)


def test_an_interrupted_scoring_resumes(score: Score, tmp_path: Path) -> None:
    fail_after = 2

    def reply(request: dict) -> tuple[int, Any]:
        return exact_grade(request) if len(judge.requests) <= fail_after else (401, {"error": "expired"})

    texts = ("red", "2", "stop")
    with serve(reply) as judge:
        with pytest.raises(ValueError, match="401"):
            score(judge, *texts)
        with (tmp_path / GRADES_FILE).open("a") as grades:
            grades.write('{"name": "v1_2", "ru')  # and the process was killed while writing
        fail_after = 99
        asked = len(judge.requests)
        for _ in range(2):
            assert total(score(judge, *texts)) == 100.0
            assert len(judge.requests) == asked + 1  # the second time all grades are there
        assert total(score(judge, "red", "3", "stop")) == pytest.approx(100 * 2.3 / 3)
        assert len(judge.requests) == asked + 2  # another answer is graded again
        with serve(lambda request: (200, "0.2")) as other:
            assert total(score(other, *texts)) == pytest.approx(20.0)  # another judge, too


def test_what_is_no_judge_and_what_does_not_fit_is_named(score: Score) -> None:
    for body in ({"detail": "no"}, b"<html>", {"choices": []}):
        with serve(lambda request, body=body: (200, body)) as other, pytest.raises(ValueError, match=other.url):
            score(other, "red")
    nobody = FakeJudge(url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=nobody.url):
        score(nobody, "red", max_retries=1)
    with pytest.raises(ValueError, match=r"'v1_5'.*questions, line 1"):
        score(nobody, "red", first_id=5)
