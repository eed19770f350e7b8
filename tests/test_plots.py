"""The scripts of docs/ that plot: reports become one plot for each choice, logs of stages one over all their steps."""

import json
from pathlib import Path

import pytest
from PIL import Image

from docs.plot_ablations import plot, read_reports
from docs.plot_training import main, read_stages


def check_plot(path: Path) -> None:
    with Image.open(path) as image:
        assert image.width > 400 and len(image.convert("L").getcolors()) > 3


def test_each_choice_is_plotted_with_numbers_in_order(tmp_path: Path) -> None:
    for name in ("guidance-10", "guidance-1.5", "guidance-2", "context-prefix", "context-current"):
        score = {"rate": 0.5, "low": 0.4, "high": 0.6}
        (tmp_path / f"{name}.json").write_text(json.dumps({"scores": {"draw, seen pairs": score, "edit": score}}))
    found = read_reports(tmp_path)
    assert {name: list(values) for name, values in found.items()} == {
        "context": ["current", "prefix"],
        "guidance": ["1.5", "2", "10"],
    }
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    for choice, reports in found.items():
        plot(choice, reports, tmp_path / f"{choice}.png")
        check_plot(tmp_path / f"{choice}.png")


def test_steps_of_a_stage_follow_those_of_the_stage_before(tmp_path: Path) -> None:
    logs = []
    for stage, losses in enumerate(([3.0, 2.0, 1.0], [1.5, 0.5])):
        rows = [{"step": 10 * n, "text_loss": loss, "image_loss": loss / 2} for n, loss in enumerate(losses, start=1)]
        rows.append({"step": 10 * len(losses), "eval_draw": 0.5})  # a line of another kind
        logs.append(tmp_path / f"{stage}.jsonl")
        logs[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows, begins = read_stages(logs)
    losses = [(step, values["text_loss"]) for step, values in rows]
    assert losses == [(10, 3.0), (20, 2.0), (30, 1.0), (40, 1.5), (50, 0.5)] and begins == [0, 30]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    main(tmp_path / "training.png", logs)
    check_plot(tmp_path / "training.png")
