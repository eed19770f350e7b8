"""A random part of a picture at a random proportion, scaled to a square: what torchvision calls RandomResizedCrop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from PIL import Image

NUM_TRIES = 10  # torchvision's; afterwards the largest crop in the middle


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Its choices come from the generator that each call is given."""

    size: int
    """Side of the result in pixels."""
    area: tuple[float, float] = (0.9, 1.0)
    """Share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height."""

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"a crop needs area bounds within 0 and 1 and rising proportions; got {self.area} and {self.ratio}; "
                "correct shards.crop_area or shards.crop_ratio"
            )

    def __call__(self, image: Image.Image, rng: Random) -> Image.Image:
        part = image.crop(self.box(image.width, image.height, rng))
        return part.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def box(self, width: int, height: int, rng: Random) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop."""
        for _ in range(NUM_TRIES):
            area = width * height * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
                return left, top, left + wide, top + high
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide, high = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high
