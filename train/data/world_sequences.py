"""Packed batches of the synthetic world: batch b is a pure function of b, so training can stop and go on anywhere.

In: the codes of the episodes' pictures and a mixture of jobs. Out: one `PackedBatch` per index. Wordings are always
new; pictures come from a fixed number of episodes.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, TextPart, unconditional
from mllm.packing import PackedBatch, Packer, take_row
from mllm.sequence import TokenSequence, build_sequence
from mllm.world.dialogue import JOBS, Dialogue, make_dialogue
from mllm.world.episode import Episode, Picture
from mllm.world.outline import outline_of
from train.data.world_codes import WorldCodes
from train.mllm_recipe import WorldData

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
    slots = {picture: slot for slot, picture in enumerate(episode.pictures)}

    def codes_of(picture: Picture) -> CodesPart:
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
