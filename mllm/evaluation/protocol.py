"""What a benchmark is: items to answer, answers, scores with intervals, and the result file.

    question file -> Benchmark.read_items -> items -> runner (mllm/evaluation/run.py) -> answers.jsonl
    answers.jsonl + annotations -> Benchmark.score -> Scores -> result.json -> report

The benchmarks themselves are in vqa.py, mmvet.py and text_to_image.py. Scoring needs no model and imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mllm.files import Line, counted, need_field, read_json, read_lines, tool_versions

if TYPE_CHECKING:
    from mllm.evaluation.image_text_scorers import ImageTextScorer
    from mllm.evaluation.mmvet import Judge

AnswerMode = Literal["text", "image"]
T = TypeVar("T")

BENCHMARKS = {
    "vqav2": ("vqa:VQAv2", "llava_vqav2_mscoco_test-dev2015.jsonl"),
    "gqa": ("vqa:GQA", "llava_gqa_testdev_balanced.jsonl"),
    "textvqa": ("vqa:TextVQA", "llava_textvqa_val_v051_ocr.jsonl"),
    "pope": ("vqa:POPE", "llava_pope_test.jsonl"),
    "mme": ("vqa:MME", "llava_mme.jsonl"),
    "mmvet": ("mmvet:MMVet", "llava-mm-vet.jsonl"),
    "genai-bench-527": ("text_to_image:GenAIBench527", "prompts.txt"),
    "genai-bench-1600": ("text_to_image:GenAIBench1600", "prompts.txt"),
    "geneval": ("text_to_image:GenEval", "evaluation_metadata.jsonl"),
    "dpg-bench": ("text_to_image:DPGBench", "the folder of prompts"),
    "t2i-compbench": ("text_to_image:T2ICompBench", "color_val.txt"),
    "mjhq-30k": ("text_to_image:MJHQ30K", "meta_data.json"),
    "class-samples": ("text_to_image:ClassSamples", "a class number on each line"),
}
"""Name on the command line -> module of mllm.evaluation and class, question file as published."""

RESULT_FORMAT, RESULT_FILE = "mllm-result-1", "result.json"
UNKNOWN = "unknown: the answers were made elsewhere"
RUN_FIELDS = ("model", "prompts", "prompt_style", "decoding", "image_format", "versions", "seed", "questions")
"""What a result repeats of run.json."""


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    key: str  # unique within the benchmark
    where: str  # file and line it comes from, for error messages
    question_id: int | str  # as in the question file; need not be unique (TextVQA, MME)
    prompt: str
    images: tuple[Path, ...] = ()  # input images, before the prompt
    output: str | None = None  # mode "image": file name of the image within the run folder
    fields: Mapping[str, Any] = field(default_factory=dict)  # the other fields of the record


@dataclass(frozen=True, slots=True)
class AnsweredItem:
    item: BenchmarkItem
    text: str = ""  # mode "text"
    image: Path = Path()  # mode "image"


Answers = Sequence[AnsweredItem]


@dataclass(frozen=True, slots=True)
class Score:
    value: float
    low: float  # 95 % bootstrap interval
    high: float
    count: int  # items it is computed over
    std: float | None = None  # unbiased standard deviation of single items, where the benchmark reports it


@dataclass(frozen=True, slots=True)
class Scores:
    protocol: str  # such as pope@llava-3000; numbers of different protocols are not comparable
    headline: str  # name of the score that tables show
    scores: Mapping[str, Score]  # by name, in the order to print
    extra: Mapping[str, Any] = field(default_factory=dict)  # counts and remarks
    judge: Mapping[str, Any] | None = None  # the model that judged, if any
    tools: tuple[str, ...] = ()  # packages that computed a score; their versions are recorded


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a scorer may use besides answers and annotations."""

    folder: Path = Path()  # of the run: images, and caches of scores and grades; default: the working directory
    judge: Judge | None = None  # grades open answers
    scorer: ImageTextScorer | None = None  # scores images


