"""Read an image back into a scene, or say that it is unreadable; never guess. Score depth and segmentation images.

The nearest palette color gives the background and a mask of objects; each connected component is one object. Its color
is that of its core, away from the border; its soft mask (how far each pixel is from the background towards that color)
is compared with rendered masks of every shape and size in its place, and the best one must fit well.

Letters: H W pixels, N pixels of a core, P palette colors.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mllm.world.render import (
    PALETTES,
    RGB,
    SHOWN_ATTRIBUTE,
    SUBPIXELS,
    RenderSize,
    cached_coverage,
    compute_coverage,
    render,
    render_array,
    signed_distance,
)
from mllm.world.scene import BACKGROUNDS, COLORS, MIN_GAP, RADIUS, SHAPES, Scene, SceneObject, random_scene
from mllm.world.spec import looks_like, pair_up
from tokenizer.images import read_image

MIN_SIDE = 64
MAX_PARSED_SIDE = 192  # larger images are shrunk to about half of this at most
SPECK_SHARE = 0.0015  # components below this share of the (square) image are ignored: 24 pixels at 128
MAX_COLOR_DISTANCE = 62.0  # of a core or background from its palette color, in RGB units
MIN_BACKGROUND_PURITY = 0.97
MIN_CORE_PURITY = 0.75
MIN_IOU = {"small": 0.78, "large": 0.84}  # small ones lose more to blur
MIN_LEAD = 0.05  # of the best shape over the next one
MAX_OBJECTS_READ = 8
POSITION_TOLERANCE = 0.03
REACH = 3  # pixels around the solid part of a class in which it counts, in dense images


@dataclass(frozen=True, slots=True)
class ParsedScene:
    """What an image shows. Exactly one of scene and reason is set."""

    scene: Scene | None
    reason: str | None = None  # why it is unreadable


class UnreadableError(Exception):
    """An image or a part of it shows nothing of this world."""


def parse(image: Image.Image) -> ParsedScene:
    """The scene that an image shows, or the reason why it is unreadable."""
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"image must be at least {MIN_SIDE} pixels a side to be read, got {image.size}")
    image = read_image(image)
    if min(image.size) > MAX_PARSED_SIDE:
        image = image.reduce(min(image.size) // (MAX_PARSED_SIDE // 2))
    try:
        return _parse_pixels(np.asarray(image))
    except UnreadableError as error:
        return ParsedScene(None, str(error))


def _parse_pixels(pixels_HW3: NDArray[np.uint8]) -> ParsedScene:
    names = (*BACKGROUNDS, *COLORS)
    counts = np.bincount(nearest_color(pixels_HW3, names).ravel(), minlength=len(names))
    background = BACKGROUNDS[int(counts[: len(BACKGROUNDS)].argmax())]
    indices_HW = nearest_color(pixels_HW3, (background, *COLORS))
    labels_HW, num_labels = ndimage.label(indices_HW > 0)  # touching by edge, not by corner
    side = min(labels_HW.shape)
    areas = np.bincount(labels_HW.ravel(), minlength=num_labels + 1)
    large_enough = [label for label in range(1, num_labels + 1) if areas[label] >= SPECK_SHARE * side * side]
    if not large_enough:
        raise UnreadableError("there is no object")
    if len(large_enough) > MAX_OBJECTS_READ:
        raise UnreadableError(f"there are {len(large_enough)} separate things")
    background_3 = check_background(pixels_HW3, indices_HW, np.isin(labels_HW, large_enough), background)
    objects = (read_object(pixels_HW3, indices_HW, labels_HW == label, background_3) for label in large_enough)
    return ParsedScene(Scene(background, tuple(objects)))


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


def check_background(pixels_HW3: NDArray, indices_HW: NDArray, objects_HW: NDArray[np.bool_], name: str) -> NDArray:
    """The mean background color, once it is known to be even and near the palette's."""
    outside_HW = ~ndimage.binary_dilation(objects_HW, iterations=3)
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
) -> SceneObject:
    """One component as an object."""
    height, width = mask_HW.shape
    side = min(height, width)
    pad = 3 + side // 64
    ((rows, columns),) = ndimage.find_objects(mask_HW.astype(np.uint8))
    top, bottom = max(0, rows.start - pad), min(height, rows.stop + pad)
    left, right = max(0, columns.start - pad), min(width, columns.stop + pad)
    if max(bottom - top, right - left) > side * 0.6:
        raise UnreadableError("something is larger than any object")
    box = (slice(top, bottom), slice(left, right))
    core_HW = find_core(mask_HW[box])
    color, mean_3 = read_color(pixels_HW3[box][core_HW], indices_HW[box][core_HW])
    way_3 = mean_3 - background_3  # how far each pixel is on the way from the background (0) to the object (1):
    alpha_HW = np.clip(((pixels_HW3[box] - background_3) @ way_3) / (way_3 @ way_3), 0.0, 1.0)
    near_HW = ndimage.binary_dilation(mask_HW[box], iterations=2)
    shape, size, (x, y) = match_shape(np.where(near_HW, alpha_HW, 0.0), side)
    return SceneObject(shape, color, size, round(float(left + x) / width, 4), round(float(top + y) / height, 4))


