"""The synthetic world as training data: a prepared folder of its episodes' images, and dialogues about them.

Every image of a fixed number of episodes is rendered and encoded once (`encode_rendered`). Wordings are always new: the
sequences of batch b are a pure function of b (`WorldSequences`), drawn from a weighted mixture of jobs.

Letters: K codebooks, N positions of an image, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, TextPart, unconditional
from mllm.sequence import IGNORED, Grid, TokenSequence, build_sequence
from mllm.world.dialogue import JOBS, Episode, ImageRef, Turn, apply_edit, make_dialogue, make_episode
from mllm.world.language import pick
from mllm.world.people import PeopleTurn, make_people
from mllm.world.plan import SQUARE, centre, plan_of
from mllm.world.render import IMAGE_KINDS, render
from mllm.world.scene import Scene, split_of
from tokenizer.images import to_bytes
from tokenizer.unitok import UniTok, encode_images
from train.data.packing import BatchShape, PackingBuffer, SequenceSource, Tokenizers, Waiting
from train.data.painters import paint_as_others
from train.data.records import Record
from train.data.shards import CodeSource, LeftOut, ShardFolder, ShardTask, check_settings, make_shards
from train.recipe import WorldData

RECORDS_PER_SHARD = 1024
BATCH_SIZE = 128  # rendered images that are encoded at once

ON_EITHER_SCENE = ("draw", "describe", "ask")  # jobs that may be about the edited scene as well as about the first one
DENSE = ("depth", "segment", "interleaved", "multi_turn")
"""Jobs that may need the images that only some episodes have encoded."""
DRAWN = ("draw", "interleaved", "multi_turn")
"""Jobs whose images are drawn from words: where some episodes are centred, exactly what their plans say."""
DROPPABLE = ("draw", "edit", "depth", "segment")
"""Jobs whose instruction may be dropped: a single turn that ends in an image."""
SPARE = 1.2  # positions that wait for a row of a batch, as a multiple of those it has; what finds no row is discarded
NUM_FINGERPRINTED = 16  # conversations that tell whether the grammar is still that of the codes
MOST_IMAGES = 16  # at least as many as any record has
MAX_TRIES = 1000  # episodes looked at for one of few objects


# Rendering and encoding


class RenderedRecords(Protocol):
    """Records of the world by number; `settings` tell them from others, whose codes cannot be taken for theirs."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def images(self, index: int) -> list[Tensor]: ...  # of record `index`, uint8 (3, H, W) each

    def record(self, index: int, images: tuple[CodesPart, ...]) -> Record: ...  # with the codes of its images


def encode_rendered(
    records: RenderedRecords, folder: Path, tokenizer: UniTok, *, num_workers: int = 1, in_memory: bool = False
) -> ShardFolder:
    """A prepared folder of the records; the processes of a run share the work of what is missing. Raises ValueError:
    the folder holds other records, or codes of another tokenizer."""
    state, code_source = PartialState(), CodeSource.of(tokenizer)
    if state.is_main_process:
        check_settings(folder, {"tokenizer": asdict(code_source), **records.settings})
    state.wait_for_everyone()
    tasks = []
    for first in range(0, len(records), RECORDS_PER_SHARD):
        count = min(RECORDS_PER_SHARD, len(records) - first)
        tasks.append(ShardTask(f"{first:08d}-{count}.parquet", "world", "world", first, count))

    def make(task: ShardTask, advance: Callable[[int], object]) -> tuple[list[Record], list[LeftOut]]:
        indices = range(task.number, task.number + task.count)
        rendered = DataLoader(indices, batch_size=None, collate_fn=records.images, num_workers=num_workers)
        counts = []

        def images() -> Iterator[Tensor]:
            for item in rendered:
                counts.append(len(item))
                advance(1)
                yield from item

        encoded = iter([CodesPart(*image) for image in encode_images(images(), tokenizer, batch_size=BATCH_SIZE)])
        return [records.record(i, tuple(islice(encoded, count))) for i, count in zip(indices, counts, strict=True)], []

    make_shards(folder, tasks, make, code_source, state=state)
    return ShardFolder(folder, in_memory=in_memory)


