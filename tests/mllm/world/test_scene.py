"""Scenes keep the world's rules and belong to one split; held-out pairs stay out of training. Images are exact; the
checker reads them right, says "unreadable" where it should, and measures its own error.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mllm.world.checker import border_errors, checker_error, parse, same_scene, score_dense
from mllm.world.render import RGB, compute_coverage, paint, render
from mllm.world.scene import (
    BACKGROUNDS,
    COLORS,
    RADIUS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    is_valid,
    place_in_corners,
    random_scene,
    split_of,
)


def test_random_scenes_keep_the_rules_and_the_order_of_objects_does_not_matter() -> None:
    for number, seed in product((1, 2, 3, 4), range(50)):
        scene = random_scene(Random(seed), num_objects=number)
        assert len(scene.objects) == number and is_valid(scene), scene
        turned = Scene(scene.background, scene.objects[::-1])
        assert turned == scene and hash(turned) == hash(scene)
    for seed in range(50):
        assert is_valid(Scene("white", place_in_corners([("star", "red", "large")] * 4, Random(seed))))
    circle = SceneObject("circle", "red", "large", 0.5, 0.5)
    near = SceneObject("square", "blue", "small", 0.5 + RADIUS["large"] + RADIUS["small"] + 0.01, 0.5)
    for objects in ((circle, near), (circle, replace(near, x=0.05)), ()):
        assert is_valid(Scene("white", (circle,))) and not is_valid(Scene("white", objects))


def test_splits_have_their_shares_and_a_scene_moved_by_a_hair_stays() -> None:
    scenes = [random_scene(Random(seed)) for seed in range(2000)]
    counts = Counter(map(split_of, scenes))
    assert 0.08 < counts["test"] / 2000 < 0.12 and 0.08 < counts["validation"] / 2000 < 0.12
    nudged = [replace(s, objects=tuple(replace(item, x=item.x + 0.0001) for item in s.objects)) for s in scenes[:200]]
    moved = sum(split_of(before) != split_of(after) for before, after in zip(scenes, nudged, strict=False))
    assert moved <= 2  # only where an object lies on the border of a grid cell


# ---- images ----

RED_CIRCLE = SceneObject("circle", "red", "large", 0.3, 0.5)
SCENE = Scene("white", (RED_CIRCLE, SceneObject("square", "blue", "small", 0.75, 0.5)))


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


def test_rendered_scenes_are_read_back() -> None:
    for size, seed in product((64, 128, 320, (192, 128), (128, 250)), range(12)):
        scene = random_scene(Random(seed))
        assert same_scene(scene, parse(render(scene, size)).scene), (scene, size)
    for shape, size, (index, color) in product(SHAPES, SIZES, enumerate(COLORS)):
        for background in BACKGROUNDS[index % 2 :: 2]:
            item = SceneObject(shape, color, size, 0.4321, 0.5432)
            read = parse(render(Scene(background, (item,)))).scene
            assert read.background == background
            assert (replace(read.objects[0], x=item.x, y=item.y),) == (item,)
            assert max(abs(read.objects[0].x - item.x), abs(read.objects[0].y - item.y)) < 0.005


def drawn(draw: Callable[[ImageDraw.ImageDraw], object]) -> Image.Image:
    image = Image.new("RGB", (128, 128), RGB["white"])
    draw(ImageDraw.Draw(image))
    return image


def painted(radius: float) -> Image.Image:
    canvas_HW3 = np.full((128, 128, 3), 255, np.uint8)
    paint(canvas_HW3, "circle", (64.0, 64.0), radius * 128, RGB["red"])
    return Image.fromarray(canvas_HW3)


def test_what_is_not_of_this_world_is_unreadable() -> None:
    box, green = (40, 40, 88, 88), RGB["green"]
    images = {
        "nothing": drawn(lambda brush: None),
        "middle size": painted(0.145),
        "too large": painted(0.33),
        "dot": painted(0.04),
        "touching": render(Scene("white", (RED_CIRCLE, SceneObject("circle", "red", "large", 0.62, 0.5)))),
        "touching colors": render(Scene("white", (RED_CIRCLE, SceneObject("circle", "blue", "large", 0.64, 0.5)))),
        "diamond": drawn(lambda brush: brush.polygon([(64, 38), (90, 64), (64, 90), (38, 64)], fill=green)),
        "half circle": drawn(lambda brush: brush.pieslice(box, 0, 180, fill=green)),
        "ring": drawn(lambda brush: brush.ellipse(box, outline=green, width=6)),
        "pink": drawn(lambda brush: brush.ellipse(box, fill=(255, 150, 200))),
        "two colors": render(Scene("white", (replace(RED_CIRCLE, x=0.5),))),
        "two backgrounds": render(Scene("white", (RED_CIRCLE,))),
        "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)),
    }
    images["two colors"].paste(RGB["blue"], (48, 48, 80, 62))
    images["two backgrounds"].paste(RGB["black"], (90, 0, 128, 128))
    for name, image in images.items():
        assert parse(image).scene is None and parse(image).reason, name
    image = render(SCENE)
    for x, y in ((5, 5), (120, 60), (64, 120)):  # specks are ignored, other modes accepted
        image.paste(RGB["purple"], (x, y, x + 2, y + 2))
    assert same_scene(SCENE, parse(image.convert("RGBA")).scene)


def disturb(image: Image.Image, seed: int, *, noise: float = 0.0, blur: float = 0.0, shift: float = 0.0) -> Image.Image:
    """Blur (radius in pixels), shift every channel of the image (+- shift) and add noise (standard deviation)."""
    rng = np.random.default_rng(seed)
    pixels_HW3 = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float64)
    pixels_HW3 = pixels_HW3 + rng.uniform(-shift, shift, 3) + rng.normal(0, noise, pixels_HW3.shape)
    return Image.fromarray(np.clip(np.rint(pixels_HW3), 0, 255).astype(np.uint8))


def disturbed_error(count: int, **strength: float) -> float:
    scenes = {seed: random_scene(Random(seed)) for seed in range(count)}
    read = {seed: parse(disturb(render(scene), seed, **strength)).scene for seed, scene in scenes.items()}
    return sum(not same_scene(scene, read[seed]) for seed, scene in scenes.items()) / count


def test_mild_disturbance_does_not_confuse() -> None:
    for strength in ({"noise": 8.0, "blur": 0.8}, {"blur": 1.2, "shift": 10.0, "noise": 4.0}):
        assert disturbed_error(40, **strength) == 0, strength
    assert checker_error(40, seed=4) == 0 < disturbed_error(40, noise=60.0) <= 1


@pytest.mark.slow
def test_own_error_on_many_scenes() -> None:
    assert max(checker_error(10_000, seed=0), disturbed_error(10_000, noise=8, blur=1.0, shift=8)) < 0.001


def test_dense_scores() -> None:
    for seed, kind in product(range(10), ("depth", "segmentation")):
        scene, other = (random_scene(Random(n), num_objects=3) for n in (seed, seed + 1000))
        blurred = disturb(render(scene, kind=kind), seed, noise=8, blur=0.8, shift=8)
        images = [render(scene, (96, 160), kind), render(scene, 128, kind), blurred]
        images += [render(other, kind=kind), Image.new("RGB", (128, 128))]
        exact, square, noisy, wrong, empty = (score_dense(kind, image, scene).mean_iou for image in images)
        assert min(exact, square) > 0.98 and noisy > 0.93 and wrong < 0.75 and empty < 0.5


def test_borders_are_measured_in_256ths(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [random_scene(Random(seed)) for seed in range(4)]
    assert all(max(border_errors(render(scene, 256), scene)) < 0.15 for scene in scenes)
    monkeypatch.setattr("mllm.world.render.RADIUS", {size: 1.1 * radius for size, radius in RADIUS.items()})
    for scene in scenes:
        radii, larger = [RADIUS[item.size] * 256 for item in scene.objects], border_errors(render(scene, 256), scene)
        assert all(0.03 * radius < error < 0.11 * radius for radius, error in zip(radii, larger, strict=True))
