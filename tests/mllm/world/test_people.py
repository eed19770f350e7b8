"""What people type: every right answer meets its own meaning, nothing held out is named, words vary."""

import sys
from contextlib import suppress
from random import Random

import pytest

from mllm.evaluation.requests import Expectation, RequestItem, check_answer, read_value
from mllm.world import people
from mllm.world.checker import ParsedScene
from mllm.world.grammar import Speaker, Typing, alternatives, expand, tidy
from mllm.world.language import UnsayableError, phrases
from mllm.world.people import CHANGE_FORMS, DRAWING_FORMS, KINDS, as_item, draw_turn, kept, make_people
from mllm.world.plan import ScenePlanner
from mllm.world.scene import COLORS, MAX_OBJECTS, SEEN_PAIRS, Scene, random_scene_for, split_of
from tests.train.launching import run_program


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_are_right(kind: str) -> None:
    said = set()
    for index in range(40):
        turns, scene = make_people(kind, Random(f"{kind}/{index}"), "test"), None
        assert [turn.user for turn in turns] == [t.user for t in make_people(kind, Random(f"{kind}/{index}"), "test")]
        for turn in turns:
            said.add(turn.user)
            scene = turn.shown or scene
            right = turn.answer if isinstance(turn.answer, str) else ParsedScene(turn.answer)
            assert check_answer(read_value(turn.expect, Expectation), [right], scene) == [], turn
            for shown in (turn.shown, turn.answer):
                assert not isinstance(shown, Scene) or (split_of(shown) == "test" and shown.pairs <= SEEN_PAIRS)
            if isinstance(turn.answer, Scene):
                wrong, wanted = Scene(turn.answer.background, turn.answer.objects[:1] * 5), turn.expect["scene"]
                if wanted["objects"] or wanted["total"] is not None:
                    assert check_answer(read_value(turn.expect, Expectation), [ParsedScene(wrong)], scene) != []
                scene = turn.answer
            if turn.expect.get("decline"):
                assert ScenePlanner().declines(str(turn.answer))
        if not any(turn.shown for turn in turns[1:]):
            assert read_value(as_item(turns, id="1", kind=kind), RequestItem).turns[0].user == turns[0].user
    assert len(said) > (25 if kind == "talk" else 36), "wordings hardly repeat"


def test_every_form_means_what_it_says() -> None:
    """Rare forms too: scenes for the words of drawings, and scenes after changes, are right answers."""
    for form in DRAWING_FORMS:
        for index in range(15):
            made = Speaker(Random(f"{form.__name__}/{index}")).attempt({form: 1}, "train")
            assert check_answer(read_value(made.expect, Expectation), [ParsedScene(made.scene)], None) == [], made
    for form in CHANGE_FORMS:
        made, tries = 0, 0
        while made < 15:
            tries += 1
            speaker = Speaker(Random(f"{form.__name__}/{tries}"))
            scene = random_scene_for("train", speaker.rng)
            with suppress(UnsayableError):
                change = form(speaker, scene)
                expect = read_value(kept(scene, change), Expectation)
                assert check_answer(expect, [ParsedScene(change.scene)], scene) == [], change
                made += 1


def test_what_cannot_be_drawn_is_asked_for_in_the_same_words() -> None:
    """Five and more objects, and colors and shapes of other worlds, in sentences that ask for what can be drawn."""
    for index in range(200):
        speaker = Speaker(Random(f"beyond/{index}"))
        assert len(draw_turn(speaker.asking_beyond(exceeds=True), "train")[1].objects) > MAX_OBJECTS
        text, _, expect = draw_turn(speaker.asking_beyond(dict.fromkeys(COLORS, "brown")), "train")
        named = [item for item in expect["scene"]["objects"] if isinstance(item.get("color"), str)]
        assert "brown" in text or not named, text
        assert not any(f" {color} " in text for color in COLORS), text


def test_only_what_is_named_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word for another background or color counts where the request says one, not where it says the same word."""
    made = []
    monkeypatch.setattr(people, "draw_turn", lambda *about: made.append(draw_turn(*about)) or made[-1])
    for index in range(200):
        text, kind = people.nearly_inside(Speaker(Random(f"nearly/{index}")), None)
        asked = made[-1][2]["scene"]
        assert made[-1][0] == text
        assert kind != "background" or asked["background"], text
        assert kind not in ("color", "shape") or any(kind in item for item in asked["objects"]), text


def test_wordy_people_mean_the_same() -> None:
    """They say rules at length, and a good part of that in several sentences."""
    at_length = [name for name in phrases("people") if name.endswith(" at length")]
    assert all(name.removesuffix(" at length") in phrases("people") for name in at_length)
    lengths = []
    for index in range(200):
        speaker = Speaker(Random(f"wordy/{index}"))
        speaker.is_wordy = True
        text, scene, expect = draw_turn(speaker, "train")
        assert check_answer(read_value(expect, Expectation), [ParsedScene(scene)], None) == [], text
        assert not speaker.briefly().is_wordy and speaker.is_wordy
        lengths.append(len(text.split()))
    assert sum(length > 20 for length in lengths) > 100, "most of them need many words"


def test_rules_expand_by_weight_and_typing_keeps_what_is_meant() -> None:
    rng, rule = Random(0), alternatives("[a*3|b ][{x}|<red>] {y}")
    found = {expand(rule, rng, {"x": "1", "y": "2"}) for _ in range(200)}
    assert found == {"a1 2", "ared 2", "b 1 2", "b red 2"}
    counts = [expand(alternatives("[yes*9|no]"), rng, {}) for _ in range(1000)]
    assert 850 < counts.count("yes") < 950
    assert tidy("a  orange , circle ,") == "an orange, circle"
    careful = Typing("sentence", marks=True, apostrophes=True, typos=0.0, fillers=0.0)
    assert careful("i want a circle", rng) in ("I want a circle.", "I want a circle!")
    hasty = Typing("lower", marks=False, apostrophes=False, typos=1.0, fillers=0.0)
    typed = {hasty("it's a triangle", Random(seed)) for seed in range(50)}
    assert len(typed) > 10 and all("'" not in text and " " in text for text in typed), "two words become one at most"


def test_conversations_are_the_same_in_every_process() -> None:
    """Python orders sets of words differently in every process."""
    code = "from mllm.world.people import *; print([make_people('ask', Random(n)) for n in range(150)])"
    assert len({run_program(sys.executable, "-c", code, PYTHONHASHSEED=seed) for seed in "12"}) == 1
