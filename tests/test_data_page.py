"""The page on data is executed: its commands run as written, its example records are read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
RECORDS = [(kind, line) for kind, block in BLOCKS if kind not in ("sh", "yaml") for line in block.splitlines()]


@pytest.mark.parametrize(("kind", "line"), RECORDS)
def test_example_records_are_of_the_format_they_show(kind: str, line: str) -> None:
    from train.data.importers.formats import IMPORTERS, format_of

    fields = json.loads(line)
    assert format_of(fields) == kind
    assert IMPORTERS[kind](fields, Path("pictures")).turns


def test_every_format_is_on_the_page() -> None:
    from train.data.importers.formats import IMPORTERS
    from train.prepare import FORMATS

    assert tuple(IMPORTERS) == FORMATS
    assert all(f"**{name}**" in PAGE for name in IMPORTERS)
    assert {kind for kind, _ in RECORDS} == set(IMPORTERS) - {"webdataset"}


def test_keys_of_the_table_are_those_of_recipes() -> None:
    from train.mllm_recipe import MLLMData

    table = PAGE[PAGE.index("| key of `data`") :]
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]*) ?\|", table, flags=re.MULTILINE)
    defaults = MLLMData()
    assert [name for name, _ in rows] == ["shards", "prompt_dropout", "describe_share", "lookahead", "lanes", "seed"]
    assert all(getattr(defaults, name) == float(value) for name, value in rows if value)


@pytest.mark.slow
def test_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with the toolkit's own model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "mllm").symlink_to(ROOT / "mllm")  # the recipe names the bundled model by its path in the project
    (recipe,) = (block for kind, block in BLOCKS if kind == "yaml")
    (tmp_path / "mixed.yaml").write_text(recipe)
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)
        match words[0]:
            case "mllm":
                assert main(words[1:]) == 0, line
            case "python":
                subprocess.run([sys.executable, *words[1:]], check=True)
            case "torchrun":
                subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]], check=True)
            case _:
                raise AssertionError(f"the page shows a command of an unknown kind: {line}")
    assert json.loads((tmp_path / "runs/data/shared/manifest.json").read_text())["records"] == 10
    assert list((tmp_path / "runs/data/dialogues/samples").glob("*.png"))
    entries = [json.loads(line) for line in (tmp_path / "runs/mixed/metrics.jsonl").read_text().splitlines()]
    paddings = [entry["padding_share"] for entry in entries if "padding_share" in entry]
    assert len(paddings) == 2 and max(paddings) < 0.05
    assert (tmp_path / "runs/mixed/final/config.json").is_file()
