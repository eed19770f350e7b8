"""Packed batches of a source of sequences: batch b is the same whoever asks for it, and when.

A source fills packing buffers with sequences that wait for a row; each row takes from its buffer what fills it best
(`take_row`). Prepared data (train/data/mixture.py) has a fixed number of buffers: sample i goes to buffer i modulo that
number, and so does batch b, so that a process or loader worker reads only the samples of its own buffers. The synthetic
world (train/data/world.py) and images by class (train/data/classes.py) begin every batch with an empty buffer.

The state of a buffer (its next sample, and which sequences wait) is saved now and then, so that a resumed run need not
read everything before it. These checkpoints are a pure function of the data: they can be lost, or be written by several
processes. torchdata's StatefulDataLoader restores a run only with the same numbers of processes and workers.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.sequence import PackedBatch, TokenSequence, pack_rows, take_row
from tokenizer.unitok import UniTok

CHECKPOINT_EVERY = 16  # batches of a buffer between two of its checkpoints
MAX_TOO_LONG = 1000  # samples in succession that fit no row, before that is an error


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizers:
    """What turns samples into sequences."""

    text: PreTrainedTokenizerBase
    image: UniTok
    config: MLLMConfig


class BatchShape(NamedTuple):
    rows: int
    length: int  # positions of a row


class Waiting(NamedTuple):
    """A sequence that waits for a row."""

    sequence: TokenSequence
    sample: int = 0  # of its buffer
    piece: int = 0  # of the sample


@dataclass(slots=True)
class PackingBuffer:
    index: int
    batch: int = 0  # of this buffer, the next to be made
    sample: int = 0  # of this buffer, the next to be read
    waiting: list[Waiting] = field(default_factory=list)


class SequenceSource(ABC):
    """Where the sequences of batches come from."""

    shape: BatchShape
    tokenizers: Tokenizers
    num_buffers: int | None = None  # None: every batch begins with an empty buffer, which has the index of the batch

    @abstractmethod
    def refill(self, buffer: PackingBuffer) -> None:
        """Add the sequences that should wait before a row is filled, or all of a batch that has its own buffer."""

    def piece(self, buffer: int, sample: int, piece: int) -> TokenSequence:
        """A sequence of sample number `sample` of a buffer, after a restart; only where buffers outlive a batch."""
        raise NotImplementedError

    def require_some_fit(self, too_long: Sequence[int]) -> None:
        """Refuse rows that no sample fits. `too_long`: positions of the samples in succession that did not."""
        if len(too_long) == MAX_TOO_LONG:
            raise ValueError(
                f"samples must fit a row of {self.shape.length} positions, got {MAX_TOO_LONG} longer ones in "
                f"succession, the shortest of {min(too_long)}; raise length in the recipe"
            )


class PackedBatches(Dataset):
    """`num_batches` batches of the source's shape."""

    def __init__(self, source: SequenceSource, *, num_batches: int, checkpoints: Path | None = None) -> None:
        """`checkpoints`: folder for the state of buffers, a file each with a line per state; None keeps none."""
        self.source, self.num_batches, self.checkpoints = source, num_batches, checkpoints
        self.buffers: dict[int, PackingBuffer] = {}

    def __len__(self) -> int:
        return self.num_batches

    def __getstate__(self) -> dict:
        return {**self.__dict__, "buffers": {}}

    def __getitem__(self, index: int) -> PackedBatch:
        if self.source.num_buffers is None:
            buffer = PackingBuffer(index)
        else:
            turn, number = divmod(index, self.source.num_buffers)
            buffer = self._buffer_before(number, turn)
            while buffer.batch < turn:
                self._pack_rows(buffer)
        pad_token_id = self.source.tokenizers.config.pad_token_id
        return pack_rows(self._pack_rows(buffer), length=self.source.shape.length, pad_token_id=pad_token_id)

    def _buffer_before(self, number: int, turn: int) -> PackingBuffer:
        """The buffer at a batch not after `turn`, as near as it is known."""
        buffer = self.buffers.get(number)
        if buffer is None or buffer.batch > turn:
            buffer = PackingBuffer(number)
        if self.checkpoints and turn - buffer.batch >= CHECKPOINT_EVERY:
            saved = self._saved_before(number, turn)
            if saved is not None and saved["batch"] > buffer.batch:
                waiting = [Waiting(self.source.piece(number, *origin), *origin) for origin in saved["waiting"]]
                buffer = PackingBuffer(number, saved["batch"], saved["sample"], waiting)
        self.buffers[number] = buffer
        return buffer

    def _pack_rows(self, buffer: PackingBuffer) -> list[list[TokenSequence]]:
        """The rows of the buffer's next batch."""
        rows = []
        for row in range(self.source.shape.rows):
            if row == 0 or self.source.num_buffers is not None:
                self.source.refill(buffer)
            taken = take_row([len(entry.sequence) for entry in buffer.waiting], self.source.shape.length)
            rows.append([buffer.waiting[index].sequence for index in taken])
            buffer.waiting = [entry for index, entry in enumerate(buffer.waiting) if index not in taken]
        buffer.batch += 1
        if self.checkpoints and buffer.batch % CHECKPOINT_EVERY == 0:
            self._save(buffer)
        return rows

    def _saved_before(self, number: int, turn: int) -> dict[str, Any] | None:
        """The last state of a buffer that was saved at a batch not after `turn`."""
        found, path = [], self._file(number)
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            with suppress(ValueError):  # a line that was cut short when a process was killed
                found.append(json.loads(line))
        return max((saved for saved in found if saved["batch"] <= turn), key=itemgetter("batch"), default=None)

    def _save(self, buffer: PackingBuffer) -> None:
        """Add the state of a buffer, on a new line even if the last one was cut short."""
        waiting = [(entry.sample, entry.piece) for entry in buffer.waiting]
        line = json.dumps({"batch": buffer.batch, "sample": buffer.sample, "waiting": waiting})
        path = self._file(buffer.index)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(f"\n{line}\n".encode())  # one call, so that lines of several processes do not mix

    def _file(self, number: int) -> Path:
        assert self.checkpoints is not None
        return self.checkpoints / f"buffer-{number:05d}.jsonl"
