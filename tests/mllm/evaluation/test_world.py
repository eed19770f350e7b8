"""The world's evaluation: a perfect answerer passes everything, a wrong one is caught, uncertainty is stated."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from mllm.conversation import ImagePart, Message
from mllm.engine.request import NoRoomError
from mllm.evaluation.intervals import Rate, percent
from mllm.evaluation.world import GROUPS, Group, choose_groups, evaluate_world, make_items
from mllm.world.dialogue import ImageRef
from mllm.world.render import RenderSize

SEED = 7
COUNT = 12


class Oracle:
    """Knows the right answers. Spoils each of them when told so."""

    def __init__(self, job: str, pairs: str, *, spoil: bool = False, size: RenderSize = 128) -> None:
        group = next(group for group in GROUPS if (group.job, group.pairs) == (job, pairs))
        self.items = make_items(group, COUNT, seed=SEED)
        self.spoil, self.size = spoil, size

    def __call__(
        self, dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]
    ) -> list[list[str | Image.Image]]:
        answers = []
        for messages, seed in zip(dialogues, seeds, strict=True):
            dialogue = self.items[seed - SEED]
            parts = dialogue.turns[len(messages)].parts
            answers.append([self.say(part) for part in parts])
        return answers

    def say(self, part: str | ImageRef) -> str | Image.Image:
        if isinstance(part, str):
            return "nonsense" if self.spoil else part
        picture = part.render(self.size)
        return picture.transpose(Image.Transpose.ROTATE_180).convert("L").convert("RGB") if self.spoil else picture


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_right_answers_pass_and_wrong_ones_fail(group) -> None:
    scores = {}
    for spoil in (False, True):
        oracle = Oracle(group.job, group.pairs, spoil=spoil)
        both = evaluate_world(
            lambda d, m, s, oracle=oracle: oracle(d, m, s), count=COUNT, seed=SEED, batch_size=5, groups=[group]
        )
        scores[spoil] = both[group.name]
    assert scores[False]["rate"] == 1.0
    assert scores[True]["rate"] <= 0.25  # a circle turned upside down is still a circle
    assert scores[False]["total"] >= COUNT


def test_an_answer_that_ends_early_or_says_too_much_fails() -> None:
    group = next(group for group in GROUPS if group.job == "draw")
    oracle = Oracle(group.job, group.pairs)
    for change in (lambda parts: [], lambda parts: [*parts, "and more"]):
        scores = evaluate_world(
            lambda d, m, s, change=change: [change(parts) for parts in oracle(d, m, s)],
            count=COUNT,
            seed=SEED,
            groups=[group],
        )
        assert scores[group.name]["rate"] == 0.0


def test_a_dialogue_that_outgrows_the_context_fails_and_the_others_are_answered() -> None:
    group = next(group for group in GROUPS if group.job == "multi_turn")
    oracle = Oracle(group.job, group.pairs)
    lost = {SEED, SEED + 3, SEED + 4}

    def answer(
        dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]
    ) -> list[list[str | Image.Image]]:
        if any(seed in lost and len(messages) > 1 for messages, seed in zip(dialogues, seeds, strict=True)):
            raise NoRoomError("the prompt is too long")
        return oracle(dialogues, mode, seeds)

    scores = evaluate_world(answer, count=COUNT, seed=SEED, batch_size=5, groups=[group])[group.name]
    assert (scores["passed"], scores["total"]) == (COUNT - len(lost), COUNT)


def test_dense_pictures_report_their_overlap() -> None:
    group = next(group for group in GROUPS if group.job == "segment")
    scores = evaluate_world(Oracle(group.job, group.pairs), count=COUNT, seed=SEED, groups=[group])[group.name]
    assert scores["mean_iou"] > 0.99  # blends at borders cost a little
    assert scores["pixel_accuracy"] > 0.99


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_right_answers_pass_in_any_size(group: Group) -> None:
    shown = set()
    size = (128, 96)
    oracle = Oracle(group.job, group.pairs, size=size)

    def answer(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> list:
        shown.update(p.image.size for d in dialogues for m in d for p in m.parts if isinstance(p, ImagePart))
        return oracle(dialogues, mode, seeds)

    assert evaluate_world(answer, count=COUNT, seed=SEED, size=size, groups=[group])[group.name]["rate"] == 1.0
    assert shown <= {size}


def test_the_interval_is_wilsons() -> None:
    low, high = Rate(8, 10).interval
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert Rate(0, 5).interval[0] == 0.0 and Rate(5, 5).interval[1] == 1.0
    assert str(Rate(0, 0)) == "no items"


def test_one_failure_is_never_rounded_away() -> None:
    assert str(Rate(1999, 2000)).startswith("99.95 %")
    assert [percent(share) for share in (1.0, 0.99999, 0.9994, 0.5, 0.0)] == ["100.0", "99.999", "99.9", "50.0", "0.0"]
    assert str(Rate(7, 7)).startswith("100.0 %") and str(Rate(1, 2)).startswith(" 50.0 %")


def test_unknown_jobs_and_counts_are_refused() -> None:
    with pytest.raises(ValueError):
        choose_groups(["juggle"])
    with pytest.raises(ValueError):
        evaluate_world(lambda d, m, s: [], count=0, seed=0)
