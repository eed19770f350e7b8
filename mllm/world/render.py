"""Render a scene as an image, a depth image or a segmentation image, antialiased at any resolution.

Every shape is a signed distance in units of its radius; coverage is the distance in pixels, clipped. Only the box
around each object is touched, and its coverage is cached for positions on a grid of 1/8 pixel.

Letters: H W pixels of a box.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mllm.world.scene import RADIUS, SHAPES, Scene

RenderSize = int | tuple[int, int]
"""Side of a square, or (width, height), in pixels."""
MIN_SIDE = 16
SUBPIXELS = 8
MAX_CACHED_RADIUS = 64.0  # pixels; larger masks are computed again, so that the cache stays small

RGB = {
    "white": (255, 255, 255),
    "gray": (140, 140, 140),
    "black": (0, 0, 0),
    "cream": (245, 225, 175),
    "red": (215, 30, 40),
    "orange": (250, 130, 20),
    "yellow": (255, 220, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "purple": (145, 40, 165),
}
# Large is near, small is farther, the background farthest.
DEPTH_RGB = {"background": (25, 25, 25), "small": (130, 130, 130), "large": (235, 235, 235)}
SEGMENTATION_RGB = {
    "background": (0, 0, 0),
    "circle": (230, 25, 75),
    "square": (60, 180, 75),
    "triangle": (0, 130, 200),
    "star": (255, 225, 25),
    "cross": (240, 50, 230),
    "heart": (255, 255, 255),
}
PALETTES = {"image": RGB, "depth": DEPTH_RGB, "segmentation": SEGMENTATION_RGB}
IMAGE_KINDS = tuple(PALETTES)
SHOWN_ATTRIBUTE = {"image": "color", "depth": "size", "segmentation": "shape"}
"""The attribute of an object that its color shows."""
CIRCLE_RADIUS = 0.9  # a little less than the unit circle, so that its area is nearer to that of the other shapes
HEART_SCALE, HEART_CENTER = 0.631, 0.629  # the unit heart below fits into a circle of this radius around (0, center)


def image_size(size: RenderSize) -> tuple[int, int]:
    """(width, height) of an image."""
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"image size must be at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height}")
    return width, height


def render(scene: Scene, size: RenderSize = 128, kind: str = "image") -> Image.Image:
    """The image of a scene, RGB; of kind "depth" or "segmentation" with one fixed color per size or shape."""
    if kind not in PALETTES:
        raise ValueError(f"image kind must be one of {', '.join(IMAGE_KINDS)}, got {kind!r}")
    palette = PALETTES[kind]
    colors = [palette[getattr(item, SHOWN_ATTRIBUTE[kind])] for item in scene.objects]
    background = palette[scene.background if kind == "image" else "background"]
    return Image.fromarray(render_array(scene, size, colors, background))


def render_array(
    scene: Scene, size: RenderSize, colors: Sequence[tuple[int, ...]], background: tuple[int, ...]
) -> NDArray:
    """Paint all objects, each in its given color; positions stretch with the image, shapes stay undistorted."""
    width, height = image_size(size)
    canvas_HW3 = np.empty((height, width, len(background)), np.uint8)
    canvas_HW3[:] = background
    for item, color in zip(scene.objects, colors, strict=True):
        paint(canvas_HW3, item.shape, (item.x * width, item.y * height), RADIUS[item.size] * min(width, height), color)
    return canvas_HW3


def paint(canvas_HW3: NDArray, shape: str, center: tuple[float, float], radius: float, color: tuple[int, ...]) -> None:
    """Blend one shape into the canvas (changed in place). Center and radius are in pixels."""
    height, width = canvas_HW3.shape[:2]
    (pixel_x, step_x), (pixel_y, step_y) = (divmod(round(value * SUBPIXELS), SUBPIXELS) for value in center)
    get_coverage = cached_coverage if radius <= MAX_CACHED_RADIUS else cached_coverage.__wrapped__
    alpha_HW1 = get_coverage(shape, radius, step_x, step_y)
    reach = alpha_HW1.shape[0] // 2
    left, top = pixel_x - reach, pixel_y - reach
    alpha_HW1 = alpha_HW1[max(0, -top) : height - top, max(0, -left) : width - left]
    rows, columns = alpha_HW1.shape[:2]
    top, left = max(0, top), max(0, left)
    box_HW3 = canvas_HW3[top : top + rows, left : left + columns]
    box_HW3[...] = (box_HW3 * (255 - alpha_HW1) + np.array(color, np.int32) * alpha_HW1 + 127) // 255


@lru_cache(maxsize=4096)
def cached_coverage(shape: str, radius: float, step_x: int, step_y: int) -> NDArray:
    """Coverage as integers 0..255 with a last axis of one, ready to blend."""
    coverage_HW = compute_coverage(shape, radius, step_x / SUBPIXELS, step_y / SUBPIXELS)
    return np.rint(coverage_HW * 255).astype(np.int32)[..., None]


def compute_coverage(shape: str, radius: float, shift_x: float, shift_y: float) -> NDArray:
    """Share (0..1) that the shape covers of each pixel in a box; its center lies off the middle pixel's corner."""
    reach = int(np.ceil(radius)) + 1
    pixels = np.arange(-reach, reach + 1) + 0.5
    x_HW, y_HW = (pixels[None, :] - shift_x) / radius, (pixels[:, None] - shift_y) / radius
    return np.clip(0.5 - signed_distance(shape, x_HW, y_HW) * radius, 0.0, 1.0)


