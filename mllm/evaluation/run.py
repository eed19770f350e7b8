"""Run a benchmark: put its items to a model as a stream, shared among processes, resumable.

In: items, something that answers them, a run folder. Out: the run folder:

    run.json          what decides the answers: benchmark, question file, model, decoding, seed, versions
    parts/00000.jsonl answers of process 0 in the order they came
    answers.jsonl     all answers in the order of the questions, written once nothing is missing

Item i has the seed of the run plus i, so answers depend neither on the batch size nor on the number of processes. The
processes need not communicate: each writes its own part, and the last one to finish merges. A line cut off by a kill is
dropped and its item answered again. A folder of another run is refused. A part is locked while it is written, so that a
run which is started twice does not answer twice; the operating system releases the lock with the process. Knows no
model and imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mllm.evaluation.protocol import BenchmarkItem
from mllm.files import (
    Line,
    append_lines,
    drop_torn_line,
    only_writer,
    parse_json,
    read_json,
    read_lines,
    write_image,
    write_json,
    write_lines,
)

RUN_FILE, ANSWERS_FILE, PARTS = "run.json", "answers.jsonl", "parts"
RUN_FORMAT = "mllm-run-1"

Answer = str | Image.Image
AnswerItems = Callable[[Sequence[BenchmarkItem], Sequence[int], int], Iterable[tuple[int, Answer]]]
"""(items, their seeds, how many at the same time) -> the index and the text or image of each, as they end."""


def shard_from_environment() -> tuple[int, int]:
    """The number of this process, and how many there are, as torchrun and accelerate set it."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK must be in [0, WORLD_SIZE), got {rank} of {world_size}; use torchrun")
    return rank, world_size


class RunFolder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.run_file, self.answers_file = folder, folder / RUN_FILE, folder / ANSWERS_FILE

    def open(self, description: Mapping[str, Any]) -> None:
        """Write what is run, or check that the folder was made for it."""
        has_answers = any(self.folder.glob(f"{PARTS}/*.jsonl"))  # read before run.json, which another process may write
        if not self.run_file.is_file():
            if has_answers:
                raise ValueError(f"{self.folder} contains answers but no {RUN_FILE}; choose an empty output folder")
            write_json(self.run_file, {"format": RUN_FORMAT, **description})
        if what := next(self.differences(description), None):
            raise ValueError(f"{self.folder} must belong to this run, got {what}; choose an empty folder")

    def is_of_another(self, description: Mapping[str, Any]) -> bool:
        return self.run_file.is_file() and any(self.differences(description))

    def differences(self, description: Mapping[str, Any]) -> Iterator[str]:
        """The settings in which run.json has something else."""
        found, wanted = read_json(self.run_file), json.loads(json.dumps({"format": RUN_FORMAT, **description}))
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                there, here = (json.dumps(each.get(name)) for each in (found, wanted))
                yield f"{name} {there} there, {here} here"

    def describe(self) -> dict[str, Any]:
        if not self.run_file.is_file():
            raise FileNotFoundError(f"{self.folder} must be --output of mllm evaluate, got no {RUN_FILE} in it")
        return read_json(self.run_file)

    def part_file(self, rank: int) -> Path:
        return self.folder / PARTS / f"{rank:05d}.jsonl"

    def read_parts(self) -> dict[int, dict[str, Any]]:
        """Answers so far, of all processes, by the index of the item."""
        done: dict[int, dict[str, Any]] = {}
        for path in sorted((self.folder / PARTS).glob("*.jsonl")):
            for record in read_part(path):
                index = record.pop("index")
                if done.setdefault(index, record) != record:
                    raise ValueError(f"item {index} must have one answer, got another in {path}; remove one of them")
        return done

    def read_answers(self, items: Sequence[BenchmarkItem], *, partial: bool) -> list[Line]:
        """The answers of a run; those of an unfinished one only if `partial`."""
        if self.answers_file.is_file():
            return read_lines(self.answers_file)
        done = self.read_parts()
        if not partial:
            raise ValueError(
                f"{self.folder} must be finished, got {len(done)} of {len(items)} answers; resume it, or use --partial"
            )
        answers = {index: as_answer(items[index], done[index], model_id="") for index in sorted(done)}
        return [Line(f"{self.folder}, item {index}", answer) for index, answer in answers.items()]

    def merge(self, items: Sequence[BenchmarkItem], *, model_id: str) -> bool:
        """Write all answers in the order of the items if none is missing; returns whether that is so."""
        done = self.read_parts()
        if any(index not in done for index in range(len(items))):
            return False
        answers = (as_answer(item, done[index], model_id=model_id) for index, item in enumerate(items))
        write_lines(self.answers_file, answers)
        return True


def read_part(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a part; a line without its end is still being written, or was cut off."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            records.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON ({error}); remove the line") from error
    return records


def as_answer(item: BenchmarkItem, answer: Mapping[str, Any], *, model_id: str) -> dict[str, Any]:
    """One line of answers.jsonl, with the fields of LLaVA's answers files; images are given by file name."""
    name = hashlib.sha256(f"{model_id}\n{item.key}\n{json.dumps(answer, sort_keys=True)}".encode()).hexdigest()[:22]
    given = {"question_id": item.question_id, "prompt": item.prompt, **answer}
    return {**given, "answer_id": name, "model_id": model_id, "metadata": {}}


def run_items(
    items: Sequence[BenchmarkItem],
    answer: AnswerItems,
    folder: RunFolder,
    *,
    description: Mapping[str, Any],
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
) -> bool:
    """Answer the items of this process that have no answer yet; returns whether all processes are done.

    Args:
        description: what decides the answers (mllm/evaluation/answerer.py `describe_run`); has `seed` and `model`.
        batch_size: items that are answered at the same time, and answers that are written together.
        shard: process r of n answers every n-th item from r on, so that slow stretches of a file are shared.
    """
    folder.open(description)
    rank, world_size = shard
    with only_writer(folder.folder / PARTS, lock_name=f"{rank:05d}.jsonl.lock"):
        drop_torn_line(folder.part_file(rank))
        done, mine = folder.read_parts(), range(rank, len(items), world_size)
        todo = [index for index in mine if index not in done]
        seeds = [description["seed"] + index for index in todo]
        answers = answer([items[index] for index in todo], seeds, batch_size)
        about = {"total": len(mine), "initial": len(mine) - len(todo), "unit": "item", "desc": "answers"}
        records: list[dict[str, Any]] = []
        try:
            for number, given in tqdm(answers, disable=rank != 0, **about):
                stored = store(items[todo[number]], given, seed=seeds[number], folder=folder.folder)
                records.append({"index": todo[number], **stored})
                if len(records) >= batch_size:
                    append_lines(folder.part_file(rank), records)
                    records = []
        finally:
            append_lines(folder.part_file(rank), records)
    return folder.merge(items, model_id=description["model"]["fingerprint"])


def store(item: BenchmarkItem, given: Answer, *, seed: int, folder: Path) -> dict[str, Any]:
    """The record of an answer; an image is saved to its file first."""
    if isinstance(given, str):
        return {"text": given}
    assert item.output is not None, f"item {item.key} asks for an image but names no file for it"
    write_image(folder / item.output, given)
    return {"image": item.output, "seed": seed}
