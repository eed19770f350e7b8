"""Reports of the world become one plot for each choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from docs.plot_ablations import plot, read_reports


def write(folder: Path, name: str, rate: float) -> None:
    score = {"rate": rate, "low": rate - 0.1, "high": rate + 0.1}
    (folder / f"{name}.json").write_text(json.dumps({"scores": {"draw, seen pairs": score, "edit": score}}))


def test_values_are_in_order_numbers_first(tmp_path: Path) -> None:
    for name in ("guidance-10", "guidance-1.5", "guidance-2", "context-prefix", "context-current"):
        write(tmp_path, name, 0.5)
    found = read_reports(tmp_path)
    assert list(found) == ["context", "guidance"]
    assert list(found["guidance"]) == ["1.5", "2", "10"] and list(found["context"]) == ["current", "prefix"]


@pytest.mark.parametrize("values", [("1", "2"), ("mlp", "depth_transformer")])
def test_a_choice_is_plotted(tmp_path: Path, values: tuple[str, str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    for value, rate in zip(values, (0.3, 0.6), strict=True):
        write(tmp_path, f"choice-{value}", rate)
    plot("choice", read_reports(tmp_path)["choice"], tmp_path / "choice.png")
    with Image.open(tmp_path / "choice.png") as picture:
        assert picture.width > 400 and len(picture.convert("L").getcolors()) > 3
