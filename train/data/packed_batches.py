"""Packed batches of prepared data: batch b is the same whoever asks for it, and when.

Samples are dealt to a fixed number of lanes, sample i to lane i modulo lanes. Each lane packs its own samples: a buffer
of waiting sequences is kept full, and each row takes from it what fills it best. Batch b is the next batch of lane
b modulo lanes, so a process or worker that is asked for some batches only reads those lanes' samples. Neither the
number of processes nor that of workers changes a batch.

Where a lane stands is a few numbers: its next sample and which sequences wait. They are noted in a file now and then
(`Anchors`), so that a resumed run goes on from there instead of reading everything before it. The notes are a pure
function of the data as well: they can be lost, or be written by several processes at once.

Letters: T places of a row.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Dataset

from mllm.packing import PackedBatch, Packer, take_row
from mllm.sequence import TokenSequence
from train.data.shard_sequences import ShardSequences

ANCHOR_EVERY = 16
"""Batches of a lane between two notes."""
MAX_FRUITLESS = 10_000
"""Samples in a row of which none fits, before that is an error."""


@dataclass(slots=True)
class Lane:
    """Where the packing of one lane stands."""

    batch: int = 0  # of this lane, the next to be made
    sample: int = 0  # of this lane, the next to be read
    waiting: list[tuple[int, int, TokenSequence]] = field(default_factory=list)  # sample of the lane, piece, its sequence


class PackedBatches(Dataset):
    """`num_batches` batches of `rows` rows of `sequences.length` places."""

    def __init__(
        self,
        sequences: ShardSequences,
        *,
        rows: int,
        num_batches: int,
        pad_token_id: int,
        num_lanes: int = 32,
        lookahead: int = 64,
        anchors: Path | None = None,
    ) -> None:
        """
        Args:
            lookahead: sequences that wait in each lane for a row they fit into.
            anchors: folder of the notes; None keeps none.
        """
        if min(rows, num_lanes, lookahead) < 1:
            raise ValueError(
                f"packing needs rows, lanes and lookahead of 1 or more: found {rows}, {num_lanes} and {lookahead}; "
                "mend the recipe"
            )
        self.sequences, self.rows, self.num_batches, self.pad_token_id = sequences, rows, num_batches, pad_token_id
        self.num_lanes, self.lookahead = num_lanes, lookahead
        self.anchors = Anchors(anchors) if anchors else None
        self.lanes: dict[int, Lane] = {}

    def __len__(self) -> int:
        return self.num_batches

    def __getstate__(self) -> dict:
        return {**self.__dict__, "lanes": {}}

    def __getitem__(self, index: int) -> PackedBatch:
        number, turn = index % self.num_lanes, index // self.num_lanes
        lane = self._lane_before(number, turn)
        while lane.batch < turn:
            self._next_rows(number, lane)
        packer = Packer(length=self.sequences.length, pad_token_id=self.pad_token_id)
        for row in self._next_rows(number, lane):
            packer.add_row(row)
        return packer.batch()

    def _lane_before(self, number: int, turn: int) -> Lane:
        """The lane at a batch not after `turn`, as near as it is known."""
        lane = self.lanes.get(number)
        if lane is None or lane.batch > turn or turn - lane.batch > ANCHOR_EVERY:
            known = lane.batch if lane is not None and lane.batch <= turn else -1
            note = self.anchors.nearest(number, turn) if self.anchors else None
            if note is not None and note.batch > known:
                waiting = [(sample, piece, self._sequences_of(number, sample)[piece]) for sample, piece in note.waiting]
                lane = Lane(note.batch, note.sample, waiting)
            elif known < 0:
                lane = Lane()
            self.lanes[number] = lane
        return lane

    def _next_rows(self, number: int, lane: Lane) -> list[list[TokenSequence]]:
        """The rows of the lane's next batch."""
        rows = []
        for _ in range(self.rows):
            self._fill(number, lane)
            taken = take_row([len(sequence) for _, _, sequence in lane.waiting], self.sequences.length)
            rows.append([lane.waiting[index][2] for index in taken])
            lane.waiting = [entry for index, entry in enumerate(lane.waiting) if index not in set(taken)]
        lane.batch += 1
        if self.anchors and lane.batch % ANCHOR_EVERY == 0:
            waiting = tuple((sample, piece) for sample, piece, _ in lane.waiting)
            self.anchors.note(number, Anchor(lane.batch, lane.sample, waiting))
        return rows

    def _fill(self, number: int, lane: Lane) -> None:
        fruitless = 0
        while len(lane.waiting) < self.lookahead:
            pieces = self._sequences_of(number, lane.sample)
            lane.waiting += [(lane.sample, piece, sequence) for piece, sequence in enumerate(pieces)]
            lane.sample += 1
            fruitless = 0 if pieces else fruitless + 1
            if fruitless == MAX_FRUITLESS:
                raise ValueError(
                    f"no sample fits: found {MAX_FRUITLESS} one after another that are longer than a row of "
                    f"{self.sequences.length} positions; raise length in the recipe"
                )

    def _sequences_of(self, number: int, sample: int) -> list[TokenSequence]:
        return self.sequences[sample * self.num_lanes + number]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A note of where a lane stands."""

    batch: int
    sample: int
    waiting: tuple[tuple[int, int], ...]  # sample of the lane and piece


class Anchors:
    """Notes in one file for each lane, a line each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: dict[int, int] = {}  # the newest note of each lane

    def nearest(self, lane: int, batch: int) -> Anchor | None:
        """The last note not after a batch."""
        path = self._path(lane)
        if not path.is_file():
            return None
        best: Anchor | None = None
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
                note = Anchor(values["batch"], values["sample"], tuple((s, p) for s, p in values["waiting"]))
            except (ValueError, KeyError, TypeError):  # cut short when a process was killed
                continue
            if note.batch <= batch and (best is None or note.batch > best.batch):
                best = note
        return best

    def note(self, lane: int, anchor: Anchor) -> None:
        """Add a note, if it is not there yet."""
        if lane not in self.last:
            last = self.nearest(lane, sys.maxsize)
            self.last[lane] = last.batch if last else 0
        if anchor.batch <= self.last[lane]:
            return
        self.last[lane] = anchor.batch
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"batch": anchor.batch, "sample": anchor.sample, "waiting": anchor.waiting}
        line = "\n" + json.dumps(values) + "\n"  # begins a line of its own even where the last one was cut short
        descriptor = os.open(self._path(lane), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _path(self, lane: int) -> Path:
        return self.folder / f"lane-{lane:05d}.jsonl"
