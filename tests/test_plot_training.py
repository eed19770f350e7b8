"""Logs of stages become one plot over all their steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from docs.plot_training import main, read_stages


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    paths = []
    for stage, losses in enumerate(([3.0, 2.0, 1.0], [1.5, 0.5])):
        rows = [{"step": 10 * n, "text_loss": loss, "image_loss": loss / 2} for n, loss in enumerate(losses, start=1)]
        rows.append({"step": 10 * len(losses), "eval_draw": 0.5})  # a line of another kind
        paths.append(tmp_path / f"{stage}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def test_steps_go_on_where_the_stage_before_ended(logs: list[Path]) -> None:
    rows, begins = read_stages(logs)
    assert [(step, values["text_loss"]) for step, values in rows] == [
        (10, 3.0), (20, 2.0), (30, 1.0), (40, 1.5), (50, 0.5),
    ]  # fmt: skip
    assert begins == [0, 30]


def test_a_training_is_plotted(logs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    main(tmp_path / "training.png", logs)
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors()) > 3
