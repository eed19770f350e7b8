"""Requests to draw: true of their own scene, false of a changed one, and never naming a held-out pair in training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from mllm.world.dialogue import make_episode
from mllm.world.language import DRAWING_WEIGHTS, make_draw_request
from mllm.world.scene import COLORS, HELD_OUT_PAIRS, Scene, SceneObject, random_scene, random_scene_for
from mllm.world.spec import SKILLS, Background, Count, Exists, Filter, Related, Spec, check_scene, enumerate_objects


def fulfils(spec: Spec, scene: Scene) -> bool:
    return all(verdict.holds for verdict in check_scene(spec, scene))


@pytest.mark.parametrize("kind", DRAWING_WEIGHTS)
def test_requests_hold_on_their_own_scene(kind: str) -> None:
    for seed in range(400):
        scene = random_scene(Random(seed))
        request = make_draw_request(scene, Random(seed + 1), kind=kind)
        failed = [verdict for verdict in check_scene(request.spec, scene) if not verdict.holds]
        assert not failed, (request.text, scene, failed)
        assert set(request.skills) <= set(SKILLS)
        assert "{" not in request.text and request.text.isascii()


def test_full_requests_fail_on_a_changed_scene() -> None:
    noticed = Counter()
    for seed in range(300):
        scene = random_scene(Random(seed))
        request = make_draw_request(scene, Random(seed), kind="full")
        first = scene.objects[0]
        other = next(color for color in COLORS if all(item.color != color for item in scene.objects))
        recolored = Scene(scene.background, (replace(first, color=other), *scene.objects[1:]))
        noticed["color"] += not fulfils(request.spec, recolored)
        noticed["missing"] += not fulfils(request.spec, Scene(scene.background, scene.objects[1:]))
        extra = SceneObject("circle", other, "small", 0.5, 0.5)
        noticed["extra"] += not fulfils(request.spec, Scene(scene.background, (*scene.objects, extra)))
    assert noticed["missing"] == noticed["extra"] == 300
    assert noticed["color"] > 270  # a few requests leave a color open


def test_every_skill_occurs() -> None:
    skills = Counter()
    for index in range(1500):
        skills.update(make_draw_request(make_episode(index).scene, Random(index)).skills)
    assert set(skills) == set(SKILLS)
    assert min(skills.values()) >= 30, skills


def test_most_requests_describe_the_scene_fully() -> None:
    kinds = Counter(make_draw_request(make_episode(index).scene, Random(index)).kind for index in range(1000))
    assert 0.6 < kinds["full"] / 1000 < 0.85


def test_held_out_requests_name_a_held_out_pair() -> None:
    for seed in range(60):
        scene = random_scene_for("test", Random(seed), pairs="held_out")
        assert make_draw_request(scene, Random(seed)).spec.pairs & HELD_OUT_PAIRS


def test_specs_come_back_from_plain_data() -> None:
    for seed in range(300):
        spec = make_draw_request(random_scene(Random(seed)), Random(seed)).spec
        assert Spec.from_dict(spec.to_dict()) == spec


def test_the_sentence_of_the_documentation_is_said() -> None:
    circle, square = SceneObject("circle", "red", "large", 0.3, 0.5), SceneObject("square", "blue", "small", 0.8, 0.5)
    scene = Scene("white", (circle, square))
    said = {make_draw_request(scene, Random(seed), kind="full").text for seed in range(3000)}
    assert "a large red circle to the left of a small blue square on a white background" in said


def test_relations_are_checked_under_the_best_assignment() -> None:
    """Two red circles, one of them left of a star: whichever circle it is."""
    circle = Filter("circle", "red")
    spec = Spec((*enumerate_objects([circle, circle, Filter("star")]), Related(1, "left of", 2), Background("white")))
    items = [SceneObject("circle", "red", "small", x, 0.5) for x in (0.2, 0.8)]
    star = SceneObject("star", "blue", "small", 0.5, 0.5)
    assert fulfils(spec, Scene("white", (*items, star)))
    assert not fulfils(spec, Scene("white", (*items, replace(star, x=0.12))))
    verdicts = check_scene(spec, Scene("gray", (*items, star)))
    assert [verdict.demand for verdict in verdicts if not verdict.holds] == [str(Background("white"))]


def test_missing_objects_fail_every_constraint_about_them() -> None:
    spec = Spec((*enumerate_objects([Filter("circle"), Filter("star")]), Related(0, "above", 1)))
    verdicts = check_scene(spec, Scene("white", (SceneObject("circle", "red", "small", 0.5, 0.5),)))
    assert [verdict.holds for verdict in verdicts] == [True, False, False, False]
    assert isinstance(spec.constraints[0], Exists) and isinstance(spec.constraints[2], Count)
