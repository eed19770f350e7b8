"""What a benchmark is to the runner and to the scorer: items go in, answers come out, answers are scored.

    question file -> read_items -> Item ... -> runner (mllm/evaluation/run.py) -> answers.jsonl
    answers.jsonl, annotations -> score (no model) -> Scores -> result.json (mllm/evaluation/protocol.py)

One module per benchmark defines a `BENCHMARK`; mllm/evaluation/protocol.py names the modules. Knows no model.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mllm.files import Line, need_field, read_json, read_lines, tool_versions

Mode = Literal["text", "image"]


@dataclass(frozen=True, slots=True)
class Item:
    """One request to the model, and what it takes to recognise its answer."""

    key: str  # unique in the benchmark
    where: str  # file and line it comes from, for messages
    question_id: int | str  # as in the question file; need not be unique (TextVQA, MME)
    prompt: str
    images: tuple[Path, ...] = ()  # pictures before the prompt
    output: str | None = None  # mode "image": file of the picture below the run folder, such as images/00001.png
    fields: Mapping[str, Any] = field(default_factory=dict)  # the rest of its record


@dataclass(frozen=True, slots=True)
class Answered:
    """An item with its answer."""

    item: Item
    text: str  # mode "text"
    where: str = "the answers"  # file and line of the answer, for messages
    image: Path | None = None  # mode "image"


@dataclass(frozen=True, slots=True)
class Score:
    """One number with its uncertainty."""

    value: float
    low: float  # 95 % bootstrap interval
    high: float
    count: int  # items it is about
    std: float | None = None  # unbiased, of single items, where the benchmark reports it


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer says about all answers."""

    protocol: str  # such as pope@llava-3000: numbers of different protocols are not compared
    headline: str  # name of the score that tables show
    scores: Mapping[str, Score]  # by name, in the order to print
    extra: Mapping[str, Any] = field(default_factory=dict)  # counts and remarks that are no scores
    judge: Mapping[str, Any] | None = None  # the model that judged, where one did
    tools: tuple[str, ...] = ()  # packages of others that computed a score; their versions go into the result


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What a scorer may use besides the answers."""

    annotations: Path | None = None
    split: Path | None = None  # question file of the whole split, where a submission must cover it
    folder: Path | None = None  # where submission files and grades go
    judge: Any = None  # mllm/evaluation/understanding/judge.py Judge, or an image-text scorer


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark."""

    name: str
    """The word on the command line."""
    summary: str
    """One line for --help: what is scored, and which files are needed."""
    read_items: Callable[[Path, Path | None], list[Item]]
    """(question file, folder of pictures) -> items."""
    score: Callable[[Sequence[Answered], ScoreOptions], Scores]
    """Scores answers to all items that were asked for; makes no exception for missing ones."""
    submit: Callable[[Sequence[Answered], ScoreOptions], list[Path]] | None = None
    """Writes files that official tools or servers take."""
    official_counts: tuple[int, ...] = ()
    """Sizes of the official sets; another size is named "custom" in the protocol."""
    mode: Mode = "text"
    max_new_tokens: int | None = 128
    keyed_by_prompt: bool = False
    """The question id alone is not unique: the prompt is part of the key."""
    needs_annotations: bool = True
    task: str | None = None
    """What the model must have been trained for; None: to answer, or to draw, by the mode."""

    def key_of(self, question_id: int | str, prompt: str) -> str:
        """What makes an item unique."""
        return f"{question_id}\n{prompt}" if self.keyed_by_prompt else str(question_id)

    def protocol(self, variant: str, *, count: int) -> str:
        """The full name of the protocol for a set of this size."""
        is_official = not self.official_counts or count in self.official_counts
        return f"{self.name}@{variant}" if is_official else f"{self.name}@{variant}-custom-{count}"


# Bring answers and questions together: every answer belongs to a question, every question has one answer.
#
# In: items, and an answers file (ours, or one that LLaVA's runner wrote). Out: answered items in the order of the
# items.
# What does not match is named with file and line.


