"""The checker reads pictures right, says "unreadable" where it should, and measures its own error."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mllm.world.checker import (
    check,
    dilate,
    disturb,
    erode,
    label_components,
    measure_checker,
    parse,
    same_scene,
    score_dense,
)
from mllm.world.render import paint, render, render_depth, render_segmentation
from mllm.world.scene import BACKGROUNDS, COLORS, RADIUS, RGB, SHAPES, SIZES, Scene, SceneObject, random_scene
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
    return check(SPEC, parse(render(scene))).passed


@pytest.mark.parametrize("size", [64, 128, 320, (192, 128), (128, 250)])
def test_round_trip(size: int | tuple[int, int]) -> None:
    for seed in range(25):
        scene = random_scene(Random(seed))
        parsed = parse(render(scene, size))
        assert parsed.scene is not None, parsed.reason
        assert same_scene(scene, parsed.scene), (scene, parsed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_look_is_read(shape: str, size: str) -> None:
    for index, color in enumerate(COLORS):
        for background in BACKGROUNDS[index % 2 :: 2]:
            scene = Scene(background, (SceneObject(shape, color, size, 0.4321, 0.5432),))
            assert same_scene(scene, parse(render(scene)).scene, tolerance=0.005)


def test_a_right_picture_passes_and_each_fault_fails() -> None:
    assert passes(SCENE)
    faults = {
        "color": Scene("white", (SceneObject("circle", "orange", "large", 0.3, 0.5), BLUE_SQUARE)),
        "shape": Scene("white", (SceneObject("heart", "red", "large", 0.3, 0.5), BLUE_SQUARE)),
        "size": Scene("white", (SceneObject("circle", "red", "small", 0.3, 0.5), BLUE_SQUARE)),
        "missing": Scene("white", (RED_CIRCLE,)),
        "extra": Scene("white", (*SCENE.objects, SceneObject("star", "green", "small", 0.8, 0.15))),
        "background": Scene("cream", SCENE.objects),
        "relation": Scene(
            "white",
            (
                SceneObject("circle", "red", "large", 0.7, 0.5),
                BLUE_SQUARE.__class__("square", "blue", "small", 0.2, 0.5),
            ),
        ),
    }
    for name, scene in faults.items():
        assert not passes(scene), name


def draw_freely(background: str = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (128, 128), RGB[background])
    return image, ImageDraw.Draw(image)


def test_what_is_not_of_this_world_is_unreadable() -> None:
    pictures = {}
    pictures["nothing"], _ = draw_freely()
    for name, radius in (("middle size", 0.145), ("too large", 0.33), ("dot", 0.04)):
        canvas_HW3 = np.full((128, 128, 3), 255, np.uint8)
        paint(canvas_HW3, "circle", (64.0, 64.0), radius * 128, RGB["red"])
        pictures[name] = Image.fromarray(canvas_HW3)
    pictures["touching"] = render(Scene("white", (RED_CIRCLE, SceneObject("circle", "red", "large", 0.62, 0.5))))
    pictures["touching colors"] = render(
        Scene("white", (RED_CIRCLE, SceneObject("circle", "blue", "large", 0.64, 0.5)))
    )
    pictures["diamond"], brush = draw_freely()
    brush.polygon([(64, 38), (90, 64), (64, 90), (38, 64)], fill=RGB["green"])
    pictures["half circle"], brush = draw_freely()
    brush.pieslice((40, 40, 88, 88), 0, 180, fill=RGB["green"])
    pictures["ring"], brush = draw_freely()
    brush.ellipse((40, 40, 88, 88), outline=RGB["green"], width=6)
    pictures["pink"], brush = draw_freely()
    brush.ellipse((41, 41, 87, 87), fill=(255, 150, 200))
    pictures["two colors"], brush = draw_freely()
    brush.pieslice((41, 41, 87, 87), 0, 180, fill=RGB["green"])
    brush.pieslice((41, 41, 87, 87), 180, 360, fill=RGB["blue"])
    pictures["two backgrounds"] = render(Scene("white", (RED_CIRCLE,)))
    pictures["two backgrounds"].paste(RGB["black"], (90, 0, 128, 128))
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    pictures["noise"] = Image.fromarray(noise)
    for name, image in pictures.items():
        parsed = parse(image)
        assert parsed.scene is None and parsed.reason, name
        assert not any(verdict.holds for verdict in check(SPEC, parsed).verdicts), name


def test_specks_are_ignored_and_other_modes_accepted() -> None:
    image = render(SCENE)
    for x, y in ((5, 5), (120, 60), (64, 120)):
        image.paste(RGB["purple"], (x, y, x + 2, y + 2))
    assert same_scene(SCENE, parse(image).scene)
    assert same_scene(SCENE, parse(render(SCENE).convert("RGBA")).scene)
    with pytest.raises(ValueError, match="too small to read"):
        parse(render(SCENE, 32))


def test_mild_disturbance_does_not_confuse() -> None:
    for options in ({}, {"noise": 8.0, "blur": 0.8}, {"blur": 1.2, "shift": 10.0, "noise": 4.0}):
        error = measure_checker(60, seed=4, **options)
        assert error.rate == 0, (options, error)


@pytest.mark.slow
def test_own_error_on_many_scenes() -> None:
    assert measure_checker(10_000, seed=0).rate < 0.001
    assert measure_checker(10_000, seed=1, noise=8, blur=1.0, shift=8).rate < 0.001


def test_parsing_is_fast() -> None:
    pictures = [render(random_scene(Random(seed))) for seed in range(100)]
    start = time.process_time()
    for picture in pictures:
        parse(picture)
    assert (time.process_time() - start) / len(pictures) < 0.010


def slow_components(mask_HW: np.ndarray) -> list[int]:
    """Reference: flood fill, pixel by pixel; sorted areas."""
    todo = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask_HW), strict=True)}
    areas = []
    while todo:
        stack, area = [todo.pop()], 0
        while stack:
            row, column = stack.pop()
            area += 1
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in todo:
                    todo.remove(near)
                    stack.append(near)
        areas.append(area)
    return sorted(areas)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.7, 1.0])
def test_components_agree_with_flood_fill(share: float) -> None:
    rng = np.random.default_rng(1)
    for shape in ((1, 7), (13, 1), (17, 23), (40, 31)):
        mask_HW = rng.random(shape) < share
        labels_HW, areas = label_components(mask_HW)
        assert sorted(areas[1:]) == slow_components(mask_HW)
        assert ((labels_HW > 0) == mask_HW).all()
        assert [int((labels_HW == label).sum()) for label in range(1, len(areas))] == areas[1:]


def test_erosion_and_dilation_of_a_plus() -> None:
    dot_HW = np.zeros((5, 7), bool)
    dot_HW[2, 3] = True
    plus_HW = dilate(dot_HW)
    assert plus_HW.sum() == 5 and (erode(plus_HW) == dot_HW).all()


@pytest.mark.parametrize("kind, draw", [("depth", render_depth), ("segmentation", render_segmentation)])
def test_dense_scores(kind: str, draw: object) -> None:
    for seed in range(10):
        scene = random_scene(Random(seed), num_objects=3)
        for size in (128, (96, 160)):
            assert score_dense(kind, draw(scene, size), scene).mean_iou > 0.98
        blurred = disturb(draw(scene), np.random.default_rng(seed), noise=8, blur=0.8, shift=8)
        assert score_dense(kind, blurred, scene).mean_iou > 0.93
        wrong = Scene(scene.background, tuple(random_scene(Random(seed + 1000), num_objects=3).objects))
        assert score_dense(kind, draw(wrong), scene).mean_iou < 0.75
        assert score_dense(kind, Image.new("RGB", (128, 128)), scene).mean_iou < 0.5


def test_radii_are_far_apart() -> None:
    assert RADIUS["large"] >= 1.8 * RADIUS["small"]
