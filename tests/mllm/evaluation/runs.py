"""What tests of the runner share: items without pictures, an answerer that needs no model, and a description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mllm.evaluation.protocol import Item
from mllm.evaluation.run import RunFolder, Share, run_items

DESCRIPTION = {"benchmark": "gqa", "items": 23, "seed": 5, "model": {"fingerprint": "abc"}}


def make_items(count: int, *, pictures: bool = False) -> list[Item]:
    """Questions, or requests for pictures."""
    return [
        Item(
            key=str(n),
            where=f"questions.jsonl, line {n + 1}",
            question_id=n,
            prompt=f"question {n}",
            output=f"images/{n + 1:05d}.png" if pictures else None,
        )
        for n in range(count)
    ]


class Answerer:
    """Answers with the item's words and seed; stops like a killed process after some batches."""

    def __init__(self, *, stop_after: int | None = None, pictures: bool = False) -> None:
        self.stop_after, self.pictures = stop_after, pictures
        self.asked: list[int | str] = []

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[str | Image.Image]:
        if self.stop_after is not None and self.stop_after <= 0:
            raise KeyboardInterrupt
        if self.stop_after is not None:
            self.stop_after -= 1
        self.asked += [item.question_id for item in items]
        if self.pictures:
            return [Image.new("RGB", (4, 4), (seed, 0, 0)) for seed in seeds]
        return [f"{item.prompt} seed {seed}" for item, seed in zip(items, seeds, strict=True)]


def run(
    folder: Path, answerer: Answerer, *, count: int = 23, batch_size: int = 4, rank: int = 0, size: int = 1
) -> bool:
    """One process of a run."""
    return run_items(
        make_items(count, pictures=answerer.pictures),
        answerer,
        RunFolder(folder),
        description=DESCRIPTION,
        batch_size=batch_size,
        share=Share(rank, size),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a run leaves for others, by name; parts are its own affair."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "parts"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
