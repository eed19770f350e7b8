"""Plot what a choice is worth, from reports of `mllm evaluate world --json`.

In: a folder with CHOICE-VALUE.json, one report for each value (scripts/measure_ablations.sh and
scripts/train_ablations.sh write them). Out: CHOICE.png beside them with a line, or bars where the values are no
numbers, for every group of the table.

example: python -m docs.plot_ablations docs/ablations
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from mllm.files import read_json

LABELS = {
    "guidance": "guidance scale",
    "redraws": "resamples of images that contradict their plan, at most",
    "steps": "steps of training",
    "context": "embedding context while decoding",
    "head": "code head",
    "codebooks": "codebooks",
}


def main(folder: Path) -> None:
    """Plot every choice that has reports."""
    for choice, reports in read_reports(folder).items():
        plot(choice, reports, folder / f"{choice}.png")


def load_pyplot() -> Any:
    """The plotting library, drawing to files."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit(
            "plots need matplotlib, which is not installed; install it with: pip install 'mllm-toolkit[plots]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def read_reports(folder: Path) -> dict[str, dict[str, dict]]:
    """Scores by choice and value, values in order."""
    found: dict[str, dict[str, dict]] = defaultdict(dict)
    for path in folder.glob("*-*.json"):
        choice, _, value = path.stem.partition("-")
        found[choice][value] = read_json(path)["scores"]
    return {choice: dict(sorted(found[choice].items(), key=order_of)) for choice in sorted(found)}


def order_of(item: tuple[str, Any]) -> tuple[float, str]:
    """Numbers by size, then words."""
    value = as_number(item[0])
    return (float("inf") if value is None else value), item[0]


def as_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def plot(choice: str, reports: dict[str, dict], path: Path) -> None:
    """Pass rates with their 95 % intervals over the values of a choice."""
    pyplot = load_pyplot()
    values = list(reports)
    numbers = [as_number(value) for value in values]
    are_numbers = None not in numbers
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    groups = [group for group in reports[values[0]] if all(group in scores for scores in reports.values())]
    for n, group in enumerate(groups):
        scores = [reports[value][group] for value in values]
        rates = [100 * score["rate"] for score in scores]
        errors = [[100 * abs(score["rate"] - score[end]) for score in scores] for end in ("low", "high")]
        shift = (n - (len(groups) - 1) / 2) * 0.8 / len(groups)
        if are_numbers:
            axes.errorbar(numbers, rates, yerr=errors, marker="o", capsize=3, label=group)
        else:
            places = [index + shift for index in range(len(values))]
            axes.bar(places, rates, 0.8 / len(groups), yerr=errors, capsize=3, label=group)
    axes.set_xticks(numbers if are_numbers else range(len(values)), values)
    axes.set(xlabel=LABELS.get(choice, choice), ylabel="pass rate, %", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
