"""Put the items of a benchmark to a model: shared among processes, in batches, resumable, with progress.

In: items, something that answers a batch of them, a run folder. Out: answers.jsonl in that folder when all processes
are done. Every item has its own seed (the run's plus its number), so answers depend neither on the batch size nor on
the number of processes. Knows no model, no benchmark and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mllm.evaluation.benchmark import Item
from mllm.evaluation.run_folder import RunFolder, Share
from mllm.json_files import drop_torn_line

Answer = Callable[[Sequence[Item], Sequence[int]], list[str | Image.Image]]
"""(items, their seeds) -> a text or a picture for each."""


def run_items(
    items: Sequence[Item],
    answer: Answer,
    folder: RunFolder,
    *,
    description: Mapping[str, Any],
    batch_size: int,
    share: Share | None = None,
) -> bool:
    """Answer the items of this process that have no answer yet; says whether the answers of all processes are there.

    Args:
        description: what decides the answers (see mllm/evaluation/description.py); has `seed` and `model`.
    """
    share = share or Share()
    folder.open(description)
    with folder.hold_part(share.rank):
        drop_torn_line(folder.part_file(share.rank))
        answer_open_items(items, answer, folder, seed=description["seed"], batch_size=batch_size, share=share)
    return folder.merge(items, model_id=description["model"]["fingerprint"])


def answer_open_items(
    items: Sequence[Item], answer: Answer, folder: RunFolder, *, seed: int, batch_size: int, share: Share
) -> None:
    """Answer, batch by batch, what this process has left to do; item i has seed + i."""
    done = folder.read_parts()
    mine = share.indices(len(items))
    open_ = [index for index in mine if index not in done]
    with tqdm(
        total=len(mine), initial=len(mine) - len(open_), unit="item", desc="answers", disable=share.rank != 0
    ) as progress:
        for start in range(0, len(open_), batch_size):
            batch = open_[start : start + batch_size]
            seeds = [seed + index for index in batch]
            answers = answer_batch([items[index] for index in batch], seeds, answer)
            records = [
                {"index": index, **store(items[index], given, seed=item_seed, folder=folder.folder)}
                for index, item_seed, given in zip(batch, seeds, answers, strict=True)
            ]
            folder.append(share.rank, records)
            progress.update(len(batch))


def answer_batch(items: Sequence[Item], seeds: Sequence[int], answer: Answer) -> list[str | Image.Image]:
    """Answers to a batch; an error names the item that it is about."""
    try:
        return answer(items, seeds)
    except (ValueError, OSError):
        for item, seed in zip(items, seeds, strict=True):
            try:
                answer([item], [seed])
            except (ValueError, OSError) as error:
                raise ValueError(f"{item.where}: {error}") from error
        raise


def store(item: Item, given: str | Image.Image, *, seed: int, folder: Path) -> dict[str, Any]:
    """What a part says about an answer; a picture goes to its file first, without loss."""
    if isinstance(given, str):
        return {"text": given}
    assert item.output is not None, f"item {item.key} asks for a picture and names no file for it"
    path = folder / item.output
    path.parent.mkdir(parents=True, exist_ok=True)
    given.save(path)
    return {"image": item.output, "seed": seed}
