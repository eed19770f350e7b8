"""Items, answers and runs for the tests of evaluation."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.evaluation.protocol import AnsweredItem, Benchmark, BenchmarkItem, ScoreOptions, Scores, match_answers
from mllm.evaluation.run import RunFolder, run_items
from mllm.files import read_lines

DESCRIPTION = {"benchmark": "gqa", "items": 23, "seed": 5, "model": {"fingerprint": "abc"}}


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_jsonl(path: Path, records: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def make_item(question_id: int | str = 0, prompt: str = "what?") -> BenchmarkItem:
    return BenchmarkItem(str(question_id), where="questions, line 1", question_id=question_id, prompt=prompt)


def answered(*texts: str, first_id: int = 0) -> list[AnsweredItem]:
    """Answers to questions 0, 1, ..."""
    return [AnsweredItem(make_item(first_id + n), text) for n, text in enumerate(texts)]


def score_files(benchmark: Benchmark, questions: Path, answers: Path, annotations: Path) -> Scores:
    """From files to scores, as the command does it."""
    items = benchmark.read_items(questions, None)
    matched = match_answers(benchmark, items, read_lines(answers), answers=answers)
    return benchmark.score(matched, annotations, ScoreOptions())


def make_items(count: int, *, draws: bool = False) -> list[BenchmarkItem]:
    """Questions, or requests for images."""
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
            for place in reversed(range(start, min(start + at_once, len(items)))):
                if len(self.asked) == self.stop_after:
                    raise KeyboardInterrupt
                self.asked.append(items[place].question_id)
                seed = seeds[place]
                text = f"{items[place].prompt} seed {seed}"
                yield place, Image.new("RGB", (4, 4), (seed, 0, 0)) if self.draws else text


def run(
    folder: Path, answerer: Answerer, *, count: int = 23, batch_size: int = 4, rank: int = 0, size: int = 1
) -> bool:
    """One process of a run."""
    items, how = make_items(count, draws=answerer.draws), {"description": DESCRIPTION, "shard": (rank, size)}
    return run_items(items, answerer, RunFolder(folder), batch_size=batch_size, **how)


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a run leaves for others, by name; its parts are internal."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "parts"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# ---- GenAI-Bench ----

COUNTS = {"attribute": 143, "scene": 109, "spatial relation": 104, "action relation": 138, "part relation": 34}
BASIC = tuple(COUNTS)
COUNTS |= {"counting": 97, "comparison": 51, "differentiation": 105, "negation": 101, "universal": 47}


def write_genai_bench(folder: Path, *, size: int = 527, first: int = 1) -> tuple[Path, Path]:
    """The two files; skills are drawn anew but as many as there are."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, skills = folder / "prompts.txt", folder / "genai_skills.json"
    prompts.write_text("\n".join(f"a red circle number {n}" for n in range(size)), encoding="utf-8")
    rng = np.random.default_rng(5)
    num_basic = 214 * size // 527
    basic, advanced = range(num_basic), range(num_basic, size)
    named = {
        name: sorted((rng.choice(basic if name in BASIC else advanced, count, replace=False) + first).tolist())
        for name, count in COUNTS.items()
    }
    named |= {"basic": [n + first for n in basic], "advanced": [n + first for n in advanced]}
    skills.write_text(json.dumps(named), encoding="utf-8")
    return prompts, skills
