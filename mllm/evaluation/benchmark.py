"""What a benchmark is to the runner and to the scorer: items go in, answers come out, answers are scored.

    question file -> read_items -> Item ... -> runner (mllm/evaluation/runner.py) -> answers.jsonl
    answers.jsonl, annotations -> score (no model) -> Scores -> result.json (mllm/evaluation/result.py)

One module per benchmark defines a `BENCHMARK`; mllm/evaluation/registry.py names the modules. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
