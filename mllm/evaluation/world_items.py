"""The items of the world's evaluation: test scenes that no training has seen, one dialogue each.

In: counts and a seed. Out: dialogues grouped by job and pair group. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mllm.world.dialogue import make_dialogue
from mllm.world.episode import make_episode
from mllm.world.splits import PairGroup, Split
from mllm.world.turns import Dialogue


@dataclass(frozen=True, slots=True)
class Group:
    """Items that share one row of the table."""

    job: str
    pairs: PairGroup

    @property
    def name(self) -> str:
        return (
            f"{self.job}, {'held-out' if self.pairs == 'held_out' else 'seen'} pairs"
            if self.job == "draw"
            else self.job
        )


GROUPS = (
    Group("draw", "seen"),
    Group("draw", "held_out"),
    Group("ask", "seen"),
    Group("describe", "seen"),
    Group("edit", "seen"),
    Group("depth", "seen"),
    Group("segment", "seen"),
    Group("interleaved", "seen"),
    Group("multi_turn", "seen"),
    Group("talk", "seen"),
)


def make_items(group: Group, count: int, *, seed: int, split: Split = "test") -> list[Dialogue]:
    """`count` dialogues; the same arguments give the same ones."""
    items = []
    for index in range(count):
        episode = make_episode(index, seed=seed, split=split, pairs=group.pairs)
        items.append(make_dialogue(group.job, episode, Random(f"items/{seed}/{group.job}/{group.pairs}/{index}")))
    return items
