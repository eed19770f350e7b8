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

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import Message, TextPart, has_image, unconditional
from mllm.sequence import PackedBatch, Packer, TokenSequence, build_sequence, cut_sequence, take_row, trained_grids
from mllm.world.outline import check_grid
from tokenizer.unitok import UniTok
from train.data.classes import ClassBatches, check_guidance, open_class_codes
from train.data.shards import Row, ShardFolder, codes_made_by
from train.data.world import EpisodeSet, WorldBatches, WorldCodes
from train.recipe import ClassData, MLLMData, MLLMRecipe, ShardSource, WorldData

# A weighted mixture of prepared folders as one endless list: sample i is a pure function of i and the seed.
#
# Which folder: time runs in blocks of 4096 samples; each block holds every folder as often as its weight says, in an
# order of its own. Which row: a folder is gone through again and again; each time its shards come in a new order, and
# the rows of 16 neighbouring shards are shuffled together, so only those are open. Nothing here depends on how many
# processes or workers ask, and there is no state to save.
#
# Letters: F folders, B places of a block.


BLOCK = 4096
SHARDS_AT_ONCE = 16
"""Shards whose rows are shuffled together."""


class Mixture:
    """Rows of several folders by number."""

    def __init__(self, folders: Sequence[ShardFolder], weights: Sequence[float], *, seed: int) -> None:
        if len(folders) != len(weights) or not 0 < len(folders) <= BLOCK or min(weights) <= 0:
            raise ValueError(
                f"a mixture needs a weight above 0 for each folder: found {list(weights)} for {len(folders)} folders; "
                "mend data.shards"
            )
        self.folders, self.seed = list(folders), seed
        self.quota_F = block_quota(weights)
        self.orders = [ShardOrder(folder.num_rows, seed=(seed, place)) for place, folder in enumerate(folders)]
        self.block: tuple[int, np.ndarray, np.ndarray] | None = None

    def locate(self, index: int) -> tuple[int, int, int]:
        """Folder, shard and row of sample `index`."""
        number, place = divmod(index, BLOCK)
        if self.block is None or self.block[0] != number:
            self.block = (number, *self._make_block(number))
        _, folder_B, turn_B = self.block
        folder = int(folder_B[place])
        return (folder, *self.orders[folder].locate(number * int(self.quota_F[folder]) + int(turn_B[place])))

    def __getitem__(self, index: int) -> Row:
        folder, shard, row = self.locate(index)
        return self.folders[folder].row(shard, row)

    def _make_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block, its folder and how often that folder came before in the block."""
        folder_B = np.repeat(np.arange(len(self.quota_F)), self.quota_F)
        folder_B = np.random.default_rng((self.seed, number)).permutation(folder_B)
        turn_B = np.empty(BLOCK, dtype=np.int64)
        for folder, quota in enumerate(self.quota_F):
            turn_B[folder_B == folder] = np.arange(quota)
        return folder_B, turn_B


class ShardOrder:
    """In which order the rows of one folder come."""

    def __init__(self, num_rows: np.ndarray, *, seed: tuple[int, ...]) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.total = int(num_rows.sum())
        self._epoch = lru_cache(2)(self._make_epoch)
        self._window = lru_cache(2)(self._make_window)

    def __reduce__(self) -> tuple:
        return _rebuild, (self.num_rows, self.seed)

    def locate(self, turn: int) -> tuple[int, int]:
        """Shard and row of the folder's sample number `turn`; after all rows they come again."""
        epoch, place = divmod(turn, self.total)
        order, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends[SHARDS_AT_ONCE - 1 :: SHARDS_AT_ONCE], place, side="right"))
        first = window * SHARDS_AT_ONCE
        begin = int(ends[first - 1]) if first else 0
        mixed = begin + int(self._window(epoch, window)[place - begin])
        number = int(np.searchsorted(ends, mixed, side="right"))
        return int(order[number]), mixed - (int(ends[number - 1]) if number else 0)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in this epoch's order, and how many rows there are up to the end of each."""
        order = np.random.default_rng((*self.seed, epoch)).permutation(len(self.num_rows))
        return order, np.cumsum(self.num_rows[order])

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        order, _ = self._epoch(epoch)
        rows = self.num_rows[order[window * SHARDS_AT_ONCE : (window + 1) * SHARDS_AT_ONCE]].sum()
        return np.random.default_rng((*self.seed, epoch, window)).permutation(int(rows))


