"""Images as others paint them: a scene in other sizes, proportions and colors, with round corners and line ends, with
hard or soft borders, noise and compression.

In: a scene and a random generator. Out: an image that anyone would describe as this scene. What the model itself draws
looks as mllm/world/render.py has it; this is what it must recognise in images that people show.

Letters: H W pixels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from itertools import combinations
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mllm.world.render import RGB, heart_distance, polygon, polygon_distance
from mllm.world.scene import MIN_GAP, RADIUS, Scene

PLAIN_SHARE, OWN_COLOR_SHARE = 0.4, 0.4
"""Of images that are neither blurred nor noisy nor compressed, and of those in the colors of this world."""
OTHER_RGB = {
    "white": [(255, 255, 255), (250, 250, 250), (240, 244, 248)],
    "gray": [(128, 128, 128), (160, 160, 160), (190, 190, 190), (110, 110, 110), (149, 165, 166)],
    "black": [(0, 0, 0), (18, 18, 18), (35, 35, 40)],
    "cream": [(255, 253, 208), (245, 245, 220), (250, 235, 200), (245, 222, 179), (240, 225, 190)],
    "red": [(255, 0, 0), (220, 20, 60), (190, 0, 0), (230, 57, 70), (244, 67, 54), (231, 76, 60)],
    "orange": [(255, 165, 0), (255, 140, 0), (255, 127, 0), (243, 156, 18), (255, 152, 0), (240, 120, 30)],
    "yellow": [(255, 255, 0), (255, 215, 0), (241, 196, 15), (255, 235, 59), (250, 240, 90)],
    "green": [(0, 128, 0), (0, 200, 0), (0, 255, 0), (46, 204, 113), (76, 175, 80), (34, 139, 34), (0, 100, 0)],
    "blue": [(0, 0, 255), (30, 144, 255), (52, 152, 219), (33, 150, 243), (0, 0, 160), (65, 105, 225)],
    "purple": [(128, 0, 128), (155, 89, 182), (148, 0, 211), (156, 39, 176), (138, 43, 226), (90, 20, 140)],
}
"""What other programs and style sheets call by these names."""


@dataclass(frozen=True, kw_only=True)
class Painter:
    """How somebody paints shapes."""

    scales: dict[str, float]  # of small and of large objects
    colors: dict[str, tuple[int, ...]]
    rounding: float  # of corners and line ends, in units of the radius
    is_soft: bool  # borders are antialiased
    waist: float  # of stars: inner radius
    arm: float  # of crosses: half of its width
    circle: float  # radius of circles
    width: float  # of triangles and hearts, as a share of the usual one

    @classmethod
    def of(cls, scene: Scene, rng: Random) -> Painter:
        """A painter whose objects of this scene stay apart and inside."""
        items, room = scene.objects, MIN_GAP / 2  # between objects, and to the border
        inner = [(min(item.x, 1 - item.x, item.y, 1 - item.y) - room) / RADIUS[item.size] for item in items]
        for a, b in combinations(items, 2):
            inner.append((math.hypot(a.x - b.x, a.y - b.y) - room) / (RADIUS[a.size] + RADIUS[b.size]))
        largest = min(*inner, 1.35)
        is_own = rng.random() < OWN_COLOR_SHARE
        colors = {}
        for name, own in RGB.items():
            color = own if is_own else rng.choice([own, *OTHER_RGB[name]])
            colors[name] = tuple(min(max(value + rng.randint(-8, 8), 0), 255) for value in color)
        return cls(
            scales={size: rng.uniform(low, largest) for size, low in (("small", 0.7), ("large", 0.8))},
            colors=colors,
            rounding=rng.choice((0.0, 0.0, rng.uniform(0.02, 0.2))),
            is_soft=rng.random() < 0.8,
            waist=rng.choice((0.45, rng.uniform(0.38, 0.55))),
            arm=rng.choice((0.31, rng.uniform(0.18, 0.38))),
            circle=rng.uniform(0.88, 1.0),
            width=rng.choice((1.0, rng.uniform(0.82, 1.0))),
        )

    def paint(self, scene: Scene, side: int) -> Image.Image:
        canvas_HW3 = np.empty((side, side, 3))
        canvas_HW3[:] = self.colors[scene.background]
        pixels = (np.arange(side) + 0.5) / side
        for item in scene.objects:
            radius = RADIUS[item.size] * self.scales[item.size]
            x_HW, y_HW = np.meshgrid((pixels - item.x) / radius, (pixels - item.y) / radius)
            cover_HW = 0.5 - self.distance(item.shape, x_HW, y_HW) * radius * side
            cover_HW = cover_HW.clip(0, 1) if self.is_soft else (cover_HW >= 0.5).astype(float)
            canvas_HW3 += cover_HW[..., None] * (np.array(self.colors[item.color]) - canvas_HW3)
        return Image.fromarray(canvas_HW3.round().astype(np.uint8))

    def distance(self, shape: str, x_HW: NDArray, y_HW: NDArray) -> NDArray:
        """To the border of a shape of radius 1, negative inside."""
        match shape:
            case "circle":
                return np.hypot(x_HW, y_HW) - self.circle
            case "heart":
                return heart_distance(x_HW / self.width, y_HW)
            case _:
                inner = 1 - self.rounding
                width = inner * (self.width if shape == "triangle" else 1)
                points = [(x * width, y * inner) for x, y in polygon(shape, waist=self.waist, arm=self.arm)]
                return polygon_distance(x_HW, y_HW, points) - self.rounding


def paint_as_others(scene: Scene, side: int, rng: Random) -> Image.Image:
    """The image of a scene as somebody else might show it: plain, or softer, noisier, compressed, in other light."""
    image = Painter.of(scene, rng).paint(scene, side)
    if rng.random() < PLAIN_SHARE:
        return image
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    pixels_HW3: np.ndarray = np.asarray(image, dtype=np.float32)
    noise = np.random.default_rng(rng.randrange(2**32))
    if rng.random() < 0.5:
        pixels_HW3 = pixels_HW3 * noise.uniform(0.9, 1.06, 3) + noise.uniform(-10, 10, 3)
    if rng.random() < 0.5:
        pixels_HW3 = pixels_HW3 + noise.normal(0, rng.uniform(1, 8), pixels_HW3.shape)
    image = Image.fromarray(pixels_HW3.clip(0, 255).round().astype(np.uint8))
    if rng.random() < 0.5:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(40, 95))
        image = Image.open(file).convert("RGB")
    return image
