"""VQA v2: the official accuracy by hand, the EvalAI submission, and what does not fit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mllm.evaluation.protocol import ScoreOptions
from mllm.evaluation.understanding.answer_text import normalise
from mllm.evaluation.understanding.soft_accuracy import soft_accuracy
from mllm.evaluation.understanding.vqav2 import BENCHMARK, score, score_answer, submit
from tests.mllm.evaluation.understanding.scoring import answered, write_json, write_jsonl


def people(**said: int) -> list[str]:
    """Ten answers: word=count; underscores stand for spaces."""
    return [word.replace("_", " ") for word, count in said.items() for _ in range(count)]


# (answer as the model gives it, ten people, accuracy)
BY_HAND = [
    ("yes", people(yes=10), 1.0),
    ("yes", people(no=10), 0.0),
    ("yes", people(yes=1, no=9), 0.3),  # 9 of 10 leave-outs see one match: 9 * 1/3 / 10
    ("yes", people(yes=2, no=8), 0.6),  # 2 see one match, 8 see two: (2/3 + 16/3) / 10
    ("yes", people(yes=3, no=7), 0.9),  # 3 see two, 7 see three: (2 + 7) / 10
    ("yes", people(yes=4, no=6), 1.0),
    ("yes", people(yes=9, no=1), 1.0),
    ("no", people(yes=9, no=1), 0.3),
    ("Yes", people(yes=10), 1.0),  # lower case by the submission's normaliser
    ("Yes.", people(yes=10), 1.0),
    ("yes!", people(yes=10), 1.0),
    (" yes\n", people(yes=10), 1.0),
    ("two", people(two=5, three=5), 1.0),  # number words on both sides where people disagree
    ("2", people(two=5, three=5), 1.0),
    ("two", ["2"] * 10, 1.0),
    ("two", ["two"] * 10, 0.0),  # the trap: people agree, so nobody turns their "two" into the 2 that we submit
    ("a dog", ["a dog"] * 10, 0.0),  # likewise: our article is gone, theirs stays
    ("dog", ["a dog"] * 10, 0.0),
    ("a dog", ["a dog"] * 9 + ["cat"], 1.0),  # one cat, and all are cleaned
    ("the dog", ["dog", "a dog", "the dog", *["cat"] * 7], 0.9),
    ("dont know", ["don't know"] * 5 + ["no"] * 5, 1.0),
    ("don't know", ["dont know"] * 5 + ["no"] * 5, 1.0),
    ("1,000", ["1,000"] * 5 + ["1000"] * 5, 1.0),
    ("1,000", ["1,000"] * 10, 0.0),  # the submission has no comma, the agreeing people do
    ("black-white", ["black-white"] * 5 + ["black white"] * 5, 1.0),
    ("black/white", ["black and white"] * 5 + ["black white"] * 5, 1.0),
    ("", people(yes=10), 0.0),
    ("yes it is", people(yes=10), 0.0),
    ("YES", ["Yes"] * 10, 0.0),  # agreeing people keep their capital
    ("YES", ["Yes"] * 9 + ["no"], 1.0),
    ("it's red", ["it's red"] * 4 + ["red"] * 6, 0.0),  # EvalAI's processor splits "it 's", the server does not
]


@pytest.mark.parametrize(("text", "said", "expected"), BY_HAND, ids=[repr(case[0])[:20] for case in BY_HAND])
def test_accuracy_by_hand(text: str, said: list[str], expected: float) -> None:
    assert len(said) == 10
    assert score_answer(normalise(text), said) == pytest.approx(expected, abs=1e-12)


def test_an_answer_as_it_stands_is_not_normalised_where_people_agree() -> None:
    assert score_answer("two", ["two"] * 10) == 1.0
    assert score_answer("Two", ["two"] * 10) == 0.0


@pytest.mark.parametrize("count", range(11))
def test_leaving_each_person_out_equals_the_plain_loop(count: int) -> None:
    said = ["x"] * count + ["y"] * (10 - count)
    loop = sum(min(1, [s for j, s in enumerate(said) if j != i].count("x") / 3) for i in range(10)) / 10
    assert soft_accuracy("x", said) == pytest.approx(loop, abs=1e-12)


def annotate(path: Path, *all_said: list[str]) -> Path:
    records = [
        {
            "question_id": n,
            "answer_type": ["yes/no", "number", "other"][n % 3],
            "answers": [{"answer": answer, "answer_id": i + 1} for i, answer in enumerate(said)],
        }
        for n, said in enumerate(all_said)
    ]
    return write_json(path, {"annotations": records})


def test_scores_by_type_of_answer(tmp_path: Path) -> None:
    annotations = annotate(tmp_path / "a.json", people(yes=10), people(two=3, six=7), people(red=10), people(no=10))
    scores = score(answered("yes", "2", "blue", "no"), ScoreOptions(annotations=annotations))
    values = {name: (round(value.value, 9), value.count) for name, value in scores.scores.items()}
    assert values == {"overall": (72.5, 4), "yes/no": (100.0, 2), "number": (90.0, 1), "other": (0.0, 1)}
    assert (scores.headline, scores.protocol) == ("overall", "vqav2@evalai-normalised-custom-4")


def test_the_protocol_of_the_official_sizes_has_no_custom() -> None:
    assert BENCHMARK.protocol("evalai-normalised", count=214354) == "vqav2@evalai-normalised"
    assert BENCHMARK.protocol("evalai-normalised", count=107394) == "vqav2@evalai-normalised"


def test_the_submission_covers_the_whole_split(tmp_path: Path) -> None:
    split = write_jsonl(tmp_path / "test.jsonl", [{"question_id": n, "image": "x", "text": "?"} for n in range(5)])
    [path] = submit(answered("A Dog.", "two", first_id=1), ScoreOptions(split=split, folder=tmp_path))
    assert json.loads(path.read_text()) == [
        {"question_id": 0, "answer": ""},
        {"question_id": 1, "answer": "dog"},
        {"question_id": 2, "answer": "2"},
        {"question_id": 3, "answer": ""},
        {"question_id": 4, "answer": ""},
    ]


def test_a_submission_of_many_answers_is_quick(tmp_path: Path) -> None:
    """The official split has 447,793 questions and 107,394 answers: work per pair of them would never end."""
    count = 30_000
    split = write_jsonl(tmp_path / "test.jsonl", [{"question_id": n} for n in range(count)])
    begin = time.process_time()
    submit(answered(*["yes"] * count), ScoreOptions(split=split, folder=tmp_path))
    assert time.process_time() - begin < 10


def test_a_split_without_an_answered_question_is_refused(tmp_path: Path) -> None:
    split = write_jsonl(tmp_path / "test.jsonl", [{"question_id": 7}])
    with pytest.raises(ValueError, match="found no question 0, which was answered"):
        submit(answered("dog"), ScoreOptions(split=split, folder=tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "has no question 0: it is asked in questions, line 1"),
        ({}, "no list 'annotations'"),
        ({"annotations": [{"question_id": 0, "answers": [{"answer": "x"}] * 9}]}, "question 0 needs 10 .* found 9"),
        ({"annotations": [{"question_id": 0, "answers": [{"said": "x"}] * 10}]}, "needs 10 human answers: found 0"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path: Path, content: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(answered("yes"), ScoreOptions(annotations=write_json(tmp_path / "a.json", content)))