def _rebuild(num_rows: np.ndarray, seed: tuple[int, ...]) -> ShardOrder:
    return ShardOrder(num_rows, seed=seed)


def block_quota(weights: Sequence[float]) -> np.ndarray:
    """How often each folder comes in a block: by weight, at least once; what rounding leaves goes to those it
    shortened most."""
    shares = np.array(weights, dtype=np.float64) / sum(weights) * BLOCK
    quota = np.maximum(np.floor(shares).astype(np.int64), 1)
    while (missing := BLOCK - int(quota.sum())) != 0:
        step = 1 if missing > 0 else -1
        gain = np.where(quota + step >= 1, (shares - quota) * step, -np.inf)
        quota[np.argmax(gain)] += step
    return quota


# A prepared row as training sees it: which caption, which direction, whether the instruction is dropped.
#
# In: a row and random numbers. Out: messages, ready for mllm/sequence.py. Knows no ids and no batches.


SHORT_CAPTION_SHARE = 0.2
"""Where a picture has a short and a long caption; UniTok's choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleOptions:
    prompt_dropout: float = 0.1
    """Share of the samples that draw whose instruction is dropped, so that guidance has its other branch."""
    describe_share: float = 0.0
    """Share of the captioned pictures that are learned the other way round: the caption from the picture."""


def sample_of(row: Row, rng: Random, options: SampleOptions) -> list[Message]:
    """The messages that are learned from a row this time."""
    match row.kind:
        case "document":
            return list(row.messages)
        case "chat":
            messages = list(row.messages)
        case "pair" | "draw":
            asked, answered = row.messages
            caption = _choose_caption([part for part in asked.parts if isinstance(part, TextPart)], rng)
            if row.kind == "pair" and rng.random() < options.describe_share:
                return [Message("user", answered.parts), Message("assistant", (caption,))]
            messages = [Message("user", (caption,)), answered]
        case _:
            raise ValueError(
                f"unknown kind of record: found {row.kind!r}; prepare the data with this toolkit's version"
            )
    # only where the whole answer is one picture: guidance has no other use for an instruction that is left out
    draws = len(messages) == 2 and has_image(messages[1]) and len(messages[1].parts) == 1
    return unconditional(messages) if draws and rng.random() < options.prompt_dropout else messages


def _choose_caption(captions: Sequence[TextPart], rng: Random) -> TextPart:
    """The short one (the first) or a longer one."""
    if len(captions) == 1 or rng.random() < SHORT_CAPTION_SHARE:
        return captions[0]
    return rng.choice(captions[1:])


# Samples of a mixture as encoded sequences: sample i is a pure function of i.
#
# In: a mixture, a text tokenizer and the model's config. Out: the sequences of a sample: one, or several pieces of a
# document that is longer than a row, or none where a sample cannot fit, which is reported. Knows no rows and no
# batches.


logger = logging.getLogger(__name__)

REPORTS = 20
"""Samples that do not fit and are named one by one; later ones are only counted, at every power of two."""


class ShardSequences:
    """`sequences[i]`: what sample i is learned as."""

    def __init__(
        self,
        mixture: Mixture,
        options: SampleOptions,
        *,
        tokenizer: PreTrainedTokenizerBase,
        config: MLLMConfig,
        length: int,
    ) -> None:
        self.mixture, self.options = mixture, options
        self.tokenizer, self.config, self.length = tokenizer, config, length
        self.num_left_out = 0

    def __getitem__(self, index: int) -> list[TokenSequence]:
        row = self.mixture[index]
        rng = Random(f"sample/{self.mixture.seed}/{index}")
        try:
            sequence = build_sequence(sample_of(row, rng, self.options), tokenizer=self.tokenizer, config=self.config)
        except ValueError as error:
            raise ValueError(f"{row.source}, {row.place}: {error}") from error
        if len(sequence) <= self.length:
            return [sequence]
        pieces = cut_sequence(sequence, self.length, config=self.config) if row.kind == "document" else None
        if pieces is None:
            self._report(row, len(sequence))
        return pieces or []

    def _report(self, row: Row, num_positions: int) -> None:
        self.num_left_out += 1
        if self.num_left_out <= REPORTS or self.num_left_out & (self.num_left_out - 1) == 0:
            logger.warning(
                "%s, %s does not fit: it has %d positions, a row has %d; left out (number %d)",
                row.source,
                row.place,
                num_positions,
                self.length,
                self.num_left_out,
            )


ANCHOR_EVERY = 16
"""Batches of a lane between two notes."""
MAX_FRUITLESS = 10_000
"""Samples in a row of which none fits, before that is an error."""


@dataclass(slots=True)
class Lane:
    """Where the packing of one lane stands."""

    batch: int = 0  # of this lane, the next to be made
    sample: int = 0  # of this lane, the next to be read
    waiting: list[tuple[int, int, TokenSequence]] = field(
        default_factory=list
    )  # sample of the lane, piece, its sequence


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


# From a recipe's prepared folders to packed batches, after checking that they are this image tokenizer's.


def shard_batches(
    sources: Sequence[ShardSource],
    data: MLLMData,
    *,
    image_tokenizer: UniTok,
    text_tokenizer: PreTrainedTokenizerBase,
    config: MLLMConfig,
    length: int,
    rows: int,
    num_batches: int,
    notes: Path | None = None,
) -> PackedBatches:
    """Batches of a mixture of prepared folders.

    Args:
        data: how samples are made of rows and packed; its own shards do not matter.
        notes: folder in which is noted how far the packing is, so that a resumed run need not pack anew.

    Raises:
        ValueError: a folder of another image tokenizer, of another version, or incomplete.
    """
    folders = [ShardFolder(source.path) for source in sources]
    for folder in folders:
        folder.require_tokenizer(codes_made_by(image_tokenizer))
    weights = [source.weight for source in sources]
    decides = {  # how samples fall into rows: notes of another packing must not be read
        "data": repr(data),
        "weights": weights,
        "rows": (length, rows),
        "shards": [(folder.names, folder.num_rows.tolist()) for folder in folders],
        "vocabulary": sorted(text_tokenizer.get_vocab().items()),
        "config": (config.prompt_style, config.image_layout, config.begin_image_id, config.image_token_id),
    }
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return PackedBatches(
        ShardSequences(
            Mixture(folders, weights, seed=data.seed),
            SampleOptions(prompt_dropout=data.prompt_dropout, describe_share=data.describe_share),
            tokenizer=text_tokenizer,
            config=config,
            length=length,
        ),
        rows=rows,
        num_batches=num_batches,
        pad_token_id=config.pad_token_id,
        num_lanes=data.lanes,
        lookahead=data.lookahead,
        anchors=notes / fingerprint if notes else None,
    )


# Which packed batches a recipe trains on, and which it is measured on. Item b of a data set is batch b.


HELD_OUT_EPISODES = 64
HELD_OUT_SEED = 7_777_777
"""Added to the seed of the data: other scenes, other wordings."""


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """What turns samples into sequences."""

    text: PreTrainedTokenizerBase
    image: UniTok
    config: MLLMConfig


def training_batches(recipe: MLLMRecipe, tokenizers: Tokenizers, *, num_batches: int) -> Dataset:
    """The batches of a whole run, over all processes and accumulation steps."""
    if recipe.classes.is_given:
        check_guidance(recipe.classes, tokenizers.config)
        return class_batches(recipe, recipe.classes, tokenizers, folder="class_codes", num_batches=num_batches)
    if recipe.data.shards:
        return prepared_batches(recipe, recipe.data, recipe.data.shards, tokenizers, num_batches=num_batches)
    codes = encode_world(recipe, recipe.data, tokenizers, folder="codes")
    return world_batches(recipe, recipe.data, codes, tokenizers, num_batches=num_batches)


def validation_batches(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Held-out batches by task; none where the recipe does not measure."""
    if recipe.validation is None:
        return {}
    if recipe.classes.is_given:
        return class_validation(recipe, tokenizers)
    if recipe.data.shards:
        return prepared_validation(recipe, tokenizers)
    data = dataclasses.replace(
        recipe.data,
        episodes=HELD_OUT_EPISODES,
        dense_every=1,
        seed=recipe.data.seed + HELD_OUT_SEED,
        prompt_dropout=0.0,
    )
    codes = encode_world(recipe, data, tokenizers, folder="codes-validation")
    return {
        job: world_batches(
            recipe,
            dataclasses.replace(data, jobs={job: 1.0}),
            codes,
            tokenizers,
            num_batches=recipe.validation.batches,
        )
        for job in data.jobs
    }


