"""Pictures of the synthetic world by number, for the image tokenizer: picture i is always the same.

In: an index. Out: uint8 pixels (3, H, W) and, where captions are wanted, ids for the text tower.
"""

from __future__ import annotations

from random import Random

from torch import Tensor
from torch.utils.data import Dataset

from mllm.world.describe_language import describe
from mllm.world.episode import PICTURE_KINDS, Picture
from mllm.world.scene import SceneObject
from mllm.world.splits import random_scene_for
from tokenizer.captions import EncodeCaptions
from tokenizer.image_processor import to_bytes

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
        picture = Picture(scene, rng.choices(PICTURE_KINDS, KIND_WEIGHTS)[0])
        image = picture.render(self.image_size)
        if self.crop is not None:
            weights = [SMALL_WEIGHT if item.size == "small" else 1 for item in scene.objects]
            (item,) = rng.choices(scene.objects, weights)
            image = image.crop(window_on(item, self.crop, self.image_size, rng))
        sample = {"pixels": to_bytes(image)}
        if self.captions:
            sample["text_ids"] = self.captions([caption_of(picture, rng)])[0]
        return sample


def caption_of(picture: Picture, rng: Random) -> str:
    """What the picture shows, in short or at length; of depth and segmentation pictures, their kind."""
    return describe(picture.scene, short=rng.random() < 0.5) if picture.kind == "image" else picture.kind


def window_on(item: SceneObject, side: int, image_size: int, rng: Random) -> tuple[int, int, int, int]:
    """A random window (left, top, right, bottom) within the picture that holds the middle of an object."""
    left, top = (
        min(max(round(middle * image_size - rng.uniform(0, side)), 0), image_size - side) for middle in (item.x, item.y)
    )
    return left, top, left + side, top + side
