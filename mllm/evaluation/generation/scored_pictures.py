"""Score the pictures of a run, batch by batch, so that a stopped scoring goes on where it was.

In: answered items with pictures, a scorer, a folder. Out: one score per item; they are kept in a file of the scorer's
name, each with the hash of the picture it is about, so a picture that was drawn anew is scored anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mllm.evaluation.benchmark import Answered
from mllm.evaluation.generation.image_text_scorer import ImageTextScorer
from mllm.json_files import as_line, drop_torn_line, read_lines


def score_pictures(answered: Sequence[Answered], scorer: ImageTextScorer, folder: Path | None) -> list[float]:
    """How well each picture shows its prompt."""
    about = json.dumps(dict(scorer.description), sort_keys=True)
    file = None if folder is None else folder / f"scores-{hashlib.sha256(about.encode()).hexdigest()[:12]}.jsonl"
    names = [name_of(item) for item in answered]
    known = read_scores(file)
    missing = [n for n, name in enumerate(names) if name not in known]
    for start in tqdm(range(0, len(missing), scorer.batch_size), desc="scores", disable=not missing):
        batch = missing[start : start + scorer.batch_size]
        found = scorer([picture_of(answered[n]) for n in batch], [answered[n].item.prompt for n in batch])
        for n, score in zip(batch, found, strict=True):
            known[names[n]] = score
        if file is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.writelines(as_line({"picture": names[n], "score": known[names[n]]}) for n in batch)
    return [known[name] for name in names]


def read_scores(file: Path | None) -> dict[str, float]:
    """Scores so far, by picture and prompt."""
    if file is None or not file.is_file():
        return {}
    drop_torn_line(file)
    return {line.record["picture"]: line.record["score"] for line in read_lines(file)}


def picture_of(answered: Answered) -> Path:
    """The file of the picture."""
    assert answered.image is not None, f"{answered.where} has no picture, but its benchmark draws"
    return answered.image


def name_of(answered: Answered) -> str:
    """A hash of the picture's content and its prompt."""
    digest = hashlib.sha256(picture_of(answered).read_bytes())
    digest.update(answered.item.prompt.encode())
    return digest.hexdigest()[:16]
