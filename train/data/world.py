"""Packed batches of the synthetic world: batch b is a pure function of b, so training can stop and go on anywhere.

In: the codes of the episodes' pictures and a mixture of jobs. Out: one `PackedBatch` per index. Wordings are always
new; pictures come from a fixed number of episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, TextPart, unconditional
from mllm.files import whole_file, write_json
from mllm.sequence import Grid, PackedBatch, Packer, TokenSequence, build_sequence, take_row
from mllm.world.dialogue import JOBS, Dialogue, Episode, ImageRef, make_dialogue, make_episode
from mllm.world.edits import apply_edit
from mllm.world.language import describe
from mllm.world.outline import SQUARE, centre, outline_of
from mllm.world.render import IMAGE_KINDS
from mllm.world.scene import Scene, SceneObject, random_scene_for, split_of
from tokenizer.images import to_bytes
from tokenizer.network import cut_into_patches
from tokenizer.text_tower import EncodeCaptions
from tokenizer.unitok import UniTok
from train.recipe import WorldData

# An episode whose outlines say exactly what to draw: every object moved into the middle of its square.
#
# In an ordinary episode objects lie anywhere, so an outline leaves the codes of every border undecided by a few
# pixels. A
# model that draws needs one picture for each outline; a model that looks needs all of them.


def centre_episode(episode: Episode, *, digits: int, grid: Grid = SQUARE) -> Episode:
    """The episode with its objects, and those of its edit, in the middle of the squares of outlines of so many digits.

    Objects move by half a square at most: by half an eighth of a position with two digits, so that their gap shrinks
    and stays. In pictures that are no squares this can bring a scene into another split (mllm/world/scene.py); such an
    episode stays as it is.
    """
    moved = [centre(item, digits=digits, grid=grid) for item in episode.scene.objects]
    scene, edit = Scene(episode.scene.background, tuple(moved)), episode.edit

    def new_index(index: int | None) -> int | None:
        return None if index is None else scene.objects.index(moved[index])

    added = edit.added and centre(edit.added, digits=digits, grid=grid)
    edit = replace(edit, index=new_index(edit.index), anchor=new_index(edit.anchor), added=added)
    centred = replace(episode, scene=scene, edit=edit, edited=apply_edit(scene, edit))
    stays = all(
        split_of(before) == split_of(after)
        for before, after in ((episode.scene, centred.scene), (episode.edited, centred.edited))
    )
    return centred if stays else episode


# The codes of every picture of the world's episodes, encoded once and kept in files.
#
# In: an image tokenizer and which episodes. Out: codes by episode and picture. Files hold 1024 episodes each and are
# written whole or not at all, so an interrupted run goes on where it was; a folder made by another tokenizer is
# refused.
#
# Letters: E episodes of a file, S pictures of an episode, B pictures of a batch, H W pixels, K codebooks, N positions.


EPISODES_PER_FILE = 1024
NUM_PICTURES = 1 + len(IMAGE_KINDS)  # the scene, the edited scene, and the scene's depth and segmentation
BATCH_SIZE = 128
META = "meta.json"


@dataclass(frozen=True, kw_only=True)
class EpisodeSet:
    """Which episodes there are; all of them are functions of their number."""

    num_episodes: int
    dense_every: int  # one in so many also has its depth and segmentation pictures encoded
    seed: int
    grids: Sequence[Grid]  # (rows, columns) of positions; episodes take turns with them
    centred_digits: int | None = None  # every other episode has its objects in the middle of squares of such outlines

    def __getitem__(self, index: int) -> Episode:
        episode = make_episode(index, seed=self.seed)
        if not self.is_centred(index):
            return episode
        assert self.centred_digits is not None, "is_centred says so"
        return centre_episode(episode, digits=self.centred_digits, grid=self.grid_of(index))

    def is_dense(self, index: int) -> bool:
        """Whether the depth and segmentation pictures of an episode are encoded too."""
        return index % self.dense_every == 0

    def is_centred(self, index: int) -> bool:
        """Whether the objects of an episode lie exactly where its outlines say, if it can be had (centre_episode)."""
        return self.centred_digits is not None and self._turn(index) // len(self.grids) % 2 == 1

    def grid_of(self, index: int) -> Grid:
        """(rows, columns) of the pictures of an episode."""
        return self.grids[self._turn(index) % len(self.grids)]

    def _turn(self, index: int) -> int:
        return index // self.dense_every  # so that dense ones take turns as well


class WorldCodes:
    """Codes of the pictures of episode i: `codes[i]` is (S, K, N); pictures that were not encoded are left out."""

    def __init__(self, folder: Path, episodes: EpisodeSet) -> None:
        """Codes in a folder, made or not."""
        self.folder, self.episodes = folder, episodes
        self.files: list[NDArray[np.uint16]] = []

    def __len__(self) -> int:
        return self.episodes.num_episodes

    def __getitem__(self, index: int) -> NDArray[np.uint16]:
        if not self.files:  # opened late, so that every loader process maps the files itself
            paths = [self._file(number) for number in range(self.num_files)]
            self.files = [np.load(path, mmap_mode="r") for path in paths]
        codes_SKN = self.files[index // EPISODES_PER_FILE][index % EPISODES_PER_FILE]
        rows, columns = self.episodes.grid_of(index)
        return codes_SKN[: self._num_pictures(index), :, : rows * columns]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": []}

    @property
    def num_files(self) -> int:
        return -(-len(self) // EPISODES_PER_FILE)

    def _num_pictures(self, index: int) -> int:
        return NUM_PICTURES if self.episodes.is_dense(index) else 2

    def _file(self, number: int) -> Path:
        return self.folder / f"codes-{number:05d}.npy"

    def encode_missing(self, tokenizer: UniTok, *, num_workers: int = 1) -> None:
        """Encode what is not there yet.

        Raises:
            ValueError: the folder holds codes of another tokenizer or of other episodes.
        """
        self._check_meta(tokenizer)
        missing = [number for number in range(self.num_files) if not self._file(number).is_file()]
        for number in tqdm(missing, desc="encode the world", disable=not missing):
            first = number * EPISODES_PER_FILE
            indices = range(first, min(first + EPISODES_PER_FILE, len(self)))
            self._write(number, self._encode(tokenizer, indices, num_workers=num_workers))

    def _check_meta(self, tokenizer: UniTok) -> None:
        episodes = self.episodes
        meta = {"tokenizer": tokenizer.fingerprint(), "seed": episodes.seed, "dense_every": episodes.dense_every}
        if list(episodes.grids) != [tokenizer.config.grid]:
            meta["grids"] = [list(grid) for grid in episodes.grids]
        if episodes.centred_digits is not None:
            meta["centred_digits"] = episodes.centred_digits
        path = self.folder / META
        if path.is_file() and json.loads(path.read_text()) != meta:
            raise ValueError(
                f"the codes in {self.folder} were made with {json.loads(path.read_text())}, but {meta} is wanted; "
                "remove the folder or name another output"
            )
        write_json(path, meta)

    def _encode(self, tokenizer: UniTok, indices: Sequence[int], *, num_workers: int) -> NDArray[np.uint16]:
        grids = self.episodes.grids
        num_positions = max(rows * columns for rows, columns in grids)
        shape = (len(indices), NUM_PICTURES, tokenizer.config.num_codebooks, num_positions)
        codes_ESKN = np.zeros(shape, np.uint16)
        for grid in dict.fromkeys(grids):
            places = [
                (index, slot)
                for index in indices
                for slot in range(self._num_pictures(index))
                if self.episodes.grid_of(index) == grid
            ]
            encoded = self._encode_places(tokenizer, places, grid, num_workers)
            for (index, slot), codes_KN in zip(places, encoded, strict=True):
                codes_ESKN[index - indices[0], slot, :, : codes_KN.shape[-1]] = codes_KN
        return codes_ESKN

    def _encode_places(
        self, tokenizer: UniTok, places: Sequence[tuple[int, int]], grid: Grid, num_workers: int
    ) -> Iterator[NDArray]:
        """Codes (K, N) of pictures of one size."""
        rows, columns = grid
        patch = tokenizer.config.patch_size
        pictures = _Pictures(places, self.episodes, size=(columns * patch, rows * patch))
        for bytes_B3HW in DataLoader(pictures, batch_size=BATCH_SIZE, num_workers=num_workers):
            yield from encode_bytes(tokenizer, bytes_B3HW)

    def _write(self, number: int, codes_ESKN: NDArray[np.uint16]) -> None:
        with whole_file(self._file(number)) as unfinished, unfinished.open("wb") as file:
            np.save(file, codes_ESKN)


def encode_bytes(tokenizer: UniTok, bytes_B3HW: Tensor) -> NDArray:
    """Codes (B, K, N) of uint8 pictures. Where codes depend on their patch alone, each kind of patch is encoded once:
    most of a drawing is flat background.
    """
    if tokenizer.config.encoder_scope != "patch":
        return encode_floats(tokenizer, bytes_B3HW)
    patches_M3HW = cut_into_patches(bytes_B3HW, tokenizer.config.patch_size).contiguous()
    as_rows = patches_M3HW.flatten(1).numpy()
    kinds = as_rows.view(np.dtype((np.void, as_rows.shape[1])))[:, 0]
    _, first_U, kind_M = np.unique(kinds, return_index=True, return_inverse=True)
    codes_UK = encode_floats(tokenizer, patches_M3HW[first_U])[:, :, 0]
    return codes_UK[kind_M].reshape(len(bytes_B3HW), -1, codes_UK.shape[1]).swapaxes(1, 2)


def encode_floats(tokenizer: UniTok, bytes_B3HW: Tensor) -> NDArray:
    return tokenizer.encode(bytes_B3HW.to(tokenizer.device).float().div(127.5).sub(1)).cpu().numpy()


class _Pictures(Dataset):
    """Pixels of (episode, picture) places, rendered in the loader's processes."""

    def __init__(self, places: Sequence[tuple[int, int]], episodes: EpisodeSet, *, size: tuple[int, int]) -> None:
        self.places, self.episodes, self.size = places, episodes, size

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        episode, slot = self.places[index]
        return to_bytes(self.episodes[episode].images[slot].render(self.size))


