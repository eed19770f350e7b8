"""The world's evaluation: a perfect answerer passes everything, a wrong one is caught; a perfect judge of N candidates
gains, a contrary one loses.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from mllm.conversation import ImagePart, Message
from mllm.engine.state_machine import NoRoomError
from mllm.evaluation.answerer import choose_groups
from mllm.evaluation.world import (
    GROUPS,
    Candidates,
    Group,
    best_of_lines,
    evaluate_world,
    highest_perplexity,
    make_items,
    measure_best_of,
    pass_rate,
    plain_patches,
    score_round_trip,
)
from mllm.files import read_lines
from mllm.pipeline import STRIDE
from mllm.world.dialogue import ImageRef
from mllm.world.render import RenderSize
from tokenizer.metrics import entropy_of
from tokenizer.unitok import UniTok

SEED = 7
COUNT = 12
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


def test_an_answer_that_ends_early_or_says_too_much_fails() -> None:
    oracle = Oracle(GROUPS[0])
    for change in (lambda parts: [], lambda parts: [*parts, "and more"]):
        scores = score(lambda d, m, s, change=change: [(n, change(given)) for n, given in oracle(d, m, s)], GROUPS[0])
        assert scores["rate"] == 0.0


def test_a_dialogue_that_outgrows_the_context_fails_and_the_others_are_answered() -> None:
    group, lost = Group("multi_turn"), {SEED, SEED + 3, SEED + 4}
    oracle = Oracle(group)

    def answer(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        if any(seed in lost and len(messages) > 1 for messages, seed in zip(dialogues, seeds, strict=True)):
            raise NoRoomError("the prompt is too long")
        return oracle(dialogues, mode, seeds)

    scores = score(answer, group)
    assert (scores["passed"], scores["total"]) == (COUNT - len(lost), COUNT)

    for jobs in (["juggle"], ["draw", "juggle"], []):
        with pytest.raises(ValueError):
            choose_groups(GROUPS, jobs)
    with pytest.raises(ValueError):
        evaluate_world(lambda d, m, s: [], count=0, seed=0)


def score_contrast(sign: int, images: Sequence[Image.Image], requests: Sequence[str]) -> list[float]:
    return [sign * float(np.asarray(image).std()) for image in images]


def test_a_perfect_judge_finds_the_right_candidate_and_a_contrary_one_avoids_it() -> None:
    """Every third seed of a request draws the right image, the others an empty one."""
    scored = [Candidates([0.1, 0.9, 0.95], [False, True, False]), Candidates([0.5, 0.4, 0.6], [True, False, True])]
    assert [pass_rate(scored, number).passed for number in (1, 2, 3)] == [1, 2, 1]
    items = make_items(GROUPS[0], COUNT, seed=SEED)
    right = {str(item.turns[0].parts[0]): item.turns[1].parts[0].render(128) for item in items}
    empty = Image.new("RGB", (128, 128), "white")
    drawn: list[int] = []

    def draw(dialogues: Sequence[Sequence[Message]], mode: str, seeds: Sequence[int]) -> Answers:
        drawn.extend(seeds)
        for place, ([message], seed) in enumerate(zip(dialogues, seeds, strict=True)):
            yield place, [right[message.parts[0].text] if (seed - SEED) // STRIDE % 3 == 2 else empty]

    for sign in (1, -1):
        drawn.clear()
        judge = partial(score_contrast, sign)
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
    assert main([*command, "--jobs", "draw", "--best-of", "1", "2", *files]) == 0
    lines = [line.record for line in read_lines(tmp_path / "items.jsonl")]
    assert [line["group"] for line in lines] == ["draw, seen pairs", "draw, held-out pairs"]
    assert all(line["seed"] == 0 and len(line["passed"]) == 1 and line["answers"] for line in lines)
    measured = json.loads((tmp_path / "a.json").read_text())["self_judged"]
    found = {name: values["candidates"] for name, values in measured.items()}
    assert found == {"draw, seen pairs": 2, "draw, held-out pairs": 2}
    printed = capsys.readouterr().out
    assert "best of 2" in printed and "AUROC of its score" in printed
    assert main([*command, "--jobs", "ask", "--best-of", "2"]) == 2


@pytest.mark.slow
def test_every_item_is_answered_alike_with_and_without_speculation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests of all answers, not the verdicts alone, as docs/performance.md says."""
    monkeypatch.setattr("mllm.evaluation.world.CHECKER_COUNT", 20)
    command = ["evaluate", "world", "--device", "cpu", "--dtype", "float32", "--count", "2"]
    written = {}
    for speculate in ("on", "off"):
        path = tmp_path / f"{speculate}.jsonl"
        assert main([*command, "--speculate", speculate, "--items", str(path)]) == 0
        written[speculate] = path.read_text()
    assert written["on"] == written["off"] and len(written["on"].splitlines()) == 2 * len(GROUPS)


# ---- the round trip of the world's images ----


@pytest.mark.parametrize(
    ("fixed", "total", "counts"),
    [([], 12, [4, 4, 4]), ([9], 12, [9, 1, 1, 1]), ([9, 4], 14, [9, 4, 0.5, 0.5]), ([1, 1, 1], 3, [1, 1, 1])],
)
def test_the_highest_perplexity_fills_up_the_rarest_entries(fixed: list, total: int, counts: list) -> None:
    expected = float(entropy_of(torch.tensor([counts]))[0].exp())
    assert highest_perplexity(fixed, total, len(counts)) == pytest.approx(expected, rel=1e-5)
    assert highest_perplexity([1, 1, 1], 3, 2) == 2.0, "more colors than entries bound nothing"
    pixels_B3HW = torch.zeros(1, 3, 2, 6)
    pixels_B3HW[0, 1, :, 2:4], pixels_B3HW[0, 2, 1, 5] = 0.5, -1.0
    is_plain_M, color_M3 = plain_patches(pixels_B3HW, 2)
    assert is_plain_M.tolist() == [True, True, False] and color_M3[1].tolist() == [0.0, 0.5, 0.0]


def test_the_bundled_codebooks_are_used_evenly_where_there_is_something_to_see() -> None:
    folder = Path(__file__).parents[3] / "mllm/assets/tiny/image_tokenizer"
    tokenizer = UniTok.from_pretrained(folder)
    result = score_round_trip(tokenizer, count=60, seed=1)
    assert result["scenes_read_right"] >= 59 / 60 and result["psnr"] > 31
    assert max(result["perplexity"]) <= result["highest_perplexity"] < 20
    assert min(result["perplexity_of_borders"]) > 48 and 0.6 < result["plain_share"] < 0.8
    wide = score_round_trip(tokenizer, count=8, seed=1, size=(320, 256))
    assert wide["scenes_read_right"] == 1.0
    whole = UniTok(replace(tokenizer.config, encoder_scope="image")).eval()
    assert score_round_trip(whole, count=2, seed=1)["highest_perplexity"] is None
