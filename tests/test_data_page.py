"""The page on data is executed: its commands run as written, its example records are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pages import blocks_of, lay_out, run_block
from tests.train.launching import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = blocks_of("data.md")
RECORDS = [
    (block.language, line)
    for block in BLOCKS
    if not block.is_shell and block.language != "yaml"
    for line in block.text.splitlines()
]


def test_example_records_are_of_the_format_they_show() -> None:
    from train.data.importers import IMPORTERS, format_of

    for kind, line in RECORDS:
        fields = json.loads(line)
        assert format_of(fields) == kind and IMPORTERS[kind](fields, Path("images")).turns, line


def test_every_format_is_on_the_page() -> None:
    from mllm.cli.training import FORMATS
    from train.data.importers import IMPORTERS

    assert tuple(IMPORTERS) == FORMATS
    assert all(f"**{name}**" in PAGE for name in IMPORTERS)
    assert {kind for kind, _ in RECORDS} == set(IMPORTERS) - {"webdataset"}


def test_keys_of_the_table_are_those_of_recipes() -> None:
    from train.recipe import MLLMData

    table = PAGE[PAGE.index("| key of `data`") :]
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]*) ?\|", table, flags=re.MULTILINE)
    defaults = MLLMData()
    names = ["shards", "prompt_dropout", "describe_share", "buffer_size", "packing_buffers", "seed"]
    assert [name for name, _ in rows] == names
    assert all(getattr(defaults, name) == float(value) for name, value in rows if value)


@pytest.mark.slow
def test_commands_run_as_written(tmp_path: Path) -> None:
    """In an empty folder, with the toolkit's own model."""
    (recipe,) = (block.text for block in BLOCKS if block.language == "yaml")
    (tmp_path / "mixed.yaml").write_text(recipe)
    surroundings = lay_out(tmp_path)
    for block in BLOCKS:
        if block.is_shell:
            assert block.runs
            run_block(block, tmp_path, surroundings)
    assert json.loads((tmp_path / "runs/data/shared/manifest.json").read_text())["records"] == 10
    assert list((tmp_path / "runs/data/dialogues/samples").glob("*.png"))
    entries = [json.loads(line) for line in (tmp_path / "runs/mixed/metrics.jsonl").read_text().splitlines()]
    paddings = [entry["padding_share"] for entry in entries if "padding_share" in entry]
    assert len(paddings) == 2 and max(paddings) < 0.05
    assert (tmp_path / "runs/mixed/final/config.json").is_file()
