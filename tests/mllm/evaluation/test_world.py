"""The world's evaluation: a perfect answerer passes everything, a wrong one is caught; a perfect judge of N candidates
gains, a contrary one loses; what is said after a model's own drawing is judged by what its words may mean in that
drawing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import ImagePart, Message
from mllm.engine.state_machine import NoRoomError
from mllm.evaluation.world import (
    GROUPS,
    Candidates,
    Group,
    WorldDialogue,
    best_of_lines,
    check_answer,
    evaluate_world,
    highest_perplexity,
    make_items,
    measure_best_of,
    plain_patches,
    score_group,
    score_round_trip,
)
from mllm.files import read_lines
from mllm.pipeline import STRIDE
from mllm.world.dialogue import Check, Dialogue, Edit, ImageRef, Question, apply_edit, ask_about_other
from mllm.world.render import RenderSize, render
from mllm.world.scene import Scene, SceneObject
from mllm.world.spec import ANY, Filter
from tokenizer.metrics import entropy_of
from tokenizer.unitok import UniTok

SEED = 7
COUNT = 8
Part = str | Image.Image
Answers = Iterable[tuple[int, list[Part]]]


class Oracle:
    """Knows the right answers. Spoils each of them when told so."""

    def __init__(self, group: Group, *, spoil: bool = False, size: RenderSize = 128) -> None:
        self.items = make_items(group, COUNT, seed=SEED)
        self.spoil, self.size = spoil, size
        self.sizes_shown: set[tuple[int, int]] = set()

    def __call__(self, dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        self.sizes_shown |= {p.image.size for d in dialogues for m in d for p in m.parts if isinstance(p, ImagePart)}
        turns = [self.items[seed - SEED].turns[len(d)] for d, seed in zip(dialogues, seeds, strict=True)]
        return enumerate([self.say(part) for part in turn.parts] for turn in turns)

    def say(self, part: str | ImageRef) -> Part:
        if isinstance(part, str):
            return "nonsense" if self.spoil else part
        image = part.render(self.size)
        return image.transpose(Image.Transpose.ROTATE_180).convert("L").convert("RGB") if self.spoil else image


def score(answer, group: Group, **options) -> dict:
    return evaluate_world(answer, count=COUNT, seed=SEED, groups=[group], **options)[group.name]


def test_right_answers_pass_and_wrong_ones_fail() -> None:
    for group in GROUPS:
        right, wide, wrong = Oracle(group), Oracle(group, size=(128, 96)), Oracle(group, spoil=True)
        scores = score(right, group)
        assert scores["rate"] == 1.0 and scores["total"] >= COUNT, group
        if group.job in ("draw", "edit", "segment"):
            assert score(wide, group, size=(128, 96))["rate"] == 1.0 and wide.sizes_shown <= {(128, 96)}
        assert score(wrong, group)["rate"] <= 0.25  # a circle turned upside down is still a circle
        if group.job == "segment":  # blends at borders cost a little
            assert scores["mean_iou"] > 0.99 and scores["pixel_accuracy"] > 0.99


def test_an_answer_that_ends_early_or_says_too_much_or_outgrows_the_context_fails_alone() -> None:
    oracle = Oracle(GROUPS[0])
    for change in (lambda parts: [], lambda parts: [*parts, "and more"]):
        scores = score(lambda d, m, s, change=change: [(n, change(given)) for n, given in oracle(d, m, s)], GROUPS[0])
        assert scores["rate"] == 0.0
    group, lost = Group("multi_turn"), {SEED, SEED + 3, SEED + 4}
    oracle = Oracle(group)

    def answer(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        if any(seed in lost and len(messages) > 1 for messages, seed in zip(dialogues, seeds, strict=True)):
            raise NoRoomError("the prompt is too long")
        return oracle(dialogues, mode, seeds)

    scores = score(answer, group)
    assert (scores["passed"], scores["total"]) == (COUNT - len(lost), COUNT)


def test_a_perfect_judge_finds_the_right_candidate_and_a_contrary_one_avoids_it() -> None:
    """Every third seed of a request draws the right image, the others an empty one."""
    scored = [Candidates([0.1, 0.9, 0.95], [False, True, False]), Candidates([0.5, 0.4, 0.6], [True, False, True])]
    assert [[each.best_is_right(number) for each in scored].count(True) for number in (1, 2, 3)] == [1, 2, 1]
    items = make_items(GROUPS[0], COUNT, seed=SEED)
    right = {str(item.turns[0].parts[0]): item.turns[1].parts[0].render(128) for item in items}
    empty = Image.new("RGB", (128, 128), "white")
    drawn: list[int] = []

    def draw(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        drawn.extend(seeds)
        for index, ([message], seed) in enumerate(zip(dialogues, seeds, strict=True)):
            yield index, [right[message.parts[0].text] if (seed - SEED) // STRIDE % 3 == 2 else empty]

    for sign in (1, -1):
        drawn.clear()

        def judge(images: Sequence[Image.Image], requests: Sequence[str], sign: int = sign) -> list[float]:
            return [sign * float(np.asarray(image).std()) for image in images]  # by contrast

        measured = measure_best_of(draw, judge, GROUPS[0], best_of=(1, 4), count=COUNT, seed=SEED, chunk=5)
        assert drawn == [SEED + n + j * STRIDE for n in range(COUNT) for j in range(4)]
        rates = {number: values["rate"] for number, values in measured["best_of"].items()}
        assert rates == {"1": 0.0, "4": 1.0 if sign > 0 else 0.0}
        assert measured["any_right"]["4"]["rate"] == 1.0 and measured["candidates"] == 4 * COUNT
        assert measured["auroc"] == measured["auroc_low"] == (1.0 if sign > 0 else 0.0)
        assert "best of 4" in "\n".join(best_of_lines("draw", measured))


def test_the_command_measures_best_of_n(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.evaluation.world.CHECKER_COUNT", 20)
    command = ["evaluate", "world", "--device", "cpu", "--count", "1", "--batch-size", "4"]
    files = ["--json", str(tmp_path / "a.json"), "--items", str(tmp_path / "items.jsonl")]
    assert main([*command, "--jobs", "draw", "--resamples", "0", "--best-of", "1", "2", *files]) == 0
    lines = [line.record for line in read_lines(tmp_path / "items.jsonl")]
    assert [line["group"] for line in lines] == ["draw, seen pairs", "draw, held-out pairs"]
    assert all(line["seed"] == 0 and len(line["passed"]) == 1 for line in lines)
    assert len({line["answers"] for line in lines}) == 2
    measured = json.loads((tmp_path / "a.json").read_text())["self_scored"]
    found = {name: values["candidates"] for name, values in measured.items()}
    assert found == {"draw, seen pairs": 2, "draw, held-out pairs": 2}
    printed = capsys.readouterr().out
    assert "best of 2" in printed and "AUROC of its score" in printed


@pytest.mark.slow
def test_every_item_is_answered_alike_with_and_without_speculation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests of all answers, not the rates alone, as docs/performance.md says."""
    monkeypatch.setattr("mllm.evaluation.world.CHECKER_COUNT", 20)
    command = ["evaluate", "world", "--device", "cpu", "--dtype", "float32", "--count", "2"]
    written = {}
    for speculate in ("on", "off"):
        path = tmp_path / f"{speculate}.jsonl"
        assert main([*command, "--speculate", speculate, "--items", str(path)]) == 0
        written[speculate] = path.read_text()
    assert written["on"] == written["off"] and len(written["on"].splitlines()) == 2 * len(GROUPS)