def match_answers(
    benchmark: Benchmark, items: Sequence[Item], lines: Sequence[Line], *, answers: Path, partial: bool = False
) -> list[Answered]:
    """The answered items.

    Args:
        lines: records of the answers file.
        answers: that file, or the run folder, for messages and for pictures beside it.
        partial: leave out questions without an answer instead of refusing.
    """
    folder = answers if answers.is_dir() else answers.parent
    by_key = {item.key: item for item in items}
    found: dict[str, Answered] = {}
    for line in lines:
        answered = read_answer(benchmark, by_key, line, folder)
        key = answered.item.key
        if key in found:
            raise ValueError(
                f"{line.where} answers a question twice: found id {answered.item.question_id!r} again, first on "
                f"{found[key].where}; keep one of them"
            )
        found[key] = answered
    missing = [item for item in items if item.key not in found]
    if missing and not partial:
        raise ValueError(
            f"{answers} has fewer answers than there are questions: found {len(found)} of {len(items)}, the first one "
            f"missing is {missing[0].question_id!r} ({missing[0].where}); finish it, or score a part with --partial"
        )
    if not found:
        raise ValueError(f"{answers} holds no answer: found an empty file; run the benchmark first")
    return [found[item.key] for item in items if item.key in found]


def read_answer(benchmark: Benchmark, by_key: dict[str, Item], line: Line, folder: Path) -> Answered:
    """One answer with the item it belongs to."""
    question_id, prompt = need_field(line, "question_id"), line.record.get("prompt", "")
    if benchmark.keyed_by_prompt:
        need_field(line, "prompt")
    item = by_key.get(benchmark.key_of(question_id, prompt))
    if item is None:
        of_prompt = f" and prompt {prompt!r}" if benchmark.keyed_by_prompt else ""
        raise ValueError(
            f"{line.where} answers a question that was not asked: found id {question_id!r}{of_prompt}; "
            "take the answers of this question file"
        )
    if benchmark.mode == "image":
        picture = folder / need_field(line, "image")
        if not picture.is_file():
            raise FileNotFoundError(f"{line.where} names a picture that is not there: found no {picture}; run it again")
        return Answered(item, text="", where=line.where, image=picture)
    text = need_field(line, "text")
    if not isinstance(text, str):
        raise ValueError(f"{line.where} is no answer: found text {text!r}; write words")
    return Answered(item, text=text, where=line.where)


# Question files as LLaVA's evaluation has them: one JSON record a line, {"question_id", "image", "text", ...}.
#
# In: the file and the folder of pictures. Out: items, checked: every record has its fields, no question comes twice,
# and
# its picture exists. Pictures are opened when their turn comes.


def read_questions(
    questions: Path, images: Path | None, *, key_of: Callable[[int | str, str], str] = lambda id_, _: str(id_)
) -> list[Item]:
    """The items of a question file, in its order.

    Args:
        images: folder of the pictures; None: nothing is asked, only scored, so pictures are not looked for.
        key_of: (question id, prompt) -> what makes an item unique.
    """
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"there is no folder of pictures {images}; give the folder that the questions name")
    items: dict[str, Item] = {}
    for line in read_lines(questions):
        item = read_question(line, images, key_of)
        if item.key in items:
            raise ValueError(
                f"{item.where} asks a question twice: found id {item.question_id!r} again, first on "
                f"{items[item.key].where}; give every question its own id"
            )
        items[item.key] = item
    if not items:
        raise ValueError(f"{questions} holds no question: found an empty file; give a file with one record a line")
    return list(items.values())


def read_question(line: Line, images: Path | None, key_of: Callable[[int | str, str], str]) -> Item:
    """One record as an item."""
    question_id, text = need_field(line, "question_id"), need_field(line, "text")
    if not isinstance(question_id, int | str) or not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{line.where} is no question: found question_id {question_id!r} and text {text!r}; "
            "give a number or word, and words"
        )
    name = need_field(line, "image")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{line.where} has no picture: found image {name!r}; name its file")
    if images is not None and not (images / name).is_file():
        raise FileNotFoundError(
            f"{line.where} asks about a picture that is not there: found no {images / name}; get it"
        )
    fields = {key: value for key, value in line.record.items() if key not in ("question_id", "text")}
    pictures = () if images is None else (images / name,)
    return Item(
        key=key_of(question_id, text),
        where=line.where,
        question_id=question_id,
        prompt=text,
        images=pictures,
        fields=fields,
    )


# The result of a benchmark: the numbers, and everything that is needed to read them, in one file.
#
# In: scores and what is known of the run. Out: a dictionary for result.json, and its table for the eye. A score over
# less
# than the whole question file says so wherever it is shown.