class Benchmark:
    """Base class: a question file in LLaVA's layout, answered with text."""

    name: str  # on the command line
    annotations: str  # what --annotations must name for scoring, and how to get it
    mode: AnswerMode = "text"
    task: str | None = None  # a capability that a checkpoint needs beside that of the mode
    official_counts: tuple[int, ...] = ()  # sizes of the official sets; the protocol of any other is marked "custom"
    max_new_tokens: int = 128
    keyed_by_prompt: bool = False  # question ids are not unique, so that the prompt is part of the key

    def read_items(self, questions: Path, images: Path | None) -> list[BenchmarkItem]:
        """The items of a file of JSON lines {"question_id", "image", "text", ...}, as LLaVA's evaluation has them.

        Args:
            images: their folder; None when answers are only scored. They must exist, but are opened when needed.
        """
        if images is not None and not images.is_dir():
            raise FileNotFoundError(f"--images must be the folder that the questions refer to, got {images}")
        items: dict[str, BenchmarkItem] = {}
        for line in read_lines(questions):
            question_id, prompt, name = (need_field(line, field) for field in ("question_id", "text", "image"))
            if not isinstance(question_id, int | str):
                raise ValueError(f"{line.where}: question_id must be a number or string, got {question_id!r}")
            for key, value in (("text", prompt), ("image", name)):
                if not isinstance(value, str) or not value.strip():
                    raise ValueError(f"{line.where}: {key} must be a non-empty string, got {value!r}")
            if images is not None and not (images / name).is_file():
                raise FileNotFoundError(f"{line.where}: image must exist, got {images / name}; download it")
            unique = f"{question_id}\n{prompt}" if self.keyed_by_prompt else str(question_id)
            files = () if images is None else (images / name,)
            fields = {key: value for key, value in line.record.items() if key not in ("question_id", "text")}
            item = BenchmarkItem(unique, line.where, question_id, prompt, files, fields=fields)
            if (first := items.setdefault(item.key, item)) is not item:
                raise ValueError(f"question ids must be unique, got {question_id!r} in {first.where} and {item.where}")
        if not items:
            raise ValueError(f"{questions} must contain one JSON record per line, got an empty file")
        return list(items.values())

    def score(self, answered: Answers, annotations: Path, options: ScoreOptions) -> Scores:
        raise NotImplementedError

    def submit(self, answered: Answers, folder: Path, *, annotations: Path | None, split: Path | None) -> list[Path]:
        """Write the files that the official tool or server takes; `split`: the question file of all that they cover."""
        raise ValueError(f"{self.name} has no submission format; score it with mllm evaluate score")

    def protocol(self, variant: str, *, count: int) -> str:
        """The full name of the protocol for a set of this size."""
        is_official = not self.official_counts or count in self.official_counts
        return f"{self.name}@{variant}" + ("" if is_official else f"-custom-{count}")


def find_benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}")
    module, _, kind = BENCHMARKS[name][0].partition(":")
    return getattr(importlib.import_module(f"mllm.evaluation.{module}"), kind)()


def find_annotation(annotations: Mapping[Any, T], key: Hashable, item: BenchmarkItem, source: Path) -> T:
    if key not in annotations:
        raise ValueError(f"{source} must contain {key!r} of {item.where}; give the annotations of the same split")
    return annotations[key]


def read_mapping(path: Path, *needed: str, name: str) -> dict[str, dict]:
    """A published JSON file of id -> record, whose records have these fields."""
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(v, dict) and set(needed) <= set(v) for v in data.values()):
        raise ValueError(f"{path} must map ids to records with {', '.join(needed)}; give {name}")
    return data