# ---- the round trip of the world's images ----


def test_the_highest_perplexity_fills_up_the_rarest_entries() -> None:
    for fixed, total, counts in (
        ([], 12, [4, 4, 4]),
        ([9], 12, [9, 1, 1, 1]),
        ([9, 4], 14, [9, 4, 0.5, 0.5]),
        ([1, 1, 1], 3, [1, 1, 1]),
    ):
        expected = float(entropy_of(torch.tensor([counts]))[0].exp())
        assert highest_perplexity(fixed, total, len(counts)) == pytest.approx(expected, rel=1e-5)
    assert highest_perplexity([1, 1, 1], 3, 2) == 2.0, "more colors than entries bound nothing"
    pixels_B3HW = torch.zeros(1, 3, 2, 6)
    pixels_B3HW[0, 1, :, 2:4], pixels_B3HW[0, 2, 1, 5] = 0.5, -1.0
    is_plain_M, color_M3 = plain_patches(pixels_B3HW, 2)
    assert is_plain_M.tolist() == [True, True, False] and color_M3[1].tolist() == [0.0, 0.5, 0.0]


def test_the_bundled_codebooks_are_used_evenly_where_there_is_something_to_see() -> None:
    tokenizer = UniTok.from_pretrained(Path(__file__).parents[3] / "mllm/assets/tiny/image_tokenizer")
    result = score_round_trip(tokenizer, count=20, seed=1, size=(256, 256))
    assert result["scenes_read_right"] >= 19 / 20 and result["psnr"] > 31
    assert max(result["perplexity"]) <= result["highest_perplexity"] < 20
    assert min(result["perplexity_of_borders"]) > 40 and 0.6 < result["plain_share"] < 0.8
    whole = UniTok(replace(tokenizer.config, encoder_scope="image")).eval()
    assert score_round_trip(whole, count=1, seed=1, size=(160, 128))["highest_perplexity"] is None


