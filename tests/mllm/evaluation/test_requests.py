"""Requests in people's own words: each kind of expectation passes and fails as it should; malformed lines are named."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import ImagePart, Message, TextPart
from mllm.evaluation.requests import IMAGE_SIDE, as_table, evaluate_requests, nudge_apart, read_items
from mllm.evaluation.world import Part
from mllm.world.render import render
from mllm.world.scene import Scene, SceneObject, is_valid
from tests.mllm.evaluation.builders import write_jsonl

Answers = Iterable[tuple[int, list[Part]]]
STAR = SceneObject("star", "green", "large", 0.3, 0.4)
BOX = SceneObject("square", "purple", "small", 0.75, 0.7)
SHOWN = {"background": "cream", "objects": [{name: getattr(x, name) for name in x.__slots__} for x in (STAR, BOX)]}


def draw(*objects: SceneObject, background: str = "cream") -> Image.Image:
    return render(Scene(background, objects), 128)


def image_of(*objects: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"scene": {"objects": list(objects), "total": len(objects), "none": [], "background": None, **more}}


STAR_AND_BOX = image_of(
    {"shape": "star", "color": ["green", "blue"]},
    {"shape": "square"},
    none=[{"color": "red"}],
    relations=[[0, "left of", 1], [0, "above", 1], [1, "smaller than", 0]],
)
TWO_STARS = image_of({"shape": "star", "count": 2}, total=None, background=["white", "cream"])
RECOLORED = {**image_of({"shape": "star", "color": "blue"}, total=2), "keeps": True, "changes": [{"shape": "star"}]}
BLUE = replace(STAR, color="blue")
FAR, NEAR = replace(BOX, x=0.75, y=0.5), replace(BOX, x=0.7, y=0.76)
SECOND = replace(STAR, x=0.7, y=0.7)
LARGE = replace(BOX, size="large")

HEART = SceneObject("heart", "blue", "small", 0.3, 0.8)
NO, GREEN = {"text": {"any_of": ["no", "isn't"], "none_of": ["yes"]}, "no_picture": True}, {"any_of": ["green star"]}
CASES: list[tuple[str, dict | None, dict, list[list[Part]], list[list[Part]]]] = [
    (
        *("draw", None, STAR_AND_BOX, [[draw(STAR, BOX)], ["Here it is.", draw(BLUE, BOX, background="black")]]),
        [
            *([], ["A green star."], [draw(STAR, BOX), draw(STAR, BOX)], [draw(STAR)], [draw(STAR, LARGE)]),
            *([draw(replace(STAR, color="red"), BOX)], [draw(STAR, BOX, HEART)]),
            *([draw(replace(STAR, x=0.75), replace(BOX, x=0.3))], [Image.new("RGB", (128, 128), "white")]),
        ],
    ),
    ("draw", None, TWO_STARS, [[draw(STAR, SECOND)]], [[draw(STAR)], [draw(STAR, SECOND, background="gray")]]),
    (
        *("edit", SHOWN, RECOLORED, [[draw(BLUE, BOX)], [draw(BLUE, NEAR)]]),
        [[draw(STAR, BOX)], [draw(BLUE, FAR)], [draw(BLUE, BOX, background="white")], [draw(BLUE, LARGE)], ["Blue."]],
    ),
    (
        *("ask", SHOWN, NO, [["No."], ["It isn\u2019t there."]]),
        [["Yes, no."], ["There is another."], [], ["No.", draw(STAR)]],
    ),
    (
        *("describe", SHOWN, {"text": GREEN}, [["I see a GREEN  star."], ["A green star.", draw(STAR)]]),
        [["A star."], ["A green starfish."]],
    ),
    ("talk", None, {"no_picture": True}, [["Hello."], []], [[draw(STAR)]]),
    (
        *("outside", None, {"decline": True}, [["I can only draw shapes."], ["Sorry, I don\u2019t know dogs."]]),
        [["Sure, a dog."], [], [draw(STAR)], ["I can only draw stars.", draw(STAR)]],
    ),
]


def item(name: str, kind: str, image: dict | None, *expected: dict) -> dict:
    return {"id": name, "kind": kind, "image": image, "turns": [{"user": "please", "expect": e} for e in expected]}


def test_every_expectation_passes_and_fails_as_it_should(tmp_path: Path) -> None:
    for number, (kind, image, expect, right, wrong) in enumerate(CASES):
        answers = [*right, *wrong]
        names = [f"{number}-{index}" for index in range(len(answers))]
        items = read_items(write_jsonl(tmp_path / "a.jsonl", [item(name, kind, image, expect) for name in names]))

        def answer(dialogues: Sequence, mode: str, seeds: Sequence[int], answers: list = answers) -> Answers:
            assert mode == "interleaved"
            return enumerate(answers[seed - 5] for seed in seeds)

        result = evaluate_requests(answer, items, seed=5)
        assert [failure["id"] for failure in result["failures"]] == names[len(right) :], (kind, result["failures"])
        assert result["kinds"] == {kind: {"right": len(right), "total": len(answers)}}
        assert all(failure["reason"] and failure["turn"] == 1 for failure in result["failures"])
        low, high = result["intervals"][kind]
        assert 0 < low < len(right) / len(answers) < high < 1


def test_a_chat_is_right_when_all_its_turns_are_and_ends_at_a_wrong_one(tmp_path: Path) -> None:
    """What is drawn in a chat is what the next edit must keep."""
    chat = ({"no_picture": True}, STAR_AND_BOX, RECOLORED, {"text": {"any_of": ["welcome"]}})
    right: list[list[Part]] = [[], [draw(STAR, FAR)], ["Done.", draw(BLUE, FAR)], ["You are welcome."]]
    spoiled = [*right[:2], [draw(BLUE, NEAR)], *right[3:]]
    chats = [item(name, "chat", None, *chat) for name in "ab"]
    items = read_items(write_jsonl(tmp_path / "a.jsonl", chats))
    asked: list[tuple[int, int]] = []

    def answer(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        asked.extend((seed, len(dialogue)) for seed, dialogue in zip(seeds, dialogues, strict=True))
        pairs = zip(seeds, dialogues, strict=True)
        return enumerate((right, spoiled)[seed][len(dialogue) // 2] for seed, dialogue in pairs)

    result = evaluate_requests(answer, items)
    assert asked == [(0, 1), (1, 1), (0, 3), (1, 3), (0, 5), (1, 5), (0, 7)]
    assert (result["right"], result["total"]) == (1, 2)
    (failure,) = result["failures"]
    assert (failure["id"], failure["kind"], failure["turn"], failure["user"]) == ("b", "chat", 3, "please")
    assert "purple square" in failure["reason"] and "purple square" in failure["answer"][0]
    assert "b, turn 3" in as_table(result)
    turns = {name: (row["right"], row["total"]) for name, row in result["turns"].items()}
    assert turns == {"first drawing": (2, 2), "change": (1, 2), "words": (3, 3)}


def test_requests_of_one_turn_stand_beside_longer_chats(tmp_path: Path) -> None:
    turns = ({"no_picture": True},) * 3
    items = [item("a", "chat", None, *turns), item("b", "talk", None, *turns[:1]), item("c", "chat", None, *turns[:2])]

    def answer(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        return enumerate([["Hello."]] * len(dialogues))

    result = evaluate_requests(answer, read_items(write_jsonl(tmp_path / "a.jsonl", items)))
    assert (result["right"], result["total"], result["turns"]["words"]["total"]) == (3, 3, 5)


def test_the_image_is_shown_with_the_first_turn_and_its_objects_lie_apart(tmp_path: Path) -> None:
    touching = {**SHOWN, "objects": [{**each, "x": 0.5, "y": 0.98} for each in SHOWN["objects"]]}
    (shown,) = read_items(write_jsonl(tmp_path / "a.jsonl", [item("a", "ask", touching, {"no_picture": True})]))
    assert shown.image is not None and is_valid(shown.image)
    assert is_valid(nudge_apart(Scene("white", tuple(replace(STAR, x=x, y=0.5) for x in (0.22, 0.5, 0.78)))))
    assert nudge_apart(Scene("cream", (STAR, BOX))) == Scene("cream", (STAR, BOX))

    def answer(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        image, words = dialogues[0][0].parts
        assert isinstance(image, ImagePart) and image.image == render(shown.image, IMAGE_SIDE)
        assert words == TextPart("please")
        return enumerate([[]])

    assert evaluate_requests(answer, [shown])["right"] == 1
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    example = json.loads(page.split("## Bring your own tests")[1].split("```json")[1].split("```")[0])
    (found,) = read_items(write_jsonl(tmp_path / "a.jsonl", [example]))
    assert found.image is not None and len(found.turns) == 2


def test_a_malformed_line_is_one_error_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good, star = item("a", "talk", None, {"no_picture": True}), {"shape": "star"}
    changes = [
        {"id": "a"},  # the same id
        {"knid": "talk"},
        {"turns": []},
        {"turns": [{"user": " ", "expect": {"no_picture": True}}]},
        {"image": {**SHOWN, "background": "pink"}},
        {"image": {**SHOWN, "objects": SHOWN["objects"][:1] * 5}},
    ]
    expectations = [
        {},
        {"changes": [], "decline": "yes"},
        {"text": {"any_of": []}},
        {**STAR_AND_BOX, "no_picture": True},
        image_of({"shape": "cube"}),
        image_of({**star, "count": -1}),
        image_of(star, relations=[[0, "left of", 1]]),
        image_of(star, {}, relations=[[0, "beside", 1]]),
    ]
    wrong = [{**good, "id": "b", **change} for change in changes]
    for bad in (*wrong, *(item("b", "talk", None, expect) for expect in expectations)):
        path = write_jsonl(tmp_path / "tests.jsonl", [good, bad])
        assert main(["evaluate", "requests", str(path)]) == 2, bad
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{path}, line 2" in error and "must" in error, error


def test_the_command_prints_rates_and_failures_and_writes_them(
    random_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    items = [item("a", "talk", None, {"text": {"none_of": ["unlikely"]}}), item("b", "edit", SHOWN, RECOLORED)]
    words = [str(write_jsonl(tmp_path / "tests.jsonl", items)), "--json", str(tmp_path / "result.json")]
    assert main(["evaluate", "requests", *words, "--model", str(random_model_folder), "--device", "cpu"]) == 0
    result, printed = json.loads((tmp_path / "result.json").read_text()), capsys.readouterr().out
    assert (result["total"], result["kinds"]["edit"]) == (2, {"right": 0, "total": 1})
    assert result["failures"][-1]["id"] == "b" and "b, turn 1: please" in printed and "of 2" in printed