def world_batches(
    recipe: MLLMRecipe, data: WorldData, codes: WorldCodes, tokenizers: Tokenizers, *, num_batches: int
) -> WorldBatches:
    """Batches of the synthetic world."""
    return WorldBatches(
        data,
        codes,
        tokenizer=tokenizers.text,
        config=tokenizers.config,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=num_batches,
    )


def class_batches(
    recipe: MLLMRecipe, data: ClassData, tokenizers: Tokenizers, *, folder: str, num_batches: int
) -> ClassBatches:
    """Batches of pictures by class; the world's are encoded into `folder` of the run."""
    codes = open_class_codes(
        data,
        recipe.output / folder,
        image_tokenizer=tokenizers.image,
        config=tokenizers.config,
    )
    return ClassBatches(
        codes,
        data,
        tokenizer=tokenizers.text,
        config=tokenizers.config,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=num_batches,
    )


def class_validation(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Held-out pictures of the world's classes. Folders name no held-out pictures."""
    assert recipe.validation is not None, "asked for by the recipe"
    if recipe.classes.folders:
        raise ValueError(
            f"validation has no pictures of these classes: found classes.folders {recipe.classes.folders}; "
            "leave validation out"
        )
    held_out = dataclasses.replace(
        recipe.classes,
        world_pictures=HELD_OUT_EPISODES,
        class_dropout=0.0,
        seed=recipe.classes.seed + HELD_OUT_SEED,
    )
    folder, num_batches = "class_codes-validation", recipe.validation.batches
    return {"draw_class": class_batches(recipe, held_out, tokenizers, folder=folder, num_batches=num_batches)}


def prepared_batches(
    recipe: MLLMRecipe,
    data: MLLMData,
    sources: Sequence[ShardSource],
    tokenizers: Tokenizers,
    *,
    num_batches: int,
    keeps_notes: bool = True,
) -> PackedBatches:
    """Batches of prepared folders."""
    return shard_batches(
        sources,
        data,
        image_tokenizer=tokenizers.image,
        text_tokenizer=tokenizers.text,
        config=tokenizers.config,
        length=recipe.length,
        rows=recipe.rows,
        num_batches=num_batches,
        notes=recipe.output / "packing" if keeps_notes else None,
    )


def prepared_validation(recipe: MLLMRecipe, tokenizers: Tokenizers) -> dict[str, Dataset]:
    """Batches of the prepared folders that are held out, each by its name."""
    assert recipe.validation is not None, "asked for by the recipe"
    data = dataclasses.replace(recipe.data, prompt_dropout=0.0, lanes=1)
    num_batches = recipe.validation.batches
    return {
        Path(source.path).name: prepared_batches(
            recipe, data, [source], tokenizers, num_batches=num_batches, keeps_notes=False
        )
        for source in recipe.validation.shards
    }


def encode_world(recipe: MLLMRecipe, data: WorldData, tokenizers: Tokenizers, *, folder: str) -> WorldCodes:
    """The codes of the world's pictures; the first process encodes what is missing, the others wait."""
    grids = trained_grids(tokenizers.config)
    for grid in grids if data.outlines else ():
        check_grid(grid)
    episodes = EpisodeSet(
        num_episodes=data.episodes,
        dense_every=data.dense_every,
        seed=data.seed,
        grids=grids,
        centred_digits=data.outline_digits if data.centred else None,
    )
    codes = WorldCodes(recipe.output / folder, episodes)
    with PartialState().main_process_first():
        codes.encode_missing(tokenizers.image)
    return codes