# ---- edits and questions about a drawing of the model ----

HEART = Filter(shape="heart")
STAR = SceneObject("star", "blue", "small", 0.2, 0.7)
RED_HEART, BLUE_STAR = SceneObject("heart", "red", "large", 0.3, 0.3), replace(STAR, x=0.7)
WANTED = Scene("white", (RED_HEART, BLUE_STAR))
DRAWN = Scene("white", (STAR, SceneObject("heart", "green", "small", 0.7, 0.3)))
TWO_HEARTS = Scene("white", (*DRAWN.objects, SceneObject("heart", "red", "large", 0.6, 0.75)))
RECOLOR = Edit("recolor", 0, "yellow")


def edit_check(edit: Edit, reference: Filter | None) -> Check:
    return Check("edit", scene=WANTED, edit=edit, reference=reference)


def ask(variant: str, first: Filter | None, second: Filter | None = None, value: str | None = None) -> Check:
    kind = variant.split()[0] if variant.endswith(" of") else "relation"
    return Check("answer", scene=WANTED, question=Question(kind, variant, first, second, value), expected="red")


def recolored(scene: Scene, *indices: int) -> Scene:
    for index in indices:
        scene = apply_edit(scene, replace(RECOLOR, index=index))
    return scene


def test_an_edit_means_what_its_words_name_in_the_models_image() -> None:
    alone, far = Scene("white", DRAWN.objects[1:]), SceneObject("cross", "purple", "small", 0.9, 0.7)
    larger, gray, cross = Edit("resize", 0, "large"), Edit("background", value="gray"), replace(far, x=0.5, y=0.5)
    beside, corner = Edit("add", added=cross, relation="left of", anchor=0), replace(far, x=0.85, y=0.85)
    placed, with_cross = Edit("add", added=corner, place="bottom right"), Scene("white", (*DRAWN.objects, cross))
    hearts = (HEART, Filter(shape="heart", color="green"), Filter(color="green"))
    for edit, reference, before, right, wrong in (
        *((RECOLOR, heart, DRAWN, [recolored(DRAWN, 1)], [recolored(DRAWN, 0), DRAWN]) for heart in hearts),
        (larger, ANY, alone, [apply_edit(alone, larger)], [alone]),  # "it" is the only object
        (beside, HEART, DRAWN, [with_cross], [Scene("white", (*DRAWN.objects, far))]),  # left of the heart alone
        (beside, Filter(shape="star"), DRAWN, [], [with_cross]),  # it is right of the star
        (gray, None, DRAWN, [apply_edit(DRAWN, gray)], [DRAWN]),  # words that name no object mean the same everywhere
        (placed, None, DRAWN, [apply_edit(DRAWN, placed)], [DRAWN]),
    ):
        for scene in (*right, *wrong):
            result = check_answer(edit_check(edit, reference), render(scene), before)
            assert result.passed == (scene in right) and not result.left_open, (edit, reference, scene)


