"""Read a picture back into a scene, or say that it is unreadable; never guess.

Nearest palette color gives the background and a mask of objects; each connected component is one object. Its color is
that of its core, away from the border; its soft mask (how far each pixel is from the background towards that color)
is compared with rendered masks of every shape and size in its place, and the best one must fit well.

Letters: H W pixels, P palette colors.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mllm.world.language import full_filter
from mllm.world.render import (
    DEPTH_GRAY,
    SEGMENTATION_RGB,
    SUBPIXELS,
    RenderSize,
    cached_coverage,
    compute_coverage,
    render,
    render_array,
)
from mllm.world.scene import BACKGROUNDS, COLORS, RADIUS, RGB, SHAPES, Scene, SceneObject, random_scene
from mllm.world.spec import Spec, Verdict, check_scene

# Connected components of a mask, in numpy: runs of pixels in each row, joined with those they touch in the row above.
#
# Letters: H W pixels, R runs.


def find_runs(mask_HW: NDArray[np.bool_]) -> tuple[NDArray, NDArray, NDArray]:
    """Row, first column and column after the last of every run of true pixels, in reading order."""
    height, width = mask_HW.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask_HW
    steps = np.diff(padded, axis=1)
    rows_R, starts_R = np.nonzero(steps == 1)
    _, ends_R = np.nonzero(steps == -1)
    return rows_R, starts_R, ends_R


def label_components(mask_HW: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[int]]:
    """Labels 1, 2, ... of the components of touching pixels (by edge, not by corner), and the area of each label.

    Label 0 and area 0 stand for the pixels outside the mask.
    """
    rows_R, starts_R, ends_R = (values.tolist() for values in find_runs(mask_HW))
    parents = list(range(len(rows_R)))

    def find(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above = 0  # first run that may still touch: runs come in reading order, so this only moves on
    for run, row in enumerate(rows_R):
        while rows_R[above] < row - 1 or (rows_R[above] == row - 1 and ends_R[above] <= starts_R[run]):
            above += 1
        other = above
        while other < run and rows_R[other] == row - 1 and starts_R[other] < ends_R[run]:
            parents[find(run)] = find(other)
            other += 1
    numbers: dict[int, int] = {}
    areas = [0]
    labels_HW = np.zeros(mask_HW.shape, np.int32)
    for run, (row, start, end) in enumerate(zip(rows_R, starts_R, ends_R, strict=True)):
        root = find(run)
        label = numbers.setdefault(root, len(numbers) + 1)
        if label == len(areas):
            areas.append(0)
        areas[label] += end - start
        labels_HW[row, start:end] = label
    return labels_HW, areas


def erode(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbors are in the mask too; outside the picture counts as inside."""
    padded = np.pad(mask_HW, 1, mode="edge")
    return mask_HW & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def dilate(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the four neighbors of each of its pixels."""
    padded = np.pad(mask_HW, 1)
    return mask_HW | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


MIN_SIDE = 64
MAX_PARSED_SIDE = 192  # larger pictures are shrunk to about half of this at most
SPECK_SHARE = 0.0015  # components below this share of the (square) picture are ignored: 24 pixels at 128
MAX_COLOR_DISTANCE = 62.0  # of a core or background from its palette color, in RGB units
MIN_BACKGROUND_PURITY = 0.97
MIN_CORE_PURITY = 0.75
MIN_IOU = {"small": 0.78, "large": 0.84}  # small ones lose more to blur
MIN_LEAD = 0.05  # of the best shape over the next one
MAX_OBJECTS_READ = 8


@dataclass(frozen=True, slots=True)
class ParsedScene:
    """What a picture shows. Exactly one of scene and reason is set."""

    scene: Scene | None
    reason: str | None = None  # why it is unreadable
    fits: tuple[float, ...] = ()  # overlap of each object with its ideal mask, in the order found

    @property
    def is_readable(self) -> bool:
        return self.scene is not None


class UnreadableError(Exception):
    """A picture or a part of it shows nothing of this world."""


@lru_cache(maxsize=8)
def nearest_table(names: tuple[str, ...]) -> NDArray[np.uint8]:
    """Index of the nearest of the named colors for every color in steps of 8: shape (32, 32, 32)."""
    levels = np.arange(32) * 8 + 4
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    palette_P3 = np.array([RGB[name] for name in names])
    return np.square(colors[..., None, :] - palette_P3).sum(-1).argmin(-1).astype(np.uint8)


def nearest_color(pixels_HW3: NDArray[np.uint8], names: tuple[str, ...]) -> NDArray[np.uint8]:
    """Index of the nearest of the named colors for every pixel."""
    red, green, blue = (pixels_HW3[..., channel] >> 3 for channel in range(3))
    return nearest_table(names)[red, green, blue]


def parse(image: Image.Image) -> ParsedScene:
    """The scene that a picture shows, or the reason why it is unreadable."""
    try:
        return parse_pixels(to_pixels(image))
    except UnreadableError as error:
        return ParsedScene(None, str(error))


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """RGB values at a size good for reading."""
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise ValueError(f"a picture of {width} x {height} pixels is too small to read; use at least {MIN_SIDE} a side")
    image = image.convert("RGB")
    if min(image.size) > MAX_PARSED_SIDE:
        image = image.reduce(min(image.size) // (MAX_PARSED_SIDE // 2))
    return np.asarray(image)


def parse_pixels(pixels_HW3: NDArray[np.uint8]) -> ParsedScene:
    background = find_background(pixels_HW3)
    indices_HW = nearest_color(pixels_HW3, (background, *COLORS))
    labels_HW, areas = label_components(indices_HW > 0)
    side = min(labels_HW.shape)
    large_enough = [label for label, area in enumerate(areas) if area >= SPECK_SHARE * side * side]
    if not large_enough:
        raise UnreadableError("there is no object")
    if len(large_enough) > MAX_OBJECTS_READ:
        raise UnreadableError(f"there are {len(large_enough)} separate things")
    background_3 = check_background(pixels_HW3, indices_HW, labels_HW, large_enough, background)
    found = [read_object(pixels_HW3, indices_HW, labels_HW == label, background_3) for label in large_enough]
    return ParsedScene(Scene(background, tuple(item for item, _ in found)), fits=tuple(fit for _, fit in found))


def find_background(pixels_HW3: NDArray[np.uint8]) -> str:
    """The most frequent background color."""
    names = (*BACKGROUNDS, *COLORS)
    counts = np.bincount(nearest_color(pixels_HW3, names).ravel(), minlength=len(names))
    return BACKGROUNDS[int(counts[: len(BACKGROUNDS)].argmax())]


def check_background(
    pixels_HW3: NDArray, indices_HW: NDArray, labels_HW: NDArray, objects: list[int], name: str
) -> NDArray:
    """The mean background color, once it is known to be even and near the palette's."""
    near_objects_HW = np.isin(labels_HW, objects)
    for _ in range(3):
        near_objects_HW = dilate(near_objects_HW)
    outside_HW = ~near_objects_HW
    if outside_HW.mean() < 0.2:
        raise UnreadableError("there is hardly any background")
    if (indices_HW[outside_HW] == 0).mean() < MIN_BACKGROUND_PURITY:
        raise UnreadableError("the background is uneven")
    mean_3 = pixels_HW3[outside_HW].mean(0)
    if np.linalg.norm(mean_3 - RGB[name]) > MAX_COLOR_DISTANCE:
        raise UnreadableError("the background has no color of this world")
    return mean_3


def read_object(
    pixels_HW3: NDArray, indices_HW: NDArray, mask_HW: NDArray[np.bool_], background_3: NDArray
) -> tuple[SceneObject, float]:
    """One component as an object, and how well it fits."""
    height, width = mask_HW.shape
    side = min(height, width)
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    pad = 3 + side // 64
    top, bottom = max(0, rows[0] - pad), min(height, rows[-1] + 1 + pad)
    left, right = max(0, columns[0] - pad), min(width, columns[-1] + 1 + pad)
    if max(bottom - top, right - left) > side * 0.6:
        raise UnreadableError("something is larger than any object")
    box = (slice(top, bottom), slice(left, right))
    core_HW = find_core(mask_HW[box])
    color, mean_3 = read_color(pixels_HW3[box][core_HW], indices_HW[box][core_HW])
    alpha_HW = soft_mask(pixels_HW3[box], background_3, mean_3)
    near_HW = dilate(dilate(mask_HW[box]))
    shape, size, (x, y), fit = match_shape(np.where(near_HW, alpha_HW, 0.0), side)
    return SceneObject(shape, color, size, round(float(left + x) / width, 4), round(float(top + y) / height, 4)), fit


def find_core(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The inside of a mask: two pixels from its border, or one, where that leaves anything."""
    once_HW = erode(mask_HW)
    twice_HW = erode(once_HW)
    for core_HW in (twice_HW, once_HW):
        if core_HW.sum() >= 8:
            return core_HW
    return mask_HW


def read_color(core_N3: NDArray, indices_N: NDArray) -> tuple[str, NDArray]:
    """The name and mean of the core's color."""
    counts = np.bincount(indices_N, minlength=len(COLORS) + 1)[1:]
    best = int(counts.argmax())
    if counts[best] < MIN_CORE_PURITY * len(indices_N):
        raise UnreadableError("an object has more than one color")
    mean_3 = core_N3[indices_N == best + 1].mean(0)
    if np.linalg.norm(mean_3 - RGB[COLORS[best]]) > MAX_COLOR_DISTANCE:
        raise UnreadableError(f"an object has no color of this world; {COLORS[best]} is nearest")
    return COLORS[best], mean_3


def soft_mask(pixels_HW3: NDArray, background_3: NDArray, color_3: NDArray) -> NDArray:
    """How far each pixel is on the way from the background (0) to the object's color (1)."""
    way_3 = color_3 - background_3
    return np.clip(((pixels_HW3 - background_3) @ way_3) / (way_3 @ way_3), 0.0, 1.0)


@lru_cache(maxsize=64)
def shape_moments(shape: str) -> tuple[float, float]:
    """Area and vertical center of mass of a shape of radius 1 (the horizontal one is 0)."""
    coverage_HW = compute_coverage(shape, 100.0, 0.0, 0.0)
    reach = coverage_HW.shape[0] // 2
    rows = np.arange(-reach, reach + 1) + 0.5
    area = coverage_HW.sum()
    return float(area / 100.0**2), float((coverage_HW.sum(1) * rows).sum() / area / 100.0)


def match_shape(alpha_HW: NDArray, side: int) -> tuple[str, str, tuple[float, float], float]:
    """The shape, size, center (pixels in the box) and overlap that explain a soft mask best."""
    height, width = alpha_HW.shape
    area = alpha_HW.sum()
    solid_HW = alpha_HW > 0.5
    mass_x = (alpha_HW.sum(0) * (np.arange(width) + 0.5)).sum() / area
    mass_y = (alpha_HW.sum(1) * (np.arange(height) + 0.5)).sum() / area
    results = []
    for shape in SHAPES:
        unit_area, unit_y = shape_moments(shape)
        for size, radius in RADIUS.items():
            pixels = radius * side
            if 0.55 < area / (unit_area * pixels * pixels) < 1.8:
                center = (mass_x, mass_y - unit_y * pixels)
                results.append((overlap(solid_HW, shape, pixels, center), shape, size, center))
    results.sort(reverse=True)
    if not results or results[0][0] < MIN_IOU[results[0][2]]:
        raise UnreadableError("something looks like no shape of this world")
    if len(results) > 1 and results[0][0] - results[1][0] < MIN_LEAD:
        raise UnreadableError(f"an object could be a {results[0][1]} or a {results[1][1]}")
    fit, shape, size, center = results[0]
    return shape, size, center, float(fit)


def overlap(solid_HW: NDArray[np.bool_], shape: str, radius: float, center: tuple[float, float]) -> float:
    """Intersection over union of a mask and a rendered shape, both cut at half coverage: blur hardly matters."""
    height, width = solid_HW.shape
    (column, step_x), (row, step_y) = (divmod(round(value * SUBPIXELS), SUBPIXELS) for value in center)
    ideal_HW = cached_coverage(shape, radius, step_x, step_y)[..., 0] >= 128
    reach = ideal_HW.shape[0] // 2
    top, left = row - reach, column - reach
    cut_HW = ideal_HW[max(0, -top) : height - top, max(0, -left) : width - left]
    part_HW = solid_HW[max(0, top) : top + ideal_HW.shape[0], max(0, left) : left + ideal_HW.shape[1]]
    shared = int(np.count_nonzero(cut_HW & part_HW))
    return shared / (int(np.count_nonzero(ideal_HW)) + int(np.count_nonzero(solid_HW)) - shared)


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on one picture or answer."""

    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


def check(spec: Spec, parsed: ParsedScene) -> Result:
    """A verdict for every constraint; an unreadable picture fulfils none."""
    if parsed.scene is None:
        readable = Verdict(f"the picture is readable ({parsed.reason})", False)
        return Result((readable, *(Verdict(str(item), False) for item in spec.constraints)))
    return Result((Verdict("the picture is readable", True), *check_scene(spec, parsed.scene)))


# Score a depth or segmentation picture against the scene it should show: pixel accuracy and mean IoU over classes.
#
# A blend of two classes at a border can be the color of a third. So a class counts only where it is more than a thin
# line, and a few pixels around; every pixel takes the nearest color among the classes that count there.
#
# Letters: H W pixels, P classes.


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


# How often the checker itself errs: freshly rendered scenes, with and without blur, noise and color shifts.


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
