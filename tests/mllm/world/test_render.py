"""Images are exact: right sizes and areas at every resolution."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from mllm.world.render import DEPTH_RGB, RGB, SEGMENTATION_RGB, compute_coverage, render
from mllm.world.scene import SHAPES, Scene, SceneObject

ONE = Scene("cream", (SceneObject("heart", "purple", "large", 0.4, 0.6),))


def test_size_and_colors() -> None:
    for size, (kind, palette, name, behind) in product(
        ((64, 64), (250, 250), (192, 128), (96, 160)),
        (
            ("image", RGB, "purple", "cream"),
            ("depth", DEPTH_RGB, "large", "background"),
            ("segmentation", SEGMENTATION_RGB, "heart", "background"),
        ),
    ):
        image = render(ONE, size, kind)
        assert image.size == size and image.mode == "RGB" and image.getpixel((1, 1)) == palette[behind]
        assert image.getpixel((int(0.4 * size[0]), int(0.6 * size[1]))) == palette[name]
    render(Scene("white", (SceneObject("square", "red", "large", 0.0, 1.0),)), (64, 80))  # cut by the border
    for options in ({"size": 8}, {"kind": "normals"}):
        with pytest.raises(ValueError):
            render(ONE, **options)


def test_coverage_agrees_with_many_samples_per_pixel() -> None:
    """Antialiasing by distance is close to brute force: 16 x 16 inside tests per pixel."""
    for shape in SHAPES:
        fast_HW = compute_coverage(shape, 11.0, 0.25, -0.375)
        samples_HW = compute_coverage(shape, 11.0 * 16, 0.25 * 16, -0.375 * 16) > 0.5
        reach, fine_reach = fast_HW.shape[0] // 2, samples_HW.shape[0] // 2
        slow_HW = np.zeros_like(fast_HW)
        # fine pixel i of the middle pixel's corner at fine_reach belongs to coarse pixel reach + i // 16
        for y, x in zip(*np.nonzero(samples_HW), strict=True):
            slow_HW[reach + (y - fine_reach) // 16, reach + (x - fine_reach) // 16] += 1 / 256
        assert np.abs(fast_HW - slow_HW).mean() < 0.01
        assert fast_HW.sum() == pytest.approx(slow_HW.sum(), rel=0.01)
