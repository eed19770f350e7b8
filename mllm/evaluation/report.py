"""Tables that set our results beside published ones, in Markdown.

In: results (mllm/evaluation/result.py). Out: text. Each model is one row; a number that is not over the official set,
or not over all of it, carries a mark and a footnote that says so. A second result for the same cell is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm.evaluation.published import SOURCE, TABLES, Column, Table
from mllm.evaluation.result import completeness

Result = Mapping[str, Any]
Notes = dict[str, int]
"""Footnotes and their numbers."""
CUSTOM = re.compile(r"-custom-\d+$")
"""How the protocol of a set of unofficial size ends."""


@dataclass(frozen=True, slots=True)
class Ours:
    """Results of one model by benchmark."""

    name: str
    results: Mapping[str, Result]


def make_report(results: Sequence[tuple[str, Result]], *, names: Mapping[str, str] | None = None) -> str:
    """The tables that have a result of ours, then how every number was measured.

    Args:
        results: (where it was read from, result).
        names: what to call a model, by its fingerprint.
    """
    if not results:
        raise ValueError("there is nothing to report: found no result; score a run first")
    models = group_by_model(results, names or {})
    notes: Notes = {}
    blocks = ["# Evaluation", ""]
    for table in TABLES:
        if any(score_of(model, column) for model in models for column in table.columns):
            blocks += [as_markdown(table, models, notes), ""]
    if notes:
        blocks += [*(f"- [{number}] {note}" for note, number in notes.items()), ""]
    return "\n".join([*blocks, *details(models)]).rstrip() + "\n"


def group_by_model(results: Sequence[tuple[str, Result]], names: Mapping[str, str]) -> list[Ours]:
    """One entry per model, in the order of appearance."""
    groups: dict[str, dict[str, Result]] = defaultdict(dict)
    origins: dict[tuple[str, str], str] = {}
    for where, result in results:
        model, benchmark = model_of(result), result["benchmark"]
        if (model, benchmark) in origins:
            raise ValueError(
                f"two results for {benchmark} of model {model}: found {origins[model, benchmark]} and {where}; "
                "name one of them"
            )
        origins[model, benchmark] = where
        groups[model][benchmark] = result
    return [Ours(names.get(model, f"ours, {model}"), found) for model, found in groups.items()]


def model_of(result: Result) -> str:
    """The fingerprint of the model, or that it is unknown."""
    model = result["model"]
    return model["fingerprint"] if isinstance(model, Mapping) else str(model)


def as_markdown(table: Table, models: Sequence[Ours], notes: Notes) -> str:
    """One table; footnotes are added to `notes`."""
    titles = ["Method", *table.words, *(column.title for column in table.columns)]
    lines = [
        f"## {table.title}",
        "",
        line_of(titles),
        line_of(["---"] * (1 + len(table.words)) + ["--:"] * len(table.columns)),
    ]
    for row in table.rows:
        numbers = [
            "-" if number is None else f"{number:.{column.digits}f}"
            for number, column in zip(row.numbers, table.columns, strict=True)
        ]
        lines.append(line_of([row.method, *(row.about.get(word, "") for word in table.words), *numbers]))
    for model in models:
        cells = [cell(model, column, notes) for column in table.columns]
        if any(text != "-" for text in cells):
            lines.append(line_of([f"**{model.name}**", *(words_of(model, word) for word in table.words), *cells]))
    return "\n".join([*lines, "", f"Published rows: {SOURCE}. {table.note}".rstrip()])


def words_of(model: Ours, title: str) -> str:
    """A column of words: what a result says under `columns` in its extras, and the size of pictures."""
    for result in model.results.values():
        if title in (columns := result["extra"].get("columns", {})):
            return str(columns[title])
    images = next((r["image_format"] for r in model.results.values() if isinstance(r["image_format"], Mapping)), {})
    return str(images["size"][0]) if title == "Res." and "size" in images else ""


def line_of(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def cell(model: Ours, column: Column, notes: Notes) -> str:
    """Our number with its interval; marked where it is not comparable."""
    score = score_of(model, column)
    if score is None:
        return "-"
    result = model.results[column.benchmark]
    value, low, high = (column.scale * score[name] for name in ("value", "low", "high"))
    text = f"{value:.{column.digits}f} ({low:.{column.digits}f} to {high:.{column.digits}f})"
    return text + "".join(f" [{notes.setdefault(note, len(notes) + 1)}]" for note in remarks(result, score, column))


def score_of(model: Ours, column: Column) -> Mapping[str, Any] | None:
    """Our score for a column, if there is one."""
    result = model.results.get(column.benchmark)
    return result["scores"].get(column.score or result["headline"]) if result else None


def remarks(result: Result, score: Mapping[str, Any], column: Column) -> list[str]:
    """What keeps a number from being compared with the published ones."""
    found = []
    if CUSTOM.search(result["protocol"]) or not result["is_complete"]:
        found.append(f"Not the official set: {result['protocol']}, {completeness(result)}.")
    if not result["protocol"].startswith(column.protocol):
        found.append(f"Another protocol than the published rows: {result['protocol']}, not {column.protocol}.")
    if column.items not in (None, score["count"]):
        found.append(f"Another set of pictures than the published rows: {score['count']}, not {column.items}.")
    return found


def details(models: Sequence[Ours]) -> list[str]:
    """How every number was measured."""
    lines = ["## How it was measured", ""]
    lines.append(line_of(["Model", "Protocol", "Items", "Prompts", "Decoding", "Images", "Judge", "Seed"]))
    lines.append(line_of(["---"] * 8))
    for model in models:
        for result in model.results.values():
            items = completeness(result)
            settings = [flat(result[name]) for name in ("prompts", "decoding", "image_format")]
            lines.append(
                line_of([model.name, result["protocol"], items, *settings, flat(result["judge"]), flat(result["seed"])])
            )
    return lines


def flat(value: Any) -> str:
    """A small dictionary as words; a dash for what there is not."""
    if value is None:
        return "-"
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{name} {item}" for name, item in value.items())