@dataclass(frozen=True, slots=True)
class BlankCodes:
    """Records as `encode_rendered` makes them, before anything is encoded: all codes are 0. Samples can be drawn from
    them, to measure how long they are."""

    records: RenderedRecords
    config: MLLMConfig
    grid_of: Callable[[int], Grid] | None = None  # None: all have the default size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        side = self.config.grid_side
        rows, columns = self.grid_of(index) if self.grid_of else (side, side)
        blank = CodesPart(np.zeros((self.config.num_codebooks, rows * columns), dtype=np.int64), (rows, columns))
        return self.records.record(index, (blank,) * MOST_IMAGES)


@dataclass(frozen=True, kw_only=True)
class EpisodeSet:
    """Which episodes there are; all of them are functions of their number."""

    num_episodes: int
    dense_every: int  # one in so many also has its depth and segmentation images encoded
    seed: int
    grids: Sequence[Grid]  # (rows, columns) of positions; episodes take turns with them
    patch_size: int  # pixels a side of a position
    centred_digits: int | None = None  # every other episode has its objects in the middle of squares of such plans

    def __getitem__(self, index: int) -> Episode:
        episode = make_episode(index, seed=self.seed)
        if self.centred_digits is None or not self.is_centred(index):
            return episode
        return centre_episode(episode, digits=self.centred_digits, grid=self.grid_of(index))

    def __len__(self) -> int:
        return self.num_episodes

    @property
    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "num_episodes"} | {"grids": list(map(list, self.grids))}

    def num_images(self, index: int) -> int:
        """Images of an episode that are encoded: both scenes, and the depth and segmentation images of dense ones."""
        return 1 + len(IMAGE_KINDS) if index % self.dense_every == 0 else 2

    def images(self, index: int) -> list[Tensor]:
        rows, columns = self.grid_of(index)
        size = (columns * self.patch_size, rows * self.patch_size)
        return [to_bytes(image.render(size)) for image in self[index].images[: self.num_images(index)]]

    def record(self, index: int, images: tuple[CodesPart, ...]) -> Record:
        """The number of the episode stands for its scenes."""
        return Record("episode", (Message("assistant", images),), "world", str(index))

    def is_centred(self, index: int) -> bool:
        """Whether the objects of an episode lie exactly where its plans say, where possible (centre_episode)."""
        return self.centred_digits is not None and self._turn(index) // len(self.grids) % 2 == 1

    def grid_of(self, index: int) -> Grid:
        """(rows, columns) of the images of an episode."""
        return self.grids[self._turn(index) % len(self.grids)]

    def _turn(self, index: int) -> int:
        return index // self.dense_every  # so that dense ones take turns as well


def centre_episode(episode: Episode, *, digits: int, grid: Grid = SQUARE) -> Episode:
    """The episode with its objects, and those of its edit, in the middle of the squares of plans of so many digits. An
    ordinary episode's plan leaves the codes of every border undecided by a few pixels; a model that draws needs one
    image for each plan. Objects move by half a square at most. In images that are not square this can bring a scene
    into another split (mllm/world/scene.py); such an episode stays as it is."""
    moved = [centre(item, digits=digits, grid=grid) for item in episode.scene.objects]
    scene, edit = Scene(episode.scene.background, tuple(moved)), episode.edit

    def new_index(index: int | None) -> int | None:
        return None if index is None else scene.objects.index(moved[index])

    added = edit.added and centre(edit.added, digits=digits, grid=grid)
    edit = replace(edit, index=new_index(edit.index), anchor=new_index(edit.anchor), added=added)
    centred = replace(episode, scene=scene, edit=edit, edited=apply_edit(scene, edit))
    pairs = (episode.scene, centred.scene), (episode.edited, centred.edited)
    return centred if all(split_of(before) == split_of(after) for before, after in pairs) else episode


