"""MM-Vet: open answers graded from 0 to 1 by a language model (Yu et al. 2023), by capability.

Without a judge only the submission file {"v1_0": answer, ...} can be written. With one, every answer is graded as by
the official evaluator: its few-shot prompt, three tokens, temperature 0, up to four more attempts at rising temperature
where the answer is no number, and 0 after that. Grades go to a file as they come, so a stopped run goes on. Every
result names the judge, because scores of different judges are not comparable.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mllm.evaluation.intervals import mean_with_interval
from mllm.evaluation.protocol import Answered, Benchmark, Item, Score, ScoreOptions, Scores, read_questions
from mllm.evaluation.understanding.judge import Judge
from mllm.evaluation.understanding.judge_prompt import judge_question, read_grade
from mllm.files import as_line, drop_torn_line, read_json, read_lines, write_json

GRADE_TOKENS = 3
MAX_TRIES = 5  # the evaluator asks a sixth time but does not read that answer
GRADES_FILE = "mmvet_grades.jsonl"


def name_of(item: Item) -> str:
    """The question as mm-vet.json names it: v1_0, v1_1, ..."""
    name = str(item.question_id)
    return name if name.startswith("v1_") else f"v1_{name}"


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """The file that the official evaluators take."""
    assert options.folder is not None, "a submission needs a folder"
    path = options.folder / "mmvet_submission.json"
    write_json(path, {name_of(one.item): one.text for one in answered})
    return [path]


def read_truth(path: Path) -> dict[str, dict]:
    """mm-vet.json: name -> {"question", "answer", "capability", ...}."""
    data = read_json(path)
    needed = {"question", "answer", "capability"}
    if not isinstance(data, dict) or not all(isinstance(v, dict) and needed <= set(v) for v in data.values()):
        raise ValueError(f"{path} holds no MM-Vet questions: found no question, answer, capability; give mm-vet.json")
    return data


def grade_answer(judge: Judge, question: str, truth: str, prediction: str) -> dict[str, Any]:
    """One grade, with what the judge said and who it says it is."""
    reply = judge.ask(judge_question(question, truth, prediction), temperature=0.0, max_tokens=GRADE_TOKENS)
    grade, tries = read_grade(reply.content), 1
    while grade is None and tries < MAX_TRIES:
        again = judge_question(question, truth, prediction, again=True)
        reply = judge.ask(again, temperature=0.5 * (tries - 1), max_tokens=GRADE_TOKENS)
        grade, tries = read_grade(reply.content), tries + 1
    return {"grade": grade or 0.0, "is_number": grade is not None, "content": reply.content, "model": reply.model}


def score(answered: Sequence[Answered], options: ScoreOptions) -> Scores:
    """Mean grade in all and by capability, as percentages; several runs of the judge are averaged per answer."""
    assert options.annotations is not None and options.folder is not None, "MM-Vet needs annotations and a folder"
    judge, truth = options.judge, read_truth(options.annotations)
    if not isinstance(judge, Judge):
        raise ValueError(
            "MM-Vet is graded by a judge: found none; give --judge-url and --judge-model, or write the file for the "
            "official evaluator with mllm evaluate submit"
        )
    for one in answered:
        if name_of(one.item) not in truth:
            raise ValueError(
                f"{options.annotations} has no question {name_of(one.item)!r}: it is asked in {one.item.where}; "
                "give the mm-vet.json of these questions"
            )
    grades = collect_grades(answered, truth, judge, options.folder / GRADES_FILE)
    return score_grades(answered, truth, grades, judge)


def collect_grades(
    answered: Sequence[Answered], truth: dict[str, dict], judge: Judge, path: Path
) -> dict[tuple[str, int], dict[str, Any]]:
    """Grades by (name, run); those in the file for the same answers and the same judge are not asked for again."""
    drop_torn_line(path)
    asked = {"asked_model": judge.model, "asked_at": judge.address}
    texts = {name_of(one.item): one.text for one in answered}
    grades = {
        (record["name"], record["run"]): record
        for record in (line.record for line in (read_lines(path) if path.is_file() else []))
        if texts.get(record["name"]) == record["prediction"] and asked.items() <= record.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(name, run) for run in range(judge.runs) for name in texts if (name, run) not in grades]
    with path.open("a", encoding="utf-8") as file:
        for name, run in tqdm(wanted, desc="grades", unit="answer"):
            entry = truth[name]
            grade = grade_answer(judge, entry["question"], entry["answer"], texts[name])
            record = {"name": name, "run": run, **asked, "prediction": texts[name], **grade}
            file.write(as_line(record))
            file.flush()
            grades[name, run] = record
    return grades


def score_grades(
    answered: Sequence[Answered], truth: dict[str, dict], grades: dict[tuple[str, int], dict[str, Any]], judge: Judge
) -> Scores:
    """The scores of grades that are all there."""
    names, runs = [name_of(one.item) for one in answered], range(judge.runs)
    by_group: dict[str, list[float]] = defaultdict(list)
    for name in names:
        mean = statistics.fmean(grades[name, run]["grade"] for run in runs)
        by_group["total"].append(mean)
        for capability in dict.fromkeys(truth[name]["capability"]):
            by_group[capability].append(mean)
    scores: dict[str, Score] = {group: mean_with_interval(values) for group, values in by_group.items()}
    totals = [100 * statistics.fmean(grades[name, run]["grade"] for name in names) for run in runs]
    mine = [grades[name, run] for name in names for run in runs]
    judged_by = {
        "asked": judge.model,
        "at": judge.address,
        "answered": sorted({record["model"] for record in mine}),
        "runs": judge.runs,
        "prompt": "mm-vet few-shot",
        "not_a_number": sum(not record["is_number"] for record in mine),
    }
    extra = {"totals of runs": totals, "standard deviation of runs": statistics.pstdev(totals)}
    protocol = BENCHMARK.protocol(f"judge-{judge.model}", count=len(answered))
    return Scores(protocol, "total", scores, extra=extra, judge=judged_by)


BENCHMARK = Benchmark(
    name="mmvet",
    summary="MM-Vet: llava-mm-vet.jsonl; graded by a judge with mm-vet.json",
    read_items=read_questions,
    score=score,
    submit=submit,
    official_counts=(218,),
    max_new_tokens=1024,
)