def find_core(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The inside of a mask: two pixels from its border, or one, where that leaves anything."""
    for distance in (2, 1):
        core_HW = ndimage.binary_erosion(mask_HW, iterations=distance, border_value=1)
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


@lru_cache(maxsize=64)
def shape_moments(shape: str) -> tuple[float, float]:
    """Area and vertical center of mass of a shape of radius 1 (the horizontal one is 0)."""
    coverage_HW = compute_coverage(shape, 100.0, 0.0, 0.0)
    reach = coverage_HW.shape[0] // 2
    rows = np.arange(-reach, reach + 1) + 0.5
    area = coverage_HW.sum()
    return float(area / 100.0**2), float((coverage_HW.sum(1) * rows).sum() / area / 100.0)


def match_shape(alpha_HW: NDArray, side: int) -> tuple[str, str, tuple[float, float]]:
    """The shape, size and center (pixels in the box) that explain a soft mask best."""
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
    return results[0][1:]


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
class DenseScore:
    """How well a depth or segmentation image fits its scene."""

    pixel_accuracy: float
    mean_iou: float  # over the classes that the scene or the image has


def score_dense(kind: str, image: Image.Image, scene: Scene) -> DenseScore:
    """Score an image of kind "depth" or "segmentation": pixel accuracy, and intersection over union by class."""
    expected_HW, found_HW = expected_classes(kind, scene, image.size), found_classes(kind, image)
    iou = []
    for label in range(len(PALETTES[kind])):
        expected, found = expected_HW == label, found_HW == label
        if union := int((expected | found).sum()):
            iou.append(float((expected & found).sum() / union))
    return DenseScore(float((expected_HW == found_HW).mean()), float(np.mean(iou)))


def expected_classes(kind: str, scene: Scene, size: tuple[int, int]) -> NDArray[np.intp]:
    """Class of every pixel by the scene alone: that of the shape which covers at least half of it."""
    names = list(PALETTES[kind])
    width, height = size
    classes_HW = np.zeros((height, width), np.intp)
    for item in scene.objects:
        covered_HW = render_array(Scene(scene.background, (item,)), size, [(255,)], (0,))[..., 0] >= 128
        classes_HW[covered_HW] = names.index(getattr(item, SHOWN_ATTRIBUTE[kind]))
    return classes_HW


def found_classes(kind: str, image: Image.Image) -> NDArray[np.intp]:
    """Class of every pixel: the nearest color among the classes that count there.

    A blend of two classes at a border can be the color of a third, so a class counts only where it is more than a thin
    line, and a few pixels around.
    """
    pixels_HW13 = np.asarray(read_image(image), np.float32)[:, :, None]
    distances_HWP = np.square(pixels_HW13 - np.array(list(PALETTES[kind].values()), np.float32)).sum(-1)
    nearest_HW = distances_HWP.argmin(-1)
    is_near_HWP = np.zeros(distances_HWP.shape, bool)
    thin = max(1, min(image.size) // 64)
    for label in np.unique(nearest_HW):
        solid_HW = ndimage.binary_erosion(nearest_HW == label, iterations=thin, border_value=1)
        is_near_HWP[..., label] = ndimage.binary_dilation(solid_HW, iterations=thin + REACH)
    distances_HWP[~is_near_HWP] = np.inf
    return np.where(is_near_HWP.any(-1), distances_HWP.argmin(-1), nearest_HW)


def checker_error(count: int, *, seed: int = 0, size: RenderSize = 128) -> float:
    """The share of this many rendered scenes that are not read correctly."""
    rng = Random(seed)
    scenes = (random_scene(rng) for _ in range(count))
    return sum(not same_scene(scene, parse(render(scene, size)).scene) for scene in scenes) / count


def same_scene(expected: Scene, found: Scene | None) -> bool:
    """Whether what was found, if anything, has the same background and the same objects in the same places."""
    if found is None or found.background != expected.background:
        return False
    return pair_up(expected.objects, found.objects, partial(looks_like, tolerance=POSITION_TOLERANCE))


def border_errors(image: Image.Image, scene: Scene) -> list[float]:
    """How far the border of each object lies from that of its ideal shape on average, in 256ths of the shorter side.

    The border is where the color is halfway between object and background, between pixels. The ideal shape has the
    size of the world and the place where it fits best: crispness counts here, positions do not.
    """
    pixels_HW3 = np.asarray(image.convert("RGB"), dtype=np.float64)
    return [_border_error(pixels_HW3, item) * 256 / min(image.size) for item in scene.objects]


def _border_error(pixels_HW3: NDArray, item: SceneObject) -> float:
    height, width = pixels_HW3.shape[:2]
    radius, reach = RADIUS[item.size] * min(height, width), MIN_GAP / 2 * min(height, width)
    left, top = (max(int(at - radius - 3 * reach), 0) for at in (item.x * width, item.y * height))
    center_x, center_y, box = item.x * width - left, item.y * height - top, int(2 * (radius + 3 * reach)) + 1
    pixels_HW3 = pixels_HW3[top : top + box, left : left + box]
    y_HW, x_HW = np.mgrid[: pixels_HW3.shape[0], : pixels_HW3.shape[1]] + 0.5
    distance_HW = np.hypot(x_HW - center_x, y_HW - center_y)
    color_3 = np.median(pixels_HW3[distance_HW < 0.3 * radius], axis=0)
    around_3 = np.median(pixels_HW3[(distance_HW > radius) & (distance_HW < radius + 2 * reach)], axis=0)
    share_HW = (pixels_HW3 - around_3) @ (color_3 - around_3) / max(np.square(color_3 - around_3).sum(), 1.0) - 0.5
    points = []
    for axis in (0, 1):
        first_HW, second_HW = (share_HW[:-1], share_HW[1:]) if axis == 0 else (share_HW[:, :-1], share_HW[:, 1:])
        rows, columns = np.nonzero((first_HW > 0) != (second_HW > 0))
        first, second = first_HW[rows, columns], second_HW[rows, columns]
        points.append(np.stack([columns, rows], axis=1) + 0.5)
        points[-1][:, 1 - axis] += first / (first - second)
    points_N2 = np.concatenate(points)
    points_N2 = points_N2[np.hypot(*(points_N2 - (center_x, center_y)).T) < radius + reach]
    if not len(points_N2):
        return radius

    def error(shift_2: NDArray) -> float:
        x_N, y_N = (points_N2 - (center_x, center_y) - shift_2).T / radius
        return float(np.abs(signed_distance(item.shape, x_N, y_N)).mean() * radius)

    best_2, step = np.zeros(2), 2.0
    while step > 0.05:
        moves = [best_2 + step * np.array(move) for move in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
        nearest = min(moves, key=error)
        step = step / 2 if nearest is moves[0] else step
        best_2 = nearest
    return error(best_2)
