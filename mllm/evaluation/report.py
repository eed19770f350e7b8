"""Markdown tables of our results next to published ones.

In: results (mllm/evaluation/protocol.py). Out: text. Each model is one row; a number that is not comparable with the
published ones has a footnote that says why. A second result for the same cell is refused.

The published numbers are those of the tables in the README of UniTok (github.com/FoundationVision/UniTok, September
2025), the code of Ma et al., "UniTok: A Unified Tokenizer for Visual Generation and Understanding", arXiv 2502.20321.
Nothing in them was measured by this toolkit.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mllm.evaluation.protocol import completeness

SOURCE = "README of UniTok (arXiv 2502.20321)"
FLANT5 = "genai-bench-527@vqascore-clip-flant5-xxl"
IMAGENET_IMAGES = 50_000  # of the validation set
CUSTOM = re.compile(r"-custom-\d+$")
"""How the protocol of a set of unofficial size ends."""

Result = Mapping[str, Any]
Footnotes = dict[str, int]
"""Text -> number."""


class Column(NamedTuple):
    """One number of a table, and which result has it."""

    title: str
    benchmark: str  # as in result.json
    score: str | None = None  # name of the score; None: the headline
    digits: int = 1
    protocol: str = ""  # how the protocol of a comparable result begins
    items: int | None = None  # of a comparable score


class Table(NamedTuple):
    """One table of the paper."""

    title: str
    labels: tuple[str, ...]  # titles of the columns without numbers
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]  # published: the method, its labels, its numbers (None: not published)
    note: str


UNDERSTANDING = Table(
    "Understanding",
    ("LLM", "Res."),
    (
        Column("VQAv2", "vqav2"),
        Column("GQA", "gqa"),
        Column("TextVQA", "textvqa", protocol="textvqa@m4c-ocr-prompt"),
        Column("POPE", "pope"),
        Column("MME", "mme", "perception", digits=0),
        Column("MM-Vet", "mmvet", protocol="mmvet@judge-gpt-4-0613"),
    ),
    (
        ("Show-o", "Phi-1.5-1.3B", "256", 59.3, 48.7, None, 73.8, 948, None),
        ("Liquid", "Gemma-7B", "512", 71.3, 58.4, 42.4, 81.1, 1119, None),
        ("VILA-U", "Llama-2-7B", "256", 75.3, 58.3, 48.3, 83.9, 1336, 27.7),
        ("UniTok", "Llama-2-7B", "256", 76.8, 61.1, 51.6, 83.2, 1448, 33.9),
    ),
    note="VQAv2 was published on test-dev (EvalAI); ours is on the split of the annotations. MME is perception alone.",
)

GENERATION = Table(
    "Generation, GenAI-Bench (527 prompts, advanced)",
    ("Type",),
    tuple(
        Column(title, "genai-bench-527", skill, digits=2, protocol=FLANT5)
        for title, skill in (
            *(("Count", "counting"), ("Differ", "differentiation"), ("Compare", "comparison")),
            *(("Negate", "negation"), ("Universal", "universal"), ("Overall", "advanced")),
        )
    ),
    (
        ("Show-o", "discrete diffusion", 0.70, 0.62, 0.71, 0.51, 0.65, 0.60),
        ("VILA-U", "autoregressive", 0.70, 0.71, 0.74, 0.53, 0.66, 0.64),
        ("Liquid", "autoregressive", 0.76, 0.73, 0.74, 0.46, 0.74, 0.65),
        ("UniTok", "autoregressive", 0.76, 0.79, 0.74, 0.46, 0.73, 0.67),
    ),
    note="Published rows were scored by CLIP-FlanT5-XXL.",
)

TOKENIZERS = Table(
    "Tokenizers, ImageNet 256 x 256",
    ("Kind", "Tokens"),
    (
        Column("rFID", "tokenizer", "rFID", digits=2, items=IMAGENET_IMAGES),
        Column("Accuracy", "tokenizer", "zero-shot top-1", items=IMAGENET_IMAGES),
    ),
    (
        ("VQ-GAN", "VQVAE", "256", 4.98, None),
        ("RQ-VAE", "VQVAE", "256", 1.30, None),
        ("VAR", "VQVAE", "680", 0.90, None),
        ("CLIP", "CLIP", "256", None, 76.2),
        ("SigLIP", "CLIP", "256", None, 80.5),
        ("ViTamin", "CLIP", "256", None, 81.2),
        ("TokenFlow (CLIP init)", "unified", "680", 1.37, None),
        ("VILA-U (CLIP init)", "unified", "256", 1.80, 73.3),
        ("UniTok", "unified", "256", 0.41, 70.8),
        ("UniTok (CLIP init)", "unified", "256", 0.38, 78.6),
    ),
    note="CLIP init: the encoder began from weights of a pretrained CLIP.",
)

TABLES = (UNDERSTANDING, GENERATION, TOKENIZERS)


class ModelResults(NamedTuple):
    """Results of one of our models, by benchmark."""

    name: str
    results: Mapping[str, Result]

    def score(self, column: Column) -> Mapping[str, Any] | None:
        result = self.results.get(column.benchmark)
        return result["scores"].get(column.score or result["headline"]) if result else None

    def label(self, title: str) -> str:
        """A cell without a number: what a result says under `columns` in its extras, and the size of images."""
        for result in self.results.values():
            if title in (columns := result["extra"].get("columns", {})):
                return str(columns[title])
        formats = [result["image_format"] for result in self.results.values()]
        sizes = [found["size"] for found in formats if isinstance(found, Mapping) and "size" in found]
        return str(sizes[0][0]) if title == "Res." and sizes else ""


def make_report(results: Sequence[tuple[str, Result]], *, names: Mapping[str, str] | None = None) -> str:
    """The tables for which there are results, then how every number was measured.

    Args:
        results: (where it was read from, result).
        names: what to call a model, by its fingerprint.
    """
    if not results:
        raise ValueError("a report needs at least one result, got none; score a run first")
    models = group_by_model(results, names or {})
    footnotes: Footnotes = {}
    blocks = ["# Evaluation", ""]
    for table in TABLES:
        if any(model.score(column) for model in models for column in table.columns):
            blocks += [as_markdown(table, models, footnotes), ""]
    if footnotes:
        blocks += [*(f"- [{number}] {text}" for text, number in footnotes.items()), ""]
    return "\n".join([*blocks, *measurement_table(models)]).rstrip() + "\n"


def group_by_model(results: Sequence[tuple[str, Result]], names: Mapping[str, str]) -> list[ModelResults]:
    groups: dict[str, dict[str, Result]] = defaultdict(dict)
    origins: dict[tuple[str, str], str] = {}
    for where, result in results:
        model, benchmark = model_of(result), result["benchmark"]
        if (first := origins.setdefault((model, benchmark), where)) != where or benchmark in groups[model]:
            raise ValueError(
                f"a model must have one result per cell, got {first} and {where} for {benchmark} of {model}"
            )
        groups[model][benchmark] = result
    return [ModelResults(names.get(model, f"ours, {model}"), found) for model, found in groups.items()]


def model_of(result: Result) -> str:
    model = result["model"]
    return model["fingerprint"] if isinstance(model, Mapping) else str(model)


def as_markdown(table: Table, models: Sequence[ModelResults], footnotes: Footnotes) -> str:
    """One table; new footnotes are added to `footnotes`."""
    titles = ["Method", *table.labels, *(column.title for column in table.columns)]
    lines = [f"## {table.title}", "", markdown_row(titles)]
    lines.append(markdown_row(["---"] * (1 + len(table.labels)) + ["--:"] * len(table.columns)))
    for row in table.rows:
        labels, numbers = row[: -len(table.columns)], row[-len(table.columns) :]
        pairs = zip(numbers, table.columns, strict=True)
        texts = ["-" if number is None else f"{number:.{column.digits}f}" for number, column in pairs]
        lines.append(markdown_row([*labels, *texts]))
    for model in models:
        cells = [cell(model, column, footnotes) for column in table.columns]
        if any(text != "-" for text in cells):
            lines.append(markdown_row([f"**{model.name}**", *(model.label(title) for title in table.labels), *cells]))
    return "\n".join([*lines, "", f"Published rows: {SOURCE}. {table.note}"])


def markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(model: ModelResults, column: Column, footnotes: Footnotes) -> str:
    score = model.score(column)
    if score is None:
        return "-"
    value, low, high = (f"{score[name]:.{column.digits}f}" for name in ("value", "low", "high"))
    remarks = differences(model.results[column.benchmark], score, column)
    marks = [f" [{footnotes.setdefault(remark, len(footnotes) + 1)}]" for remark in remarks]
    return f"{value} ({low} to {high})" + "".join(marks)


def differences(result: Result, score: Mapping[str, Any], column: Column) -> list[str]:
    """What makes a number not comparable with the published ones."""
    found = []
    if CUSTOM.search(result["protocol"]) or not result["is_complete"]:
        found.append(f"Not the official set: {result['protocol']}, {completeness(result)}.")
    if not result["protocol"].startswith(column.protocol):
        found.append(f"Another protocol than the published rows: {result['protocol']}, not {column.protocol}.")
    if column.items not in (None, score["count"]):
        found.append(f"Another set of images than the published rows: {score['count']}, not {column.items}.")
    return found


def measurement_table(models: Sequence[ModelResults]) -> list[str]:
    fields = ("prompts", "decoding", "image_format", "judge", "seed")
    lines = ["## How it was measured", ""]
    lines.append(markdown_row(["Model", "Protocol", "Items", "Prompts", "Decoding", "Images", "Judge", "Seed"]))
    lines.append(markdown_row(["---"] * 8))
    for model in models:
        for result in model.results.values():
            settings = [as_words(result[name]) for name in fields]
            lines.append(markdown_row([model.name, result["protocol"], completeness(result), *settings]))
    return lines


def as_words(value: Any) -> str:
    """A small dictionary as words; a dash for None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return "-" if value is None else str(value)
