"""Score a depth or segmentation picture against the scene it should show: pixel accuracy and mean IoU over classes.

A blend of two classes at a border can be the color of a third. So a class counts only where it is more than a thin
line, and a few pixels around; every pixel takes the nearest color among the classes that count there.

Letters: H W pixels, P classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mllm.world.components import dilate, erode
from mllm.world.render import DEPTH_GRAY, SEGMENTATION_RGB, RenderSize, render_array
from mllm.world.scene import Scene

CLASS_COLORS: dict[str, tuple[tuple[int, ...], ...]] = {
    "depth": tuple((gray,) * 3 for gray in DEPTH_GRAY.values()),
    "segmentation": tuple(SEGMENTATION_RGB.values()),
}
CLASS_NAMES: dict[str, tuple[str, ...]] = {"depth": tuple(DEPTH_GRAY), "segmentation": tuple(SEGMENTATION_RGB)}
REACH = 3  # pixels around the solid part of a class in which it counts


@dataclass(frozen=True, slots=True)
class DenseScore:
    """How well a dense picture fits its scene."""

    pixel_accuracy: float
    mean_iou: float  # over the classes that the scene or the picture has
    iou: dict[str, float]  # of each of these classes


def expected_classes(kind: str, scene: Scene, size: RenderSize) -> NDArray[np.intp]:
    """Class of every pixel by the scene alone: that of the shape which covers at least half of it."""
    names = CLASS_NAMES[kind]
    attribute = "size" if kind == "depth" else "shape"
    coverage_HW = np.zeros(render_array(scene, size, [(0,)] * len(scene.objects), (0,)).shape[:2], np.intp)
    for item in scene.objects:
        alone = Scene(scene.background, (item,))
        covered_HW = render_array(alone, size, [(255,)], (0,))[..., 0] >= 128
        coverage_HW[covered_HW] = names.index(getattr(item, attribute))
    return coverage_HW


def found_classes(kind: str, image: Image.Image) -> NDArray[np.intp]:
    """Class of every pixel of a picture."""
    pixels_HW13 = np.asarray(image.convert("RGB"), np.float32)[:, :, None]
    distances_HWP = np.square(pixels_HW13 - np.array(CLASS_COLORS[kind], np.float32)).sum(-1)
    nearest_HW = distances_HWP.argmin(-1)
    present = [label for label in range(distances_HWP.shape[-1]) if (nearest_HW == label).any()]
    is_near_HWP = np.zeros(distances_HWP.shape, bool)
    thin = max(1, min(image.size) // 64)
    for label in present:
        near_HW = nearest_HW == label
        for _ in range(thin):  # a border of blends is too thin to survive this
            near_HW = erode(near_HW)
        for _ in range(thin + REACH):
            near_HW = dilate(near_HW)
        is_near_HWP[..., label] = near_HW
    distances_HWP[~is_near_HWP] = np.inf
    return np.where(is_near_HWP.any(-1), distances_HWP.argmin(-1), nearest_HW)


def score_dense(kind: str, image: Image.Image, scene: Scene) -> DenseScore:
    """Score a picture of kind "depth" or "segmentation"."""
    if kind not in CLASS_COLORS:
        raise ValueError(f"dense kind {kind!r} is unknown; choose depth or segmentation")
    expected_HW, found_HW = expected_classes(kind, scene, image.size), found_classes(kind, image)
    iou = {}
    for label, name in enumerate(CLASS_NAMES[kind]):
        expected, found = expected_HW == label, found_HW == label
        if union := int((expected | found).sum()):
            iou[name] = float((expected & found).sum() / union)
    return DenseScore(float((expected_HW == found_HW).mean()), float(np.mean(list(iou.values()))), iou)
