"""The checker reads images right, says "unreadable" where it should, and measures its own error."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mllm.world.checker import check, checker_error, parse, same_scene, score_dense
from mllm.world.render import RGB, paint, render
from mllm.world.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject, random_scene
from mllm.world.spec import Background, Filter, Related, Spec, enumerate_objects

RED_CIRCLE = SceneObject("circle", "red", "large", 0.3, 0.5)
BLUE_SQUARE = SceneObject("square", "blue", "small", 0.75, 0.5)
SCENE = Scene("white", (RED_CIRCLE, BLUE_SQUARE))
SPEC = Spec(
    (
        *enumerate_objects([Filter("circle", "red", "large"), Filter("square", "blue", "small")]),
        Related(0, "left of", 1),
        Background("white"),
    )
)


def passes(scene: Scene) -> bool:
    return all(verdict.holds for verdict in check(SPEC, parse(render(scene))))


def test_rendered_scenes_are_read_back() -> None:
    for size in (64, 128, 320, (192, 128), (128, 250)):
        for seed in range(25):
            scene = random_scene(Random(seed))
            parsed = parse(render(scene, size))
            assert parsed.scene is not None, parsed.reason
            assert same_scene(scene, parsed.scene), (scene, parsed)


def test_every_look_is_read() -> None:
    for shape, size, (index, color) in product(SHAPES, SIZES, enumerate(COLORS)):
        for background in BACKGROUNDS[index % 2 :: 2]:
            scene = Scene(background, (SceneObject(shape, color, size, 0.4321, 0.5432),))
            assert same_scene(scene, parse(render(scene)).scene, tolerance=0.005)


def test_a_right_image_passes_and_each_fault_fails() -> None:
    assert passes(SCENE)
    faults = {
        "color": Scene("white", (replace(RED_CIRCLE, color="orange"), BLUE_SQUARE)),
        "shape": Scene("white", (replace(RED_CIRCLE, shape="heart"), BLUE_SQUARE)),
        "size": Scene("white", (replace(RED_CIRCLE, size="small"), BLUE_SQUARE)),
        "missing": Scene("white", (RED_CIRCLE,)),
        "extra": Scene("white", (*SCENE.objects, SceneObject("star", "green", "small", 0.8, 0.15))),
        "background": Scene("cream", SCENE.objects),
        "relation": Scene("white", (replace(RED_CIRCLE, x=0.7), replace(BLUE_SQUARE, x=0.2))),
    }
    for name, scene in faults.items():
        assert not passes(scene), name


def draw_freely(background: str = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (128, 128), RGB[background])
    return image, ImageDraw.Draw(image)


def test_what_is_not_of_this_world_is_unreadable() -> None:
    images = {}
    images["nothing"], _ = draw_freely()
    for name, radius in (("middle size", 0.145), ("too large", 0.33), ("dot", 0.04)):
        canvas_HW3 = np.full((128, 128, 3), 255, np.uint8)
        paint(canvas_HW3, "circle", (64.0, 64.0), radius * 128, RGB["red"])
        images[name] = Image.fromarray(canvas_HW3)
    images["touching"] = render(Scene("white", (RED_CIRCLE, SceneObject("circle", "red", "large", 0.62, 0.5))))
    images["touching colors"] = render(Scene("white", (RED_CIRCLE, SceneObject("circle", "blue", "large", 0.64, 0.5))))
    images["diamond"], brush = draw_freely()
    brush.polygon([(64, 38), (90, 64), (64, 90), (38, 64)], fill=RGB["green"])
    images["half circle"], brush = draw_freely()
    brush.pieslice((40, 40, 88, 88), 0, 180, fill=RGB["green"])
    images["ring"], brush = draw_freely()
    brush.ellipse((40, 40, 88, 88), outline=RGB["green"], width=6)
    images["pink"], brush = draw_freely()
    brush.ellipse((41, 41, 87, 87), fill=(255, 150, 200))
    images["two colors"], brush = draw_freely()
    brush.pieslice((41, 41, 87, 87), 0, 180, fill=RGB["green"])
    brush.pieslice((41, 41, 87, 87), 180, 360, fill=RGB["blue"])
    images["two backgrounds"] = render(Scene("white", (RED_CIRCLE,)))
    images["two backgrounds"].paste(RGB["black"], (90, 0, 128, 128))
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    images["noise"] = Image.fromarray(noise)
    for name, image in images.items():
        parsed = parse(image)
        assert parsed.scene is None and parsed.reason, name
        assert not any(verdict.holds for verdict in check(SPEC, parsed)), name


def test_specks_are_ignored_and_other_modes_accepted() -> None:
    image = render(SCENE)
    for x, y in ((5, 5), (120, 60), (64, 120)):
        image.paste(RGB["purple"], (x, y, x + 2, y + 2))
    assert same_scene(SCENE, parse(image).scene)
    assert same_scene(SCENE, parse(render(SCENE).convert("RGBA")).scene)
    with pytest.raises(ValueError):
        parse(render(SCENE, 32))


def disturb(
    image: Image.Image, rng: np.random.Generator, *, noise: float = 0.0, blur: float = 0.0, shift: float = 0.0
) -> Image.Image:
    """Blur (radius in pixels), shift every channel of the image (+- shift) and add noise (standard deviation)."""
    pixels_HW3 = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float64)
    pixels_HW3 = pixels_HW3 + rng.uniform(-shift, shift, 3) + rng.normal(0, noise, pixels_HW3.shape)
    return Image.fromarray(np.clip(np.rint(pixels_HW3), 0, 255).astype(np.uint8))


def disturbed_error(count: int, seed: int, **strength: float) -> float:
    rng = np.random.default_rng(seed)
    return checker_error(count, seed=seed, disturb=lambda image: disturb(image, rng, **strength))


def test_mild_disturbance_does_not_confuse() -> None:
    for strength in ({}, {"noise": 8.0, "blur": 0.8}, {"blur": 1.2, "shift": 10.0, "noise": 4.0}):
        assert disturbed_error(60, 4, **strength) == 0, strength
    assert 0 < disturbed_error(60, 4, noise=60.0) <= 1


@pytest.mark.slow
def test_own_error_on_many_scenes() -> None:
    assert checker_error(10_000, seed=0) < 0.001
    assert disturbed_error(10_000, 1, noise=8, blur=1.0, shift=8) < 0.001


def test_parsing_is_fast() -> None:
    images = [render(random_scene(Random(seed))) for seed in range(100)]
    start = time.process_time()
    for image in images:
        parse(image)
    assert (time.process_time() - start) / len(images) < 0.010


def test_dense_scores() -> None:
    for seed in range(10):
        scene, other = (random_scene(Random(n), num_objects=3) for n in (seed, seed + 1000))
        for kind in ("depth", "segmentation"):
            for size in (128, (96, 160)):
                assert score_dense(kind, render(scene, size, kind), scene).mean_iou > 0.98
            blurred = disturb(render(scene, kind=kind), np.random.default_rng(seed), noise=8, blur=0.8, shift=8)
            assert score_dense(kind, blurred, scene).mean_iou > 0.93
            assert score_dense(kind, render(other, kind=kind), scene).mean_iou < 0.75
            assert score_dense(kind, Image.new("RGB", (128, 128)), scene).mean_iou < 0.5