ON_EITHER_SCENE = ("draw", "describe", "ask")
"""Jobs that are as well about the edited scene as about the first one."""
DENSE = ("depth", "segment", "interleaved", "multi_turn")
"""Jobs that may need the pictures which only some episodes have encoded."""
DRAWN = ("draw", "interleaved", "multi_turn")
"""Jobs whose pictures are drawn from words: where some episodes are centred, from what their outlines say exactly."""
DROPPABLE = ("draw", "edit", "depth", "segment")
"""Jobs whose instruction may be dropped: a single turn that ends in a picture."""
SPARE = 1.2
"""Positions that wait for a place in a batch, as a multiple of those it has; what finds none is forgotten."""
MAX_TRIES = 1000
"""Episodes looked at for one of few objects, and samples for one that fits a row."""


class WorldBatches(Dataset):
    """`num_batches` packed batches of `rows` rows of `length` positions."""

    def __init__(
        self,
        data: WorldData,
        codes: WorldCodes,
        *,
        tokenizer: PreTrainedTokenizerBase,
        config: MLLMConfig,
        length: int,
        rows: int,
        num_batches: int,
    ) -> None:
        unknown = sorted(set(data.jobs) - set(JOBS))
        if unknown or sum(data.jobs.values()) <= 0:
            raise ValueError(
                f"data.jobs names {unknown or data.jobs}; give weights above 0 to some of {', '.join(JOBS)}"
            )
        if data.centred and not any(map(codes.episodes.is_centred, range(len(codes)))):
            raise ValueError(
                f"none of {len(codes)} episodes is centred; raise data.episodes above data.dense_every "
                f"({data.dense_every}) times the number of sizes ({len(codes.episodes.grids)})"
            )
        self.data, self.codes, self.tokenizer, self.config = data, codes, tokenizer, config
        self.length, self.rows, self.num_batches = length, rows, num_batches

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> PackedBatch:
        mixture = f"/{self.data.mixture_seed}" if self.data.mixture_seed else ""
        rng = Random(f"batch/{self.data.seed}{mixture}/{index}")
        waiting = self.draw_sequences(rng, num_positions=int(SPARE * self.rows * self.length))
        packer = Packer(length=self.length, pad_token_id=self.config.pad_token_id, num_rows=0)
        for _ in range(self.rows):
            taken = set(take_row([len(sequence) for sequence in waiting], self.length))
            packer.add_row([sequence for n, sequence in enumerate(waiting) if n in taken])
            waiting = [sequence for n, sequence in enumerate(waiting) if n not in taken]
        return packer.batch()

    def draw_sequences(self, rng: Random, *, num_positions: int) -> list[TokenSequence]:
        """Random samples that fit a row, with at least so many positions together."""
        drawn: list[TokenSequence] = []
        too_long = 0
        while num_positions > 0:
            sequence = self.draw_sequence(rng)
            if len(sequence) <= self.length:  # the longest of the multi-turn dialogues (about one in 500) are left out
                drawn.append(sequence)
                num_positions -= len(sequence)
                too_long = 0
            elif (too_long := too_long + 1) == MAX_TRIES:
                raise ValueError(
                    f"no sample fits: found {MAX_TRIES} one after another that are longer than a row of {self.length} "
                    f"positions, the last of {len(sequence)}; raise length in the recipe"
                )
        return drawn

    def draw_sequence(self, rng: Random) -> TokenSequence:
        """One random sample of the mixture."""
        job = rng.choices(list(self.data.jobs), list(self.data.jobs.values()))[0]
        index, episode = self.draw_episode(rng, is_dense=job in DENSE, is_drawn=job in DRAWN)
        about = replace(episode, scene=episode.edited) if job in ON_EITHER_SCENE and rng.random() < 0.5 else episode
        dialogue = make_dialogue(
            job,
            about,
            rng,
            num_questions=self.data.questions,
            question_weights=self.data.question_weights,
            drawing_weights=self.data.drawing_weights,
        )
        digits = self.data.outline_digits if self.data.outlines else None
        grid = self.codes.episodes.grid_of(index)
        messages = to_messages(dialogue, episode, self.codes[index], grid, outline_digits=digits)
        if job in DROPPABLE and rng.random() < self.data.prompt_dropout:
            messages = unconditional(messages)
        return build_sequence(messages, tokenizer=self.tokenizer, config=self.config)

    def draw_episode(self, rng: Random, *, is_dense: bool, is_drawn: bool) -> tuple[int, Episode]:
        """A random episode with as many objects as the recipe allows, and its number."""
        episodes = self.codes.episodes
        for _ in range(MAX_TRIES):
            index = rng.randrange(len(self.codes))
            if is_dense:
                index -= index % episodes.dense_every
            if is_drawn and episodes.centred_digits is not None and not episodes.is_centred(index):
                continue
            episode = episodes[index]
            if self.data.min_objects <= len(episode.scene.objects) <= self.data.max_objects:
                return index, episode
        raise ValueError(
            f"found no scene of {self.data.min_objects} to {self.data.max_objects} objects among {len(self.codes)} "
            f"episodes in {MAX_TRIES} tries; raise data.episodes or data.max_objects"
        )