@dataclass(frozen=True, kw_only=True)
class ConversationSet:
    """Conversations in people's own words whose images are encoded: all of them are functions of their number. Objects
    stand exactly where plans say; images that users show look as others paint them (train/data/painters.py)."""

    weights: dict[str, float]
    count: int
    seed: int
    digits: int
    side: int  # positions along an image
    patch_size: int

    def __len__(self) -> int:
        return self.count

    @property
    def settings(self) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self).items() if name != "count"}
        words = json.dumps([[turn.user for turn in self.turns(index)] for index in range(NUM_FINGERPRINTED)])
        return {"conversations": values, "words": hashlib.blake2b(words.encode(), digest_size=8).hexdigest()}

    def turns(self, index: int) -> list[PeopleTurn]:
        rng = Random(f"conversation/{self.seed}/{index}")
        turns = make_people(pick(self.weights, rng), rng, max_turns=5)
        return [replace(turn, shown=self._centre(turn.shown), answer=self._centre(turn.answer)) for turn in turns]

    def _centre(self, part: Scene | str | None) -> Any:
        if not isinstance(part, Scene):
            return part
        return replace(part, objects=tuple(centre(item, digits=self.digits) for item in part.objects))

    def images(self, index: int) -> list[Tensor]:
        rng = Random(f"look/{self.seed}/{index}")
        made = []
        for turn in self.turns(index):
            for scene, is_shown in ((turn.shown, True), (turn.answer, False)):
                if isinstance(scene, Scene):
                    side = self.side * self.patch_size
                    made.append(to_bytes(paint_as_others(scene, side, rng) if is_shown else render(scene, side)))
        return made

    def record(self, index: int, images: tuple[CodesPart, ...]) -> Record:
        return Record("episode", (Message("assistant", images or (TextPart("no image"),)),), "world", str(index))


def without_images(sequence: TokenSequence, config: MLLMConfig) -> TokenSequence:
    """The sequence without the positions of its images, to learn words alone; what is seen in an image that somebody
    shows is given then, not learned."""
    stays_T = ~np.isin(sequence.token_ids_T, [config.image_token_id, config.new_line_id])
    token_ids_T, labels_T = sequence.token_ids_T[stays_T], sequence.labels_T[stays_T].copy()
    (marks,) = np.nonzero(token_ids_T == config.begin_plan_id)
    for begin, end in zip(marks, marks[1:], strict=False):
        if token_ids_T[begin - 1] == config.end_image_id:
            labels_T[begin : end + 1] = IGNORED
    return replace(
        sequence,
        token_ids_T=token_ids_T,
        labels_T=labels_T,
        codes_PK=sequence.codes_PK[:0],
        image_lengths_I=sequence.image_lengths_I[:0],
        code_targets_P=sequence.code_targets_P[:0],
    )


# Sequences


