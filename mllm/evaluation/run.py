"""Put the items of a benchmark to a model: shared among processes, in batches, resumable, with progress.

In: items, something that answers a batch of them, a run folder. Out: answers.jsonl in that folder when all processes
are done. Every item has its own seed (the run's plus its number), so answers depend neither on the batch size nor on
the number of processes. Knows no model, no benchmark and no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mllm.conversation import ClassPart, ImagePart, Message, TextPart
from mllm.engine.request import image_settings, text_settings
from mllm.evaluation.protocol import Benchmark, Item, Mode, model_fingerprint
from mllm.files import as_line, drop_torn_line, fingerprint_of, read_json, tool_versions, write_json, write_lines
from mllm.pipeline import Pipeline, candidate_seeds, keep_best
from mllm.processor import Overrides
from tokenizer.images import open_image

# The folder of one run: what was run, the answers as they come, and all answers when there are all.
#
#     run.json          what decides the answers: benchmark, question file, model, decoding, seed, versions
#     parts/00000.jsonl answers of process 0 in the order they came, one line each, flushed batch by batch
#     answers.jsonl     all answers in the order of the questions, written once nothing is missing
#
# A line that a kill cut off is dropped and its item done again. A folder that belongs to another run is refused.
# Processes need not talk to each other: each writes its own part; who finishes last finds everything there and merges
# it.
# A part is locked while it is written, so a run that is started twice (or whose workers outlived a killed launcher)
# does
# not answer twice; the system takes the lock away with the process.


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
        description: what decides the answers (see mllm/evaluation/run.py); has `seed` and `model`.
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


# Lets a pipeline answer the items of a benchmark: opens pictures, asks, and gives one text or one picture for each.


@dataclass(frozen=True, slots=True)
class PipelineAnswerer:
    """An `Answer` of the runner."""

    pipeline: Pipeline
    mode: Mode
    sampling: Overrides
    best_of: int = 1  # candidates for each picture, among which the model chooses itself

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[str | Image.Image]:
        """One answer for each item."""
        if self.best_of > 1 and self.mode == "image":
            return list(self.draw_best(items, seeds))
        dialogues = [[as_message(item)] for item in items]
        answers = self.pipeline.answer(dialogues, self.mode, seeds, **self.sampling)
        return [" ".join(map(str, parts)) if self.mode == "text" else parts[0] for parts in answers]

    def draw_best(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Image.Image]:
        """The best of several pictures for each item."""
        jobs = [(item, s) for item, seed in zip(items, seeds, strict=True) for s in candidate_seeds(seed, self.best_of)]
        dialogues = [[as_message(item)] for item, _ in jobs]
        answers = self.pipeline.answer(dialogues, "image", [seed for _, seed in jobs], **self.sampling)
        pictures = [part for parts in answers for part in parts if isinstance(part, Image.Image)]
        scores = self.pipeline.judge(pictures, [item.prompt for item, _ in jobs])
        return keep_best(pictures, scores, best_of=self.best_of)


def as_message(item: Item) -> Message:
    """What the user says: the pictures, then the words; or the number of a class."""
    if "class" in item.fields:
        return Message("user", (ClassPart(item.fields["class"]),))
    pictures = [ImagePart(open_image(path)) for path in item.images]
    return Message("user", (*pictures, TextPart(item.prompt)))


# What decides the answers of a run, in plain values: it goes into run.json and from there into every result.
#
# In: a pipeline, a benchmark, the settings. Out: a dictionary. Two runs with equal descriptions give equal answers.


def describe_run(
    pipeline: Pipeline,
    benchmark: Benchmark,
    questions: Path,
    *,
    counts: tuple[int, int],
    seed: int,
    sampling: Mapping[str, Any],
    prompts: str = "raw",
) -> dict[str, Any]:
    """The description of a run.

    Args:
        counts: items of this run, and items in the question file.
        sampling: settings that were asked for; those of the checkpoint hold for the rest.
        prompts: "raw", or "rewritten" where somebody changed the words of the benchmark.
    """
    config = pipeline.config
    return {
        "benchmark": benchmark.name,
        "questions": {"file": questions.name, "fingerprint": fingerprint_of(questions)},
        "items": counts[0],
        "items_in_file": counts[1],
        "seed": seed,
        "model": {
            "fingerprint": model_fingerprint(pipeline.model),
            "image_tokenizer": pipeline.processor.need_image_tokenizer().fingerprint(),
            "dtype": str(pipeline.model.dtype).removeprefix("torch."),
        },
        "prompts": prompts,
        "prompt_style": config.prompt_style,
        "decoding": describe_decoding(pipeline, benchmark, sampling),
        "image_format": describe_images(pipeline, benchmark),
        "versions": tool_versions(),
    }


def describe_decoding(pipeline: Pipeline, benchmark: Benchmark, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that hold in the end; of greedy texts only that they are."""
    chosen = {name: value for name, value in sampling.items() if name != "max_new_tokens"}
    stored = pipeline.rows.stored_settings
    if benchmark.mode == "image":
        return asdict(image_settings(pipeline.config, stored.get("draw", {}), chosen))
    settings = text_settings(pipeline.model.generation_config, stored.get("ask_text", {}), chosen)
    named = {"greedy": True} if settings.greedy else asdict(settings)
    return {**named, "max_new_tokens": sampling.get("max_new_tokens")}


def describe_images(pipeline: Pipeline, benchmark: Benchmark) -> dict[str, Any]:
    """How pictures get to the model, or which files it writes."""
    size = pipeline.sizes[0]
    if benchmark.mode == "text":
        return {"size": list(size), "preparation": pipeline.processor.preparation}
    return {"size": list(size), "file": "png"}