def to_messages(
    dialogue: Dialogue,
    episode: Episode,
    codes_SKN: np.ndarray,
    grid: tuple[int, int],
    *,
    outline_digits: int | None = None,
) -> list[Message]:
    """The dialogue with the codes of its episode's pictures in place of the references.

    Args:
        outline_digits: of rows and columns in the outlines of scenes; None: they have none.
    """
    slots = {picture: slot for slot, picture in enumerate(episode.images)}

    def codes_of(picture: ImageRef) -> CodesPart:
        outline = None
        if picture.kind == "image" and outline_digits is not None:
            outline = outline_of(picture.scene, digits=outline_digits, grid=grid)
        return CodesPart(codes_SKN[slots[picture]], grid, outline)

    return [
        Message(
            turn.role,
            tuple(TextPart(part) if isinstance(part, str) else codes_of(part) for part in turn.parts),
        )
        for turn in dialogue.turns
    ]


# Pictures of the synthetic world by number, for the image tokenizer: picture i is always the same.
#
# In: an index. Out: uint8 pixels (3, H, W) and, where captions are wanted, ids for the text tower.


KIND_WEIGHTS = (86, 6, 8)
"""Of images, depth pictures and segmentation pictures; the latter two are simpler."""
SMALL_WEIGHT = 3
"""How much more often a window shows a small object than a large one: its details are the hardest to keep."""