def match_answers(
    benchmark: Benchmark, items: Sequence[BenchmarkItem], lines: Sequence[Line], *, answers: Path, partial: bool = False
) -> list[AnsweredItem]:
    """Items with their answers, in the order of the items; every answer belongs to one item and the reverse.

    Args:
        lines: records of an answers file, ours or one written by LLaVA's runner.
        answers: that file, or the run folder; image names are relative to it.
        partial: leave out unanswered items instead of refusing.
    """
    folder = answers if answers.is_dir() else answers.parent
    by_key = {item.key: item for item in items}
    found: dict[str, AnsweredItem] = {}
    first: dict[str, Line] = {}
    for line in lines:
        key = str(need_field(line, "question_id"))
        if benchmark.keyed_by_prompt:
            key = f"{key}\n{need_field(line, 'prompt')}"
        if key not in by_key:
            raise ValueError(f"{line.where} must answer a question of the question file, got {key!r}")
        given = need_field(line, benchmark.mode)
        if not isinstance(given, str):
            raise ValueError(f"{line.where}: {benchmark.mode} must be a string, got {given!r}")
        if benchmark.mode == "text":
            found[key] = AnsweredItem(by_key[key], text=given)
        elif (folder / given).is_file():
            found[key] = AnsweredItem(by_key[key], image=folder / given)
        else:
            raise FileNotFoundError(f"{line.where}: image must exist, got {folder / given}; run the benchmark again")
        if first.setdefault(key, line) is not line:
            raise ValueError(f"each question must have one answer, got two in {first[key].where} and {line.where}")
    missing = [item for item in items if item.key not in found]
    if missing and (not partial or not found):
        raise ValueError(
            f"{answers} must answer all {len(items)} questions, got {counted(len(found), 'answer')}; the first one "
            f"missing is {missing[0].question_id!r} ({missing[0].where}); finish the run, or use --partial to score "
            "what is there"
        )
    return [found[item.key] for item in items if item.key in found]


def make_result(
    benchmark: str,
    scores: Scores,
    *,
    run: Mapping[str, Any] | None,
    expected: int,
    scored: int,
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of result.json: the numbers and everything needed to interpret them.

    Args:
        run: the description in run.json; None if the answers were made elsewhere.
        expected: items in the question file, of which so many were `scored`.
        files: fingerprints of what was scored against, by name.
    """
    numbers = {name: asdict(score) for name, score in scores.scores.items()}
    return {
        "format": RESULT_FORMAT,
        "benchmark": benchmark,
        "protocol": scores.protocol,
        "headline": scores.headline,
        "items_expected": expected,
        "items_scored": scored,
        "is_complete": scored == expected,
        "scores": {name: {k: v for k, v in each.items() if v is not None} for name, each in numbers.items()},
        "interval": "95 % bootstrap over items",
        **{name: (run or {}).get(name, UNKNOWN) for name in RUN_FIELDS},
        "files": dict(files),
        "scored_with": tool_versions(*scores.tools),
        "judge": None if scores.judge is None else dict(scores.judge),
        "extra": dict(scores.extra),
    }


def read_result(path: Path) -> dict[str, Any]:
    path = path / RESULT_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"result file {path} not found; run mllm evaluate score first")
    result = read_json(path)
    if not isinstance(result, dict) or result.get("format") != RESULT_FORMAT:
        raise ValueError(f"{path} must be a result of mllm evaluate score (format {RESULT_FORMAT!r})")
    return result


def completeness(result: Mapping[str, Any]) -> str:
    scored, expected = result["items_scored"], result["items_expected"]
    return f"all {expected} items" if result["is_complete"] else f"PARTIAL: {scored} of {expected} items"


def model_of(result: Mapping[str, Any]) -> str:
    model = result["model"]
    return model["fingerprint"] if isinstance(model, Mapping) else str(model)


def as_table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['protocol']}, {completeness(result)}, model {model_of(result)}"]
    if result["judge"] is not None:
        lines.append("judge: " + ", ".join(f"{key} {value}" for key, value in result["judge"].items()))
    lines += ["", f"{'score':<36} value (95 % interval, items)"]
    mark = "" if result["is_complete"] else "  PARTIAL"
    for name, score in result["scores"].items():
        numbers = f"{score['value']:8.2f}  ({score['low']:.2f} to {score['high']:.2f}, n = {score['count']})"
        deviation = f"  std {score['std']:.2f}" if "std" in score else ""
        lines.append(f"{name:<36} {numbers}{deviation}{mark}")
    return "\n".join(lines)
