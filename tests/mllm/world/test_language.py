"""Requests to draw are true of their own scene and false of a changed one; descriptions are read, false ones caught."""

from collections import Counter
from dataclasses import replace
from itertools import product
from random import Random

from mllm.world.dialogue import make_episode
from mllm.world.language import DRAWING_WEIGHTS, add_typo, correct_typos, describe, make_draw_request
from mllm.world.scene import COLORS, HELD_OUT_PAIRS, Scene, SceneObject, random_scene, random_scene_for
from mllm.world.sentence_reader import check_description, read_description, read_request
from mllm.world.spec import Background, Exists, Filter, Related, enumerate_objects, satisfies

CIRCLE, SQUARE = SceneObject("circle", "red", "large", 0.25, 0.5), SceneObject("square", "blue", "small", 0.6, 0.5)
STAR = SceneObject("star", "green", "small", 0.65, 0.85)
SCENE = Scene("white", (CIRCLE, SQUARE, STAR))
SKILLS = {"attribute", "scene", "spatial relation", *list(DRAWING_WEIGHTS)[2:]}


def test_a_typo_changes_one_longer_word_keeps_its_first_letter_and_is_read_right() -> None:
    text = "a large yellow triangle above three orange circles on a cream background"
    for seed in range(60):
        typed = add_typo(text, Random(seed))
        ((old, new),) = [(a, b) for a, b in zip(text.split(), typed.split(), strict=True) if a != b]
        assert len(old) >= 5 and old != "three" and old[0] == new[0] and abs(len(old) - len(new)) <= 1
        assert correct_typos(typed) == text and read_request(typed) == read_request(text)
        assert "three" not in add_typo("Are there stars", Random(seed)) and add_typo("small", Random(seed)) != "small"
    assert add_typo("a red star on it", Random(0)) == "a red star on it"
    text = "Where there are three stars, while others star in a white circus"
    assert correct_typos(text) == text


def test_requests_hold_on_their_own_scene_and_full_ones_fail_on_a_changed_one() -> None:
    noticed, skills = Counter(), Counter()
    for kind, seed in product(DRAWING_WEIGHTS, range(150)):
        scene = random_scene(Random(seed))
        request = make_draw_request(scene, Random(seed + 1), kind=kind)
        assert satisfies(scene, request.spec), (request.text, scene)
        assert "{" not in request.text and request.text.isascii()
        skills.update(request.skills)
        if kind == "full":
            first, *rest = scene.objects
            other = next(color for color in COLORS if all(item.color != color for item in scene.objects))
            extra = SceneObject("circle", other, "small", 0.5, 0.5)
            changed = {"color": (replace(first, color=other), *rest), "missing": rest, "extra": (*scene.objects, extra)}
            for name, items in changed.items():
                noticed[name] += not satisfies(Scene(scene.background, tuple(items)), request.spec)
    assert noticed["missing"] == noticed["extra"] == 150
    assert noticed["color"] > 135  # a few requests leave a color open
    assert set(skills) == SKILLS and min(skills.values()) >= 20, skills
    requests = [make_draw_request(make_episode(index).scene, Random(index)) for index in range(600)]
    assert {skill for request in requests for skill in request.skills} == SKILLS
    assert 0.6 < sum(request.kind == "full" for request in requests) / 600 < 0.85
    for seed in range(60):
        spec = make_draw_request(random_scene_for("test", Random(seed), pairs="held_out"), Random(seed)).spec
        assert any(isinstance(item, Exists) and item.filter.pair in HELD_OUT_PAIRS for item in spec)


def test_constraints_hold_under_some_assignment_and_what_is_missing_fails() -> None:
    """Two red circles, one of them left of a star: whichever circle it is."""
    circle, star = Filter("circle", "red"), SceneObject("star", "blue", "small", 0.5, 0.5)
    items = [SceneObject("circle", "red", "small", x, 0.5) for x in (0.2, 0.8)]
    twins = (*enumerate_objects([circle, circle, Filter("star")]), Related(1, "left of", 2), Background("white"))
    above = (*enumerate_objects([Filter("circle"), Filter("star")]), Related(0, "above", 1))
    for spec, background, objects, expected in (
        (twins, "white", (*items, star), True),
        (twins, "white", (*items, replace(star, x=0.12)), False),
        (twins, "gray", (*items, star), False),
        (twins, "white", (*items, replace(star, color="red", shape="heart")), False),
        (above, "white", (CIRCLE,), False),
        (above, "white", (STAR, replace(CIRCLE, color="blue", size="small", y=0.1)), True),
    ):
        assert satisfies(Scene(background, objects), spec) == expected


def test_descriptions_are_read_back_and_plain_requests_to_draw_are_descriptions_too() -> None:
    assert describe(SCENE) == (
        "There are three shapes on a white background: a large red circle, a small blue square and a small green star. "
        "The circle is to the left of the square. The square is above the star."
    )
    for seed in range(200):
        scene = random_scene(Random(seed))
        for short in (False, True):
            text = describe(scene, short=short)
            assert check_description(text, scene), text
            claimed, _ = read_description(text)
            assert claimed[: len(scene.objects) + 1] == enumerate_objects(list(map(Filter.of, scene.objects)))
            assert claimed[-1] == Background(scene.background)
        if len(scene.objects) < 3:  # a second reader of the draw language: what it understands holds on the scene
            request = make_draw_request(scene, Random(seed), kind="full")
            assert satisfies(scene, read_description(request.core)[0]), request.core


def test_false_or_incomplete_descriptions_fail_and_other_words_are_understood() -> None:
    text = describe(SCENE)
    for old, new in (
        ("large red circle", "small red circle"),
        ("large red circle", "large orange circle"),
        ("blue square", "blue heart"),
        ("blue square", "square"),
        (" and a small green star", ""),
        ("small green star", "small green star and a small green star"),
        ("white background", "gray background"),
        (" on a white background", ""),
        ("to the left of", "to the right of"),
        ("three shapes", "four shapes"),
        ("The circle is to the left of the square", "The heart is to the left of the square"),
        ("The square is above the star.", "The square is above."),
        (text, ""),
        (text, "left of below the the the"),
        (text, "3 3 3"),
    ):
        assert old in text and not check_description(text.replace(old, new), SCENE), new
    twins = Scene("gray", (CIRCLE, replace(CIRCLE, x=0.75)))  # told apart by counting
    assert check_description(describe(twins), twins)
    assert not check_description("A large red circle on a gray background.", twins)
    named = enumerate_objects([Filter.of(CIRCLE), Filter.of(SQUARE)])
    text = "a big red disk to the left of a tiny blue square on a white background"
    assert read_description(text) == ((*named, Related(0, "left of", 1), Background("white")), True)
    twins = enumerate_objects([Filter("cross", "red", "small")] * 2)
    text = "The background is grey. There are two small red pluses."
    assert read_description(text) == ((*twins, Background("gray")), True)
    assert read_request("a photo of a dog") == ()