class WorldPictures(Dataset):
    """An endless set: every integer names a picture of the training split; negative ones are for looking at."""

    def __init__(
        self, *, image_size: int, seed: int, captions: EncodeCaptions | None = None, crop: int | None = None
    ) -> None:
        """Whole pictures, or windows of `crop` pixels a side, each on an object."""
        if crop is not None and not 0 < crop <= image_size:
            raise ValueError(f"world_crop is {crop}, but pictures have {image_size} pixels a side; use less, or none")
        self.image_size = image_size
        self.crop = crop
        self.seed = seed
        self.captions = captions

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = Random(f"pictures/{self.seed}/{index}")
        scene = random_scene_for("train", rng)
        picture = ImageRef(scene, rng.choices(IMAGE_KINDS, KIND_WEIGHTS)[0])
        image = picture.render(self.image_size)
        if self.crop is not None:
            weights = [SMALL_WEIGHT if item.size == "small" else 1 for item in scene.objects]
            (item,) = rng.choices(scene.objects, weights)
            image = image.crop(window_on(item, self.crop, self.image_size, rng))
        sample = {"pixels": to_bytes(image)}
        if self.captions:
            sample["text_ids"] = self.captions([caption_of(picture, rng)])[0]
        return sample


def caption_of(picture: ImageRef, rng: Random) -> str:
    """What the picture shows, in short or at length; of depth and segmentation pictures, their kind."""
    return describe(picture.scene, short=rng.random() < 0.5) if picture.kind == "image" else picture.kind


def window_on(item: SceneObject, side: int, image_size: int, rng: Random) -> tuple[int, int, int, int]:
    """A random window (left, top, right, bottom) within the picture that holds the middle of an object."""
    left, top = (
        min(max(round(middle * image_size - rng.uniform(0, side)), 0), image_size - side) for middle in (item.x, item.y)
    )
    return left, top, left + side, top + side
