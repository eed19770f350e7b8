"""Plot the losses of a training of several stages, from the logs that `mllm train` writes.

In: metrics.jsonl of each stage, in order. Out: one image with the text and image losses over all steps.

example: python -m docs.plot_training docs/ablations/training.png runs/tiny_first/metrics.jsonl runs/tiny/metrics.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from docs.plot_ablations import load_pyplot

LOSSES = {"text_loss": "text, nats a token", "image_loss": "image, nats a code"}


def main(output: Path, logs: Sequence[Path]) -> None:
    """Plot the losses on logarithmic scales, with a line where a stage begins."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    rows, begins = read_stages(logs)
    for name, label in LOSSES.items():
        axes.plot([step for step, _ in rows], [values[name] for _, values in rows], label=label)
    for begin in begins[1:]:
        axes.axvline(begin, color="gray", linestyle=":", label="a stage begins")
    axes.set(xlabel="steps of training", ylabel="loss", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=3)
    figure.savefig(output, dpi=130)
    pyplot.close(figure)


def read_stages(logs: Sequence[Path]) -> tuple[list[tuple[int, dict[str, float]]], list[int]]:
    """(step over all stages, values) in order, and the steps at which stages begin."""
    rows: list[tuple[int, dict[str, float]]] = []
    begins = []
    for log in logs:
        begins.append(rows[-1][0] if rows else 0)
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        rows += [(begins[-1] + entry["step"], entry) for entry in entries if LOSSES.keys() <= entry.keys()]
    return rows, begins


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
