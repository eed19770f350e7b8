"""How often the checker itself errs: freshly rendered scenes, with and without blur, noise and color shifts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from mllm.world.checker import ParsedScene, parse
from mllm.world.phrases import full_filter
from mllm.world.render import RenderSize, render
from mllm.world.scene import Scene, random_scene

POSITION_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class CheckerError:
    """Outcome of a measurement."""

    count: int
    wrong: int  # read as another scene
    unreadable: int
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Share of pictures not read right."""
        return (self.wrong + self.unreadable) / self.count


def same_scene(expected: Scene, found: Scene, *, tolerance: float = POSITION_TOLERANCE) -> bool:
    """Whether two scenes have the same background and the same objects in the same places."""
    if expected.background != found.background or len(expected.objects) != len(found.objects):
        return False
    rest = list(found.objects)
    for item in expected.objects:
        near = [
            other
            for other in rest
            if full_filter(item).matches(other) and math.hypot(item.x - other.x, item.y - other.y) <= tolerance
        ]
        if not near:
            return False
        rest.remove(near[0])
    return True


def disturb(image: Image.Image, rng: np.random.Generator, *, noise: float, blur: float, shift: float) -> Image.Image:
    """Blur (radius in pixels), shift every channel of the picture (+- shift) and add noise (standard deviation)."""
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    if not noise and not shift:
        return image
    pixels_HW3 = np.asarray(image, np.float64)
    pixels_HW3 = pixels_HW3 + rng.uniform(-shift, shift, 3) + rng.normal(0, noise, pixels_HW3.shape)
    return Image.fromarray(np.clip(np.rint(pixels_HW3), 0, 255).astype(np.uint8))


def measure_checker(
    count: int, *, seed: int = 0, noise: float = 0.0, blur: float = 0.0, shift: float = 0.0, size: RenderSize = 128
) -> CheckerError:
    """Parse this many rendered scenes and count those not read right."""
    scenes, disturbance = Random(seed), np.random.default_rng(seed)
    wrong, reasons = 0, Counter[str]()
    for _ in range(count):
        scene = random_scene(scenes)
        parsed: ParsedScene = parse(disturb(render(scene, size), disturbance, noise=noise, blur=blur, shift=shift))
        if parsed.scene is None:
            reasons[parsed.reason or ""] += 1
        else:
            wrong += not same_scene(scene, parsed.scene)
    return CheckerError(count, wrong, sum(reasons.values()), dict(reasons))