FORMAT = "mllm-result-1"
RESULT_FILE = "result.json"
UNKNOWN = "unknown: the answers were made elsewhere"
OF_THE_RUN = ("model", "prompts", "prompt_style", "decoding", "image_format", "versions", "seed", "questions")


def make_result(
    benchmark: str,
    scores: Scores,
    *,
    run: Mapping[str, Any] | None,
    expected: int,
    scored: int,
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of result.json.

    Args:
        run: the description in run.json; None where the answers come from elsewhere.
        expected: items in the question file.
        scored: items that the scores are about.
        files: fingerprints of what was scored against, by name.
    """
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "protocol": scores.protocol,
        "headline": scores.headline,
        "items_expected": expected,
        "items_scored": scored,
        "is_complete": scored == expected,
        "scores": {name: as_values(score) for name, score in scores.scores.items()},
        "interval": "95 % bootstrap over items",
        **{name: (run or {}).get(name, UNKNOWN) for name in OF_THE_RUN},
        "files": dict(files),
        "scored_with": tool_versions(*scores.tools),
        "judge": None if scores.judge is None else dict(scores.judge),
        "extra": dict(scores.extra),
    }


def as_values(score: Score) -> dict[str, Any]:
    """A score for JSON; a deviation only where there is one."""
    return {name: value for name, value in asdict(score).items() if (name, value) != ("std", None)}


def read_result(path: Path) -> dict[str, Any]:
    """A result file, or that of a folder."""
    path = path / RESULT_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no result {path}: found nothing there; run mllm evaluate score first")
    result = read_json(path)
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is no result: found no format {FORMAT!r}; give a file of mllm evaluate score")
    return result


def completeness(result: Mapping[str, Any]) -> str:
    """How much of the benchmark a result is about."""
    scored, expected = result["items_scored"], result["items_expected"]
    return f"all {expected} items" if result["is_complete"] else f"PARTIAL: {scored} of {expected} items"


def as_table(result: Mapping[str, Any]) -> str:
    """The result for the eye."""
    model = result["model"]
    name = model["fingerprint"] if isinstance(model, dict) else model
    lines = [f"{result['protocol']}, {completeness(result)}, model {name}"]
    if result["judge"] is not None:
        lines.append("judge: " + ", ".join(f"{key} {value}" for key, value in result["judge"].items()))
    lines += ["", f"{'score':<36} value (95 % interval, items)"]
    mark = "" if result["is_complete"] else "  PARTIAL"
    for name, score in result["scores"].items():
        numbers = f"{score['value']:8.2f}  ({score['low']:.2f} to {score['high']:.2f}, n = {score['count']})"
        deviation = f"  std {score['std']:.2f}" if "std" in score else ""
        lines.append(f"{name:<36} {numbers}{deviation}{mark}")
    return "\n".join(lines)


# The benchmarks by their names on the command line. A module is imported when its benchmark is asked for.


BENCHMARKS = {
    "vqav2": "mllm.evaluation.understanding.vqav2",
    "gqa": "mllm.evaluation.understanding.gqa",
    "textvqa": "mllm.evaluation.understanding.textvqa",
    "pope": "mllm.evaluation.understanding.pope",
    "mme": "mllm.evaluation.understanding.mme",
    "mmvet": "mllm.evaluation.understanding.mmvet",
    "genai-bench-527": "mllm.evaluation.generation.genai_bench:BENCHMARK_527",
    "genai-bench-1600": "mllm.evaluation.generation.genai_bench:BENCHMARK_1600",
    "geneval": "mllm.evaluation.generation.geneval",
    "dpg-bench": "mllm.evaluation.generation.dpg_bench",
    "t2i-compbench": "mllm.evaluation.generation.compbench",
    "mjhq-30k": "mllm.evaluation.generation.mjhq",
    "class-samples": "mllm.evaluation.generation.class_samples",
}
"""Name -> module that defines `BENCHMARK`, or module:NAME of it."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name."""
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; choose among {', '.join(BENCHMARKS)}")
    module, _, attribute = BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute or "BENCHMARK")


# A short name for exactly these weights, so that a score says which model it belongs to.


def model_fingerprint(model: nn.Module) -> str:
    """16 hex digits of a hash over every weight, taken as float32, so that a lossless change of dtype keeps them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