class WorldSequences(SequenceSource):
    """Dialogues about the episodes of a folder, each batch drawn with random numbers of its own."""

    def __init__(
        self,
        data: WorldData,
        episodes: EpisodeSet,
        folder: ShardFolder | BlankCodes,
        tokenizers: Tokenizers,
        shape: BatchShape,
        *,
        conversations: tuple[ConversationSet, ShardFolder | BlankCodes] | None = None,
    ) -> None:
        unknown = sorted(set(data.jobs) - set(JOBS))
        if unknown or sum((*data.jobs.values(), *data.conversations.values())) <= 0:
            raise ValueError(
                f"data.jobs must give weights > 0 to some of {', '.join(JOBS)}, got {unknown or data.jobs}; change it"
            )
        if data.centred and not any(map(episodes.is_centred, range(len(episodes)))):
            raise ValueError(
                f"data.episodes must be > data.dense_every ({data.dense_every}) times the number of sizes "
                f"({len(episodes.grids)}) for centred episodes, got {len(episodes)}; raise it"
            )
        self.data, self.episodes, self.folder = data, episodes, folder
        self.tokenizers, self.shape, self.conversations = tokenizers, shape, conversations

    def refill(self, buffer: PackingBuffer) -> None:
        """Draw all samples of a batch before its first row."""
        mixture = f"/{self.data.mixture_seed}" if self.data.mixture_seed else ""
        rng = Random(f"batch/{self.data.seed}{mixture}/{buffer.index}")
        num_wanted, too_long = int(SPARE * self.shape.rows * self.shape.length), list[int]()
        while num_wanted > 0:
            sequence = self.draw(rng)
            if len(sequence) <= self.shape.length:  # the longest running dialogues (about one in 500) are left out
                buffer.waiting.append(Waiting(sequence))
                num_wanted -= len(sequence)
                too_long.clear()
            else:
                too_long.append(len(sequence))
                self.require_some_fit(too_long)

    def draw(self, rng: Random) -> TokenSequence:
        """One random sample of the mixture."""
        data = self.data
        job = pick({**data.jobs, "conversation": sum(data.conversations.values())}, rng)
        if job == "conversation":
            return self.draw_conversation(rng)
        index, episode = self.draw_episode(rng, is_dense=job in DENSE, is_drawn=job in DRAWN)
        about = replace(episode, scene=episode.edited) if job in ON_EITHER_SCENE and rng.random() < 0.5 else episode
        weights = {"question_weights": data.question_weights, "drawing_weights": data.drawing_weights}
        dialogue = make_dialogue(job, about, rng, num_questions=data.questions, **weights)
        images = dict(zip(episode.images, self.folder[index].messages[0].parts, strict=False))
        messages = to_messages(dialogue.turns, images.__getitem__, plan_digits=data.plan_digits if data.plans else None)
        if job in DROPPABLE and rng.random() < data.prompt_dropout:
            messages = unconditional(messages)
        return build_sequence(messages, tokenizer=self.tokenizers.text, config=self.tokenizers.config)

    def draw_conversation(self, rng: Random) -> TokenSequence:
        """A conversation in people's words: mostly a new one without the positions of its images."""
        config, data = self.tokenizers.config, self.data
        assert self.conversations is not None, "batches.py encodes some where the recipe has conversations"
        is_new = rng.random() < data.words_only
        if is_new:
            turns = make_people(pick(data.conversations, rng), rng, max_turns=8)
            rows, columns = rng.choice((*[self.episodes.grids[0]] * 5, *self.episodes.grids))
            blank = CodesPart(np.zeros((config.num_codebooks, rows * columns), dtype=np.int64), (rows, columns))
            images = repeat(blank)
        else:
            records, folder = self.conversations
            index = rng.randrange(len(records))
            turns, images = records.turns(index), iter(folder[index].messages[0].parts)
        said: list[Turn] = []
        for turn in turns:
            said.append(Turn("user", (ImageRef(turn.shown), turn.user) if turn.shown else (turn.user,)))
            said.append(Turn("assistant", (ImageRef(turn.answer) if isinstance(turn.answer, Scene) else turn.answer,)))
        messages = to_messages(said, lambda _: next(images), plan_digits=data.plan_digits)
        sequence = build_sequence(messages, tokenizer=self.tokenizers.text, config=config)
        return without_images(sequence, config) if is_new else sequence

    def draw_episode(self, rng: Random, *, is_dense: bool, is_drawn: bool) -> tuple[int, Episode]:
        """A random episode with as many objects as the recipe allows, and its number."""
        episodes = self.episodes
        for _ in range(MAX_TRIES):
            index = rng.randrange(len(episodes))
            if is_dense:
                index -= index % episodes.dense_every
            if is_drawn and episodes.centred_digits is not None and not episodes.is_centred(index):
                continue
            episode = episodes[index]
            if self.data.min_objects <= len(episode.scene.objects) <= self.data.max_objects:
                return index, episode
        raise ValueError(
            f"data.episodes must include scenes of {self.data.min_objects} to {self.data.max_objects} objects, got "
            f"none among {len(episodes)} in {MAX_TRIES} tries; raise data.episodes or data.max_objects"
        )


def to_messages(
    turns: Iterable[Turn], codes_of: Callable[[ImageRef], CodesPart], *, plan_digits: int | None = None
) -> list[Message]:
    """The turns with the codes of images in place of the references, in order. `plan_digits`: of rows and columns in
    the plans of scenes; None: they have none."""

    def encode(part: str | ImageRef) -> TextPart | CodesPart:
        if isinstance(part, str):
            return TextPart(part)
        codes = codes_of(part)
        if part.kind != "image" or plan_digits is None:
            return codes
        return replace(codes, plan=plan_of(part.scene, digits=plan_digits, grid=codes.grid))

    return [Message(turn.role, tuple(map(encode, turn.parts))) for turn in turns]