def signed_distance(shape: str, x_HW: NDArray, y_HW: NDArray) -> NDArray:
    """Distance to the border of a shape of radius 1 around the origin, negative inside."""
    if shape == "circle":
        return np.hypot(x_HW, y_HW) - CIRCLE_RADIUS
    return heart_distance(x_HW, y_HW) if shape == "heart" else polygon_distance(x_HW, y_HW, polygon(shape))


def polygon(shape: str, *, waist: float = 0.45, arm: float = 0.31) -> list[tuple[float, float]]:
    """Corners in units of the radius, y down; `waist`: a star's inner radius, `arm`: half of a cross's arms' width."""
    match shape:
        case "square":
            return [(s * 0.7071, t * 0.7071) for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        case "triangle":
            return [(np.cos(angle), np.sin(angle)) for angle in np.deg2rad([-90.0, 30.0, 150.0])]
        case "star":
            angles = [-np.pi / 2 + np.pi * index / 5 for index in range(10)]
            return [(r * np.cos(angle), r * np.sin(angle)) for r, angle in zip((1.0, waist) * 5, angles, strict=True)]
        case "cross":
            points = [(arm, -0.95), (arm, -arm), (0.95, -arm)]
            for _ in range(3):
                points += [(-y, x) for x, y in points[-3:]]
            return points
        case _:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")


def polygon_distance(x_HW: NDArray, y_HW: NDArray, points: list[tuple[float, float]]) -> NDArray:
    """Signed distance to a polygon, negative inside (even-odd crossing rule for the sign)."""
    squared_HW = np.full(np.broadcast(x_HW, y_HW).shape, np.inf)
    inside_HW = np.zeros(squared_HW.shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx_HW, wy_HW = x_HW - ax, y_HW - ay
        along_HW = np.clip((wx_HW * ex + wy_HW * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        squared_HW = np.minimum(squared_HW, (wx_HW - ex * along_HW) ** 2 + (wy_HW - ey * along_HW) ** 2)
        if ay != by:
            crosses_HW = ((ay > y_HW) != (by > y_HW)) & (x_HW < ax + ex * (y_HW - ay) / ey)
            inside_HW ^= crosses_HW
    return np.sqrt(squared_HW) * np.where(inside_HW, -1.0, 1.0)


def heart_distance(x_HW: NDArray, y_HW: NDArray) -> NDArray:
    """Signed distance to a heart, after Inigo Quilez: a corner below, two arcs above."""
    x_HW, y_HW = np.broadcast_arrays(np.abs(x_HW) * HEART_SCALE, HEART_CENTER - y_HW * HEART_SCALE)
    arc_HW = np.hypot(x_HW - 0.25, y_HW - 0.75) - np.sqrt(2.0) / 4
    half_HW = 0.5 * np.maximum(x_HW + y_HW, 0.0)
    squared_HW = np.minimum(x_HW**2 + (y_HW - 1.0) ** 2, (x_HW - half_HW) ** 2 + (y_HW - half_HW) ** 2)
    side_HW = np.sqrt(squared_HW) * np.sign(x_HW - y_HW)
    return np.where(x_HW + y_HW > 1.0, arc_HW, side_HW) / HEART_SCALE
