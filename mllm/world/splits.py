"""Which scenes are for training, validation and test, and which color-shape pairs training never sees.

The split of a scene is a hash of its content with positions rounded to a coarse grid, so that no test scene is a
training scene moved by a hair.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import Literal

from mllm.world.scene import ALL_PAIRS, Pair, Scene, random_scene

Split = Literal["train", "validation", "test"]
PairGroup = Literal["seen", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# Every color and every shape is held out exactly once.
HELD_OUT_PAIRS: frozenset[Pair] = frozenset(
    {
        ("purple", "circle"),
        ("yellow", "square"),
        ("blue", "triangle"),
        ("orange", "star"),
        ("red", "cross"),
        ("green", "heart"),
    }
)
SEEN_PAIRS: frozenset[Pair] = ALL_PAIRS - HELD_OUT_PAIRS
POSITION_STEPS = 16
SHARES = {"validation": 0.1, "test": 0.1}  # the rest is for training


def content_key(scene: Scene) -> str:
    """A text that is equal for scenes that look alike: positions are rounded to a coarse grid."""
    parts = [
        f"{item.shape},{item.color},{item.size},{int(item.x * POSITION_STEPS)},{int(item.y * POSITION_STEPS)}"
        for item in scene.objects
    ]
    return ";".join([scene.background, *sorted(parts)])


def split_of(scene: Scene) -> Split:
    """The one split a scene belongs to."""
    digest = hashlib.blake2b(content_key(scene).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < SHARES["validation"]:
        return "validation"
    return "test" if share < SHARES["validation"] + SHARES["test"] else "train"


def allowed_pairs(pairs: PairGroup) -> frozenset[Pair]:
    """The pairs that pictures and sentences of a group may contain."""
    if pairs not in ("seen", "held_out"):
        raise ValueError(f"pair group {pairs!r} is unknown; choose seen or held_out")
    return SEEN_PAIRS if pairs == "seen" else ALL_PAIRS


def belongs(scene: Scene, split: Split, pairs: PairGroup) -> bool:
    """Whether a scene may be used in a split and pair group."""
    is_held_out = not scene.pairs.isdisjoint(HELD_OUT_PAIRS)
    return is_held_out == (pairs == "held_out") and split_of(scene) == split


def check_group(split: Split, pairs: PairGroup) -> None:
    """Refuse what would leak held-out pairs into training."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    allowed_pairs(pairs)
    if split == "train" and pairs == "held_out":
        raise ValueError("held-out pairs were asked for in training; use the validation or test split for them")


def random_scene_for(split: Split, rng: Random, *, pairs: PairGroup = "seen", num_objects: int | None = None) -> Scene:
    """A random scene of a split. Held-out scenes have at least one held-out pair."""
    check_group(split, pairs)
    allowed = allowed_pairs(pairs)
    while True:
        scene = random_scene(rng, num_objects=num_objects, allowed_pairs=allowed)
        if belongs(scene, split, pairs):
            return scene
