"""Tables that set our results beside published ones, in Markdown.

In: results (mllm/evaluation/protocol.py). Out: text. Each model is one row; a number that is not over the official set,
or not over all of it, carries a mark and a footnote that says so. A second result for the same cell is refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm.evaluation.protocol import completeness

# Numbers that others published, for the tables of a report. Nothing here was measured by this toolkit.
#
# Source of all rows: the tables in the README of UniTok (github.com/FoundationVision/UniTok, September 2025), the code
# of Ma et al., "UniTok: A Unified Tokenizer for Visual Generation and Understanding", arXiv 2502.20321. None: not
# published there.


SOURCE = "README of UniTok (arXiv 2502.20321)"
FLANT5 = "genai-bench-527@vqascore-clip-flant5-xxl"
IMAGENET = 50_000
"""Pictures of its validation set."""


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a table: which result has it."""

    title: str
    benchmark: str  # as in result.json
    score: str | None = None  # name of the score; None: the headline
    digits: int = 1
    scale: float = 1.0  # of our number, to the unit of the published ones
    protocol: str = ""  # how the protocol of a comparable result begins
    items: int | None = None  # of a comparable score


@dataclass(frozen=True, slots=True)
class Row:
    """One published row."""

    method: str
    about: Mapping[str, str]  # columns of words
    numbers: tuple[float | None, ...]  # in the order of the table's columns


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the paper."""

    title: str
    words: tuple[str, ...]  # titles of the columns of words
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


def _understanding(method: str, llm: str, resolution: int, *numbers: float | None) -> Row:
    return Row(method, {"LLM": llm, "Res.": str(resolution)}, numbers)


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
        _understanding("Show-o", "Phi-1.5-1.3B", 256, 59.3, 48.7, None, 73.8, 948, None),
        _understanding("Liquid", "Gemma-7B", 512, 71.3, 58.4, 42.4, 81.1, 1119, None),
        _understanding("VILA-U", "Llama-2-7B", 256, 75.3, 58.3, 48.3, 83.9, 1336, 27.7),
        _understanding("UniTok", "Llama-2-7B", 256, 76.8, 61.1, 51.6, 83.2, 1448, 33.9),
    ),
    note="VQAv2 was published on test-dev (EvalAI); ours is on the split of the annotations. MME is perception alone.",
)

GENERATION = Table(
    "Generation, GenAI-Bench (527 prompts, advanced)",
    ("Type",),
    (
        Column("Count", "genai-bench-527", "counting", digits=2, protocol=FLANT5),
        Column("Differ", "genai-bench-527", "differentiation", digits=2, protocol=FLANT5),
        Column("Compare", "genai-bench-527", "comparison", digits=2, protocol=FLANT5),
        Column("Negate", "genai-bench-527", "negation", digits=2, protocol=FLANT5),
        Column("Universal", "genai-bench-527", "universal", digits=2, protocol=FLANT5),
        Column("Overall", "genai-bench-527", "advanced", digits=2, protocol=FLANT5),
    ),
    (
        Row("Show-o", {"Type": "discrete diffusion"}, (0.70, 0.62, 0.71, 0.51, 0.65, 0.60)),
        Row("VILA-U", {"Type": "autoregressive"}, (0.70, 0.71, 0.74, 0.53, 0.66, 0.64)),
        Row("Liquid", {"Type": "autoregressive"}, (0.76, 0.73, 0.74, 0.46, 0.74, 0.65)),
        Row("UniTok", {"Type": "autoregressive"}, (0.76, 0.79, 0.74, 0.46, 0.73, 0.67)),
    ),
    note="Published rows were scored by CLIP-FlanT5-XXL.",
)


def _tokenizer(method: str, kind: str, tokens: int, fid: float | None, accuracy: float | None) -> Row:
    return Row(method, {"Kind": kind, "Tokens": str(tokens)}, (fid, accuracy))


TOKENIZERS = Table(
    "Tokenizers, ImageNet 256 x 256",
    ("Kind", "Tokens"),
    (
        Column("rFID", "tokenizer", "rFID", digits=2, items=IMAGENET),
        Column("Accuracy", "tokenizer", "zero-shot top-1", items=IMAGENET),
    ),
    (
        _tokenizer("VQ-GAN", "VQVAE", 256, 4.98, None),
        _tokenizer("RQ-VAE", "VQVAE", 256, 1.30, None),
        _tokenizer("VAR", "VQVAE", 680, 0.90, None),
        _tokenizer("CLIP", "CLIP", 256, None, 76.2),
        _tokenizer("SigLIP", "CLIP", 256, None, 80.5),
        _tokenizer("ViTamin", "CLIP", 256, None, 81.2),
        _tokenizer("TokenFlow (CLIP init)", "unified", 680, 1.37, None),
        _tokenizer("VILA-U (CLIP init)", "unified", 256, 1.80, 73.3),
        _tokenizer("UniTok", "unified", 256, 0.41, 70.8),
        _tokenizer("UniTok (CLIP init)", "unified", 256, 0.38, 78.6),
    ),
    note="CLIP init: the encoder began from weights of a pretrained CLIP.",
)

TABLES = (UNDERSTANDING, GENERATION, TOKENIZERS)


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
