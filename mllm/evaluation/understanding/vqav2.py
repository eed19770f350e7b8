"""VQA v2: short answers to open questions about COCO pictures (Goyal et al. 2017).

Two ends: the file that the EvalAI server takes for test-dev (every id of the test split, "" where nothing was asked,
answers normalised), and the score on a split whose answers are public (val). The score is the official one: the ten
answers and ours go through the server's clean-up only if the ten disagree; ours went through EvalAI's normaliser
before, as in a submission.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm.evaluation.intervals import mean_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, Score, ScoreOptions, Scores, read_questions
from mllm.evaluation.understanding.answer_text import normalise, tidy
from mllm.evaluation.understanding.soft_accuracy import check_people, soft_accuracy
from mllm.files import need_field, read_json, read_lines, write_json

TYPES = ("yes/no", "number", "other")


def score_answer(answer: str, people: Sequence[str]) -> float:
    """Official accuracy, 0 to 1, of one answer as it stands in a submission."""
    said = [flatten(text) for text in people]
    answer = flatten(answer)
    if len(set(said)) > 1:
        said, answer = [tidy(text) for text in said], tidy(answer)
    return soft_accuracy(answer, said)


def flatten(text: str) -> str:
    """One line, no outer spaces."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def read_annotations(path: Path) -> dict[int | str, dict]:
    """Published annotations by question id."""
    data = read_json(path)
    listed = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise ValueError(
            f"{path} holds no annotations: found no list 'annotations'; give v2_mscoco_val2014_annotations"
        )
    return {record["question_id"]: record for record in listed}


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Overall accuracy and that of each type of answer, as percentages."""
    assert options.annotations is not None, "the scorer of VQAv2 needs annotations"
    annotations = read_annotations(options.annotations)
    values: dict[str, list[float]] = {"overall": []} | {name: [] for name in TYPES}
    for one in answered:
        annotation = annotations.get(one.item.question_id)
        if annotation is None:
            raise ValueError(
                f"{options.annotations} has no question {one.item.question_id!r}: it is asked in {one.item.where}; "
                "give the annotations of this split (those of test-dev are not public: use mllm evaluate submit)"
            )
        people = check_people(annotation["answers"], f"{options.annotations}, question {one.item.question_id}")
        value = score_answer(normalise(one.text), people)
        values["overall"].append(value)
        values.setdefault(annotation.get("answer_type", "other"), []).append(value)
    scores: dict[str, Score] = {name: mean_with_interval(list_) for name, list_ in values.items() if list_}
    return Scores(BENCHMARK.protocol("evalai-normalised", count=len(answered)), "overall", scores)


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """The file for EvalAI: a list of {"question_id", "answer"} over the whole split."""
    assert options.folder is not None, "a submission needs a folder"
    given = {one.item.question_id: normalise(one.text) for one in answered}
    ids = dict.fromkeys(given)
    if options.split is not None:
        ids = dict.fromkeys(need_field(line, "question_id") for line in read_lines(options.split))
        if unknown := [id_ for id_ in given if id_ not in ids]:
            raise ValueError(
                f"{options.split} is not the whole split: found no question {unknown[0]!r}, which was answered; give "
                "the file of all test questions"
            )
    path = options.folder / "vqav2_submission.json"
    write_json(path, [{"question_id": id_, "answer": given.get(id_, "")} for id_ in ids])
    return [path]


BENCHMARK = Benchmark(
    name="vqav2",
    summary="VQA v2: llava_vqav2_mscoco_*.jsonl; scored with v2_mscoco_val2014_annotations.json",
    read_items=read_questions,
    score=score,
    submit=submit,
    official_counts=(107394, 214354),  # test-dev, val
)
