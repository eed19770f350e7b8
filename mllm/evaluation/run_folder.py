"""The folder of one run: what was run, the answers as they come, and all answers when there are all.

    run.json          what decides the answers: benchmark, question file, model, decoding, seed, versions
    parts/00000.jsonl answers of process 0 in the order they came, one line each, flushed batch by batch
    answers.jsonl     all answers in the order of the questions, written once nothing is missing

A line that a kill cut off is dropped and its item done again. A folder that belongs to another run is refused.
Processes need not talk to each other: each writes its own part; who finishes last finds everything there and merges it.
A part is locked while it is written, so a run that is started twice (or whose workers outlived a killed launcher) does
not answer twice; the system takes the lock away with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.evaluation.benchmark import Item
from mllm.json_files import as_line, read_json, write_json, write_lines

logger = logging.getLogger(__name__)

RUN_FILE, ANSWERS_FILE, PARTS = "run.json", "answers.jsonl", "parts"
FORMAT = "mllm-run-1"


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the items this process does: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """As torchrun and accelerate tell it; alone where nobody does."""
        share = cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        if not 0 <= share.rank < share.size:
            raise ValueError(f"RANK {share.rank} is none of {share.size} processes; start them with torchrun")
        return share

    def indices(self, count: int) -> range:
        """The items of this process; strided, so that slow stretches of a file are shared."""
        return range(self.rank, count, self.size)


class RunFolder:
    """One run on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def answers_file(self) -> Path:
        return self.folder / ANSWERS_FILE

    def open(self, description: Mapping[str, Any]) -> None:
        """Write what is run, or check that it is what the folder was made for."""
        wanted = as_stored(description)
        path = self.folder / RUN_FILE
        has_answers = any(self.folder.glob(f"{PARTS}/*.jsonl"))  # before run.json: another process may be beginning too
        if not path.is_file():
            if has_answers:
                raise ValueError(f"{self.folder} holds answers but no {RUN_FILE}: whose are they? Name a new folder")
            write_json(path, wanted)
        found = read_json(path)
        if name := first_difference(found, wanted):
            raise ValueError(
                f"{self.folder} belongs to another run: found {name} {json.dumps(found.get(name))} there, "
                f"{json.dumps(wanted.get(name))} here; name a new folder, or repeat the settings of the old one"
            )

    def is_of_another(self, description: Mapping[str, Any]) -> bool:
        """Whether something else was run here."""
        path = self.folder / RUN_FILE
        return path.is_file() and first_difference(read_json(path), as_stored(description)) is not None

    def describe(self) -> dict[str, Any]:
        """What was run here."""
        path = self.folder / RUN_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} is no folder of a run: found no {RUN_FILE}; give --output of mllm evaluate"
            )
        return read_json(path)

    def part_file(self, rank: int) -> Path:
        return self.folder / PARTS / f"{rank:05d}.jsonl"

    def read_parts(self) -> dict[int, dict[str, Any]]:
        """Answers so far, of all processes, by the number of the item."""
        done: dict[int, dict[str, Any]] = {}
        for path in sorted((self.folder / PARTS).glob("*.jsonl")):
            for record in read_part(path):
                index = record.pop("index")
                if done.setdefault(index, record) != record:
                    raise ValueError(f"{path} answers item {index} differently from another part; remove one of them")
        return done

    @contextmanager
    def hold_part(self, rank: int) -> Iterator[None]:
        """Be the only process that writes this part."""
        path = self.part_file(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{path} belongs to a run that is going on: found it locked by another process; wait for that run, "
                    "or end it first"
                ) from error
            except OSError as error:  # a file system without locks
                logger.warning("%s cannot be locked (%s); start this run only once at a time", path, error)
            yield

    def append(self, rank: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Add answers of one process; they are on the disk when this returns."""
        path = self.part_file(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(as_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())

    def merge(self, items: Sequence[Item], *, model_id: str) -> bool:
        """Write all answers in the order of the items if there are all; says whether there are."""
        done = self.read_parts()
        if missing := [index for index in range(len(items)) if index not in done]:
            return not missing
        write_lines(
            self.answers_file,
            (as_answer(item, done[index], model_id=model_id) for index, item in enumerate(items)),
        )
        return True


def as_stored(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as run.json gives it back."""
    return json.loads(json.dumps({"format": FORMAT, **description}))


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting in which two descriptions differ."""
    return next((name for name in [*wanted, *found] if found.get(name) != wanted.get(name)), None)


def read_part(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a part; a line without its end is still being written, or was cut off."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON: found {error}; remove the line to redo it") from error
    return records


def as_answer(item: Item, answer: Mapping[str, Any], *, model_id: str) -> dict[str, Any]:
    """One line of answers.jsonl, with the fields of LLaVA's answers files; pictures are named, not held."""
    name = hashlib.sha256(f"{model_id}\n{item.key}\n{json.dumps(answer, sort_keys=True)}".encode()).hexdigest()[:22]
    given = {"question_id": item.question_id, "prompt": item.prompt, **answer}
    return {**given, "answer_id": name, "model_id": model_id, "metadata": {}}