def test_words_that_may_mean_several_objects_may_mean_each_of_them_and_nothing_else() -> None:
    star, circle = SceneObject("star", "blue", "large", 0.3, 0.3), SceneObject("circle", "red", "small", 0.7, 0.7)
    drawn, small_star = Scene("white", (star, circle)), Filter(shape="star", size="small")
    alike, larger, gone = Filter("heart", "orange", "small"), Edit("resize", 0, "large"), Edit("remove", 0)
    edited, yellow = [recolored(TWO_HEARTS, index) for index in range(3)], recolored(TWO_HEARTS, 1)
    others = [TWO_HEARTS, Scene("black", (SceneObject("cross", "blue", "large", 0.5, 0.5),))]
    without = [apply_edit(drawn, replace(gone, index=index)) for index in range(2)]
    for edit, reference, before, right, wrong in (
        (RECOLOR, HEART, TWO_HEARTS, edited[1:], [edited[0], *others]),
        (RECOLOR, alike, TWO_HEARTS, edited[2:], [*edited[:2], *others]),
        (RECOLOR, Filter(size="large", color="blue"), TWO_HEARTS, edited[:2], [edited[2], *others]),
        # what is named by another size is still meant; it is large already, and a circle is no star
        (larger, small_star, drawn, [drawn], [apply_edit(drawn, replace(larger, index=1))]),
        (gone, small_star, drawn, without[:1], without[1:]),
        # one that already is as wanted is not meant where another is not
        (RECOLOR, HEART, yellow, [recolored(yellow, 2)], [yellow]),
    ):
        for scene in (*right, *wrong):
            result = check_answer(edit_check(edit, reference), render(scene), before)
            assert result.left_open and result.passed == (scene in right), (edit, reference, scene)


def test_answers_to_open_questions_are_still_answers() -> None:
    star = Filter(shape="star")
    for check, right, wrong in (
        (ask("color of", HEART), ("red", "Green"), ("blue", "banana", "", "yes")),
        (ask("where is", HEART, star), ("above", "right"), ("green", "")),
        (ask("is related", HEART, star, "above"), ("yes", "no"), ("heart", "")),
        (ask("which is related", None, HEART, "above"), ("star", "heart"), ("circle", "green")),
        (ask("which is related", None, star, "below"), ("heart",), ("star", "circle")),
        (ask("which is larger", HEART, Filter(shape="heart", size="large")), ("heart",), ("star", "circle")),
    ):
        for words in (*right, *wrong):
            result = check_answer(check, words, TWO_HEARTS)
            assert result.left_open and result.passed == (words in right), words

    result = check_answer(ask("color of", HEART), "green", DRAWN)  # of one heart
    assert result.passed and not result.left_open
    assert not check_answer(ask("color of", HEART), "red", DRAWN).passed
    # the other one is the one not asked about, whatever it looks like
    before = Question("color", "color of", Filter(shape="star"))
    assert ask_about_other(before, Scene("white", (STAR,)), Random(0)) is None
    (check,) = ask_about_other(before, WANTED, Random(0)).checks
    assert check.expected == "red"
    check = replace(check, question=Question("color", "color of", Filter(shape="heart", size="large")))
    assert check_answer(check, "green", DRAWN).passed, "the small heart is the other one all the same"
    assert not check_answer(check, "there is no large heart", DRAWN).passed


def test_scores_say_how_many_were_left_open_and_unreadable_images_are_never_right() -> None:
    assert not check_answer(edit_check(RECOLOR, HEART), Image.new("RGB", (128, 128), "white"), TWO_HEARTS).passed
    assert not check_answer(edit_check(RECOLOR, HEART), render(DRAWN), None).passed
    assert not check_answer(ask("color of", HEART), "red", None).passed
    dialogues = []
    for scene, words in ((WANTED, "red"), (WANTED, "blue"), (TWO_HEARTS, "red"), (TWO_HEARTS, "blue")):
        dialogue = WorldDialogue(Dialogue("multi_turn", (), (ask("color of", HEART),)), seed=0)
        dialogue.results.append(check_answer(dialogue.dialogue.checks[0], words, scene))
        dialogues.append(dialogue)
    scores = score_group(Group("multi_turn", "seen"), dialogues)
    assert (scores["passed"], scores["total"], scores["left_open"]) == (2, 4, 1)
