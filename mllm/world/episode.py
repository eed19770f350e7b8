"""An episode: one scene, one change to it, and the scene after. All pictures a dialogue may use come from its episode.

Content is made here, wording elsewhere with its own random numbers, so that a picture encoded once serves many
sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from mllm.world.edits import Edit, apply_edit, propose_edit
from mllm.world.render import RenderSize, render, render_depth, render_segmentation
from mllm.world.scene import Pair, Scene
from mllm.world.splits import PairGroup, Split, allowed_pairs, random_scene_for, split_of

EDIT_TRIES = 40
PICTURE_KINDS = ("image", "depth", "segmentation")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture by reference: drawn only when someone asks for it."""

    scene: Scene
    kind: str = "image"

    def render(self, size: RenderSize = 128) -> Image.Image:
        match self.kind:
            case "image":
                return render(self.scene, size)
            case "depth":
                return render_depth(self.scene, size)
            case "segmentation":
                return render_segmentation(self.scene, size)
            case _:
                raise ValueError(f"picture kind {self.kind!r} is unknown; choose one of {', '.join(PICTURE_KINDS)}")


@dataclass(frozen=True, slots=True)
class Episode:
    """The content of one or many dialogues."""

    scene: Scene
    edit: Edit
    edited: Scene  # apply_edit(scene, edit)
    pairs: PairGroup = "seen"  # which color-shape pairs its sentences may name

    @property
    def pictures(self) -> tuple[Picture, Picture, Picture, Picture]:
        """Every picture that a dialogue about this episode can use, in a fixed order."""
        return (
            Picture(self.scene),
            Picture(self.edited),
            Picture(self.scene, "depth"),
            Picture(self.scene, "segmentation"),
        )

    @property
    def allowed_pairs(self) -> frozenset[Pair]:
        return allowed_pairs(self.pairs)


def make_episode(
    index: int, *, seed: int = 0, split: Split = "train", pairs: PairGroup = "seen", num_objects: int | None = None
) -> Episode:
    """The episode with this number: always the same for the same arguments. Both scenes belong to the split."""
    rng = Random(f"{seed}/{split}/{pairs}/{num_objects}/{index}")  # a string seeds the same on every machine
    allowed = allowed_pairs(pairs)
    while True:
        scene = random_scene_for(split, rng, pairs=pairs, num_objects=num_objects)
        for _ in range(EDIT_TRIES):
            edit = propose_edit(scene, rng, allowed_pairs=allowed)
            edited = apply_edit(scene, edit)
            if split_of(edited) == split:
                return Episode(scene, edit, edited, pairs)
