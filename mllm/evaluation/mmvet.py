"""MM-Vet: open answers graded from 0 to 1 by an LLM judge (Yu et al. 2023), by capability.

The judge is any OpenAI-compatible server; the key comes from the environment (OPENAI_API_KEY) and is never written
anywhere. Every answer is graded as by the official evaluator: its few-shot prompt, three tokens, temperature 0, up to
four more attempts at rising temperature if the reply is not a number, and 0 after that. Grades are appended to a file
as they come, so that an interrupted scoring resumes. Every result names the judge, because scores of different judges
are not comparable; without one, only the submission file {"v1_0": answer, ...} can be written.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from mllm.evaluation.intervals import means
from mllm.evaluation.protocol import (
    Answers,
    Benchmark,
    BenchmarkItem,
    ScoreOptions,
    Scores,
    find_annotation,
    read_mapping,
)
from mllm.files import append_lines, kept_lines, read_text, write_json

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-4-0613"
"""MM-Vet's judge, retired since; the result records which model replied."""
KEY = "OPENAI_API_KEY"
GRADE_TOKENS = 3
MAX_TRIES = 5  # the official evaluator asks a sixth time but does not read that reply
GRADES_FILE = "mmvet_grades.jsonl"

PROMPT = Path(__file__).with_name("mmvet_prompt.txt")
"""The official evaluator's few-shot prompt."""
ASK_AGAIN = "\nPredict the correctness of the answer (digit): "
"""Appended after a reply that was not a number."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    model: str = DEFAULT_MODEL
    url: str = DEFAULT_URL
    runs: int = 1
    """How often every answer is graded; MM-Vet's paper has 5."""
    timeout: float = 60.0
    """Seconds to wait for one reply."""
    max_retries: int = 5
    """Further attempts when the server is busy or unreachable, with growing pauses."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"judge URL must be http://host:port/v1, got {self.url!r}")
        if self.runs < 1:
            raise ValueError(f"judge runs must be >= 1, got {self.runs}")

    @property
    def address(self) -> str:
        """Host and port, without any secret that a URL may hold."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    @cached_property
    def client(self) -> OpenAI:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ImportError(f"a judge needs openai ({error}); pip install 'mllm-toolkit[eval]'") from error
        key = os.environ.get(KEY, "none")
        return OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.max_retries)

    def ask(self, question: str, *, temperature: float) -> tuple[str, str]:
        """The reply, and the model as the server names it."""
        from openai import OpenAIError

        try:
            completion = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": question}],
                temperature=temperature,
                max_tokens=GRADE_TOKENS,
            )
            return completion.choices[0].message.content or "", completion.model or self.model
        except OpenAIError as error:
            raise ValueError(
                f"judge at {self.url} must answer, got {error}; check address, model and {KEY} (grades are kept)"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"judge at {self.url} must be an OpenAI-compatible server ({error})") from error


def judge_question(question: str, truth: str, prediction: str, *, again: bool = False) -> str:
    few_shot, spaced = read_text(PROMPT), truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return few_shot + "\n" + " | ".join((question, spaced, prediction, "")) + (ASK_AGAIN if again else "")


def read_grade(content: str) -> float | None:
    """The first word as a grade from 0 to 1; None if it is not one."""
    try:
        grade = float(content.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def grade_answer(judge: Judge, question: str, truth: str, prediction: str) -> dict[str, Any]:
    for tries in range(MAX_TRIES):
        asked = judge_question(question, truth, prediction, again=tries > 0)
        content, model = judge.ask(asked, temperature=0.5 * max(tries - 1, 0))
        if (grade := read_grade(content)) is not None:
            break
    return {"grade": grade or 0.0, "is_number": grade is not None, "content": content, "model": model}


Grades = dict[tuple[str, int], dict[str, Any]]
"""Records by (name of the question, run of the judge)."""


class MMVet(Benchmark):
    """218 open questions that need several capabilities at once."""

    name = "mmvet"
    annotations = "mm-vet.json"
    official_counts = (218,)
    max_new_tokens = 1024

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        """Mean grade in total and by capability, in percent; several runs of the judge are averaged per answer."""
        judge = options.judge
        if judge is None:
            raise ValueError(
                "MM-Vet must be graded by a judge, got none; give --judge-url and --judge-model, or use submit"
            )
        truth = read_mapping(annotations, "question", "answer", "capability", name=self.annotations)
        for one in answered:
            find_annotation(truth, name_of(one.item), one.item, annotations)
        grades = collect_grades(answered, truth, judge, options.folder / GRADES_FILE)
        names, runs = [name_of(one.item) for one in answered], range(judge.runs)
        by_group: dict[str, list[float]] = defaultdict(list)
        for name in names:
            mean = statistics.fmean(grades[name, run]["grade"] for run in runs)
            for group in dict.fromkeys(["total", *truth[name]["capability"]]):
                by_group[group].append(mean)
        totals = [100 * statistics.fmean(grades[name, run]["grade"] for name in names) for run in runs]
        used = [grades[name, run] for name in names for run in runs]
        about = {
            "asked": judge.model,
            "at": judge.address,
            "answered": sorted({record["model"] for record in used}),
            "runs": judge.runs,
            "prompt": "mm-vet few-shot",
            "not_a_number": sum(not record["is_number"] for record in used),
        }
        extra = {"totals of runs": totals, "standard deviation of runs": statistics.pstdev(totals)}
        protocol = self.protocol(f"judge-{judge.model}", count=len(answered))
        return Scores(protocol, "total", means(by_group), extra=extra, judge=about)

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        write_json(path := folder / "mmvet_submission.json", {name_of(one.item): one.text for one in answered})
        return [path]


def name_of(item: BenchmarkItem) -> str:
    """The question as mm-vet.json names it: v1_0, v1_1, ..."""
    name = str(item.question_id)
    return name if name.startswith("v1_") else f"v1_{name}"


def collect_grades(answered: Answers, truth: Mapping[str, dict], judge: Judge, path: Path) -> Grades:
    """All grades; those in the file for the same answer and the same judge are not asked for again."""
    asked = {"asked_model": judge.model, "asked_at": judge.address}
    texts = {name_of(one.item): one.text for one in answered}
    grades = {
        (record["name"], record["run"]): record
        for _, record in kept_lines(path)
        if texts.get(record["name"]) == record["prediction"] and asked.items() <= record.items()
    }
    missing = [(name, run) for run in range(judge.runs) for name in texts if (name, run) not in grades]
    for name, run in tqdm(missing, desc="grades", unit="answer"):
        grade = grade_answer(judge, truth[name]["question"], truth[name]["answer"], texts[name])
        grades[name, run] = {"name": name, "run": run, **asked, "prediction": texts[name], **grade}
        append_lines(path, [grades[name, run]])
    return grades
