"""Markdown tables of our results next to published ones.

In: results (mllm/evaluation/protocol.py). Out: text. Each model is one row; a number that is not comparable with the
published ones has a footnote that says why. A second result for the same cell is refused.

The published numbers are in published.yaml, with their source.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mllm.evaluation.protocol import completeness, model_of

SOURCE = "README of UniTok (arXiv 2502.20321)"
PUBLISHED = Path(__file__).with_name("published.yaml")
CUSTOM = re.compile(r"-custom-\d+$")
"""How the protocol of a set of unofficial size ends."""

Result = Mapping[str, Any]
Footnotes = dict[str, int]
"""Text -> number."""


class Column(NamedTuple):
    title: str
    benchmark: str  # as in result.json
    score: str | None = None  # name of the score; None: the headline
    digits: int = 1
    protocol: str = ""  # how the protocol of a comparable result begins
    items: int | None = None  # of a comparable score


class Table(NamedTuple):
    title: str
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str


def published_tables() -> list[Table]:
    tables = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return [Table(**{**table, "columns": [Column(**column) for column in table["columns"]]}) for table in tables]


class ModelResults(NamedTuple):
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
    for table in published_tables():
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
