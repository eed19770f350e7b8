"""Scores on emoji: what is asked, what is right, and that everything is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mllm.conversation import ImagePart
from mllm.evaluation import emoji
from mllm.evaluation.emoji import GROUPS, Cell, Drawing, as_table, make_items, measure_emoji, read_cells
from mllm.evaluation.retrieval import EfficientNetLite0
from scripts.emoji import records
from tests.conftest import small_tokenizer_config
from tokenizer.unitok import UniTok

TONES = (None, "light", "dark")
STYLES = ("noto", "flat")
SIZE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clerks of two genders with skin tones, an apple, and a thing that nobody was shown; each image its own color."""
    folder, lines = tmp_path_factory.mktemp("emoji"), []
    for number, (style, gender, tone) in enumerate((s, g, t) for s in STYLES for g in ("man", "woman") for t in TONES):
        split = "held_out_variant" if (gender, tone) == ("woman", "dark") else "train"
        lines.append(line(number, f"{gender} clerk", style, split, thing="clerk", tone=tone, gender=gender))
    lines += [line(20 + n, "red apple", s, ("train", "held_out_cell")[n]) for n, s in enumerate(STYLES)]
    lines += [line(30 + n, "flag: Nowhere", s, "held_out_thing", group="all-flags") for n, s in enumerate(STYLES)]
    for number, each in enumerate(lines):
        path = folder / "images" / each["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (SIZE, SIZE), "white")
        image.paste((number * 13 % 256, number * 91 % 256, number * 47 % 256), (number, 5, 30 + number % 7, 40))
        image.save(path)
    (folder / "cells.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return folder


def line(number: int, label: str, style: str, split: str, **about: Any) -> dict[str, Any]:
    about = {"tone": None, "gender": None, "thing": label, "group": "food-drink", **about}
    name = label.replace("flag: ", "flag of ") + (f" with {about['tone']} skin tone" if about["tone"] else "")
    own = {"path": f"{style}/{number}.png", "style": style, "name": name, "label": label, "split": split}
    return {**own, **about, "keywords": ["fruit"]}


@pytest.fixture(scope="module")
def cells(folder: Path) -> list[Cell]:
    return read_cells(folder)


@pytest.fixture(scope="module")
def scorer() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0().eval()


def test_questions_are_worded_as_in_training() -> None:
    assert emoji.DRAW.format(name="N", style="S") == records.DRAW[0].format(records.IN_STYLE[0].format("N", "S"))
    assert emoji.NAME in records.NAME and all(emoji.DONT_KNOW in text for text in records.CANNOT_NAME)
    assert emoji.RESTYLE.format(style="{}") in records.RESTYLE
    assert emoji.TONE.format(tone="{}") in records.TONE and emoji.GENDER.format(gender="{}") in records.GENDER


def test_what_is_right_is_held_out_and_what_is_shown_was_trained_on(cells: list[Cell]) -> None:
    for group in GROUPS:
        items = make_items(group, cells, 100, seed=3)
        assert items and all(item.right.split == group.split for item in items), group
        assert items == make_items(group, cells, 100, seed=3)
        for question, right, shown in items:
            if group.job not in emoji.CHANGES:
                continue
            attribute, _, kept = emoji.CHANGES[group.job]
            assert shown is not None and shown.split == "train" and kept(shown) == kept(right)
            assert (getattr(right, attribute) or "person") in question != getattr(shown, attribute)


def test_a_name_is_the_label_or_a_keyword_with_the_skin_tone(cells: list[Cell]) -> None:
    by_name = {cell.name: cell for cell in cells}
    assert by_name["red apple"].is_named("red apple") and by_name["red apple"].is_named("fruit")
    assert by_name["flag of Nowhere"].is_named("flag of nowhere")
    clerk = by_name["man clerk with dark skin tone"]
    assert clerk.is_named("man clerk with dark skin tone") and not clerk.is_named("man clerk")


def test_nothing_that_was_declined_is_right(folder: Path, cells: list[Cell], scorer: EfficientNetLite0) -> None:
    images = [Image.open(folder / "images" / cell.path).convert("RGB") for cell in cells]
    drawings = [Drawing("draw, seen", cell, image) for cell, image in zip(cells, images, strict=True)]
    drawings += [Drawing("draw, seen", cells[0], None), Drawing("draw, seen", cells[0], images[1])]
    names, how = ["draw, seen", "tone, held-out variants"], {"scorer": scorer, "size": SIZE}
    found = emoji.score_drawings(drawings, names, cells, folder / "images", **how)
    scores, nothing = found.values()
    assert nothing["ssim"]["right_at_1"] == {"rate": None, "low": None, "high": None, "passed": 0, "total": 0}
    assert scores["declined"] == 1
    for kind in ("features", "ssim"):
        assert scores[kind]["right_at_1"]["passed"] == len(cells)
        assert scores[kind]["right_at_5"]["total"] == len(cells) + 2


class Oracle:
    """A pipeline that draws the apple, calls everything an apple, and knows nothing of what is held out."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.model, self.config = image, torch.nn.Linear(2, 3), Settings()
        tokenizer = UniTok(small_tokenizer_config()).eval()
        self.processor = SimpleNamespace(need_image_tokenizer=lambda: tokenizer)

    def answer_each(self, dialogues: Any, mode: str, seeds: Any, *, at_once: int) -> Iterator[tuple[int, list]]:
        answers = []
        for dialogue in dialogues:
            *shown, asked = dialogue[0].parts
            assert all(isinstance(part, ImagePart) for part in shown)
            draws = mode == "interleaved" and "Nowhere" not in asked.text
            answers.append([self.image] if draws else ["Red apple."] if mode == "text" else ["I don't know."])
        yield from reversed([*enumerate(answers)])


class Settings(SimpleNamespace):
    image_guidance, image_temperature, image_top_k, image_top_p, image_size = 1.0, 0.7, None, 1.0, SIZE


def test_everything_is_measured_and_shown(folder: Path, scorer: EfficientNetLite0, tmp_path: Path) -> None:
    cells = read_cells(folder)
    apple = next(cell for cell in cells if cell.split == "held_out_cell")
    pipeline: Any = Oracle(Image.open(folder / "images" / apple.path).convert("RGB"))
    settings = {"groups": GROUPS, "scorer": scorer, "count": 4, "sheet": tmp_path / "sheet.png"}
    report = measure_emoji(pipeline, folder, cells=cells, **settings)
    scores = report["scores"]
    assert list(scores) == [group.name for group in GROUPS]
    for job in ("draw", "restyle"):
        assert scores[f"{job}, held-out cells"]["features"]["right_at_1"]["rate"] == 1
    assert scores["name, held-out cells"]["by_name"]["rate"] == 1 and scores["unknown, asked for"]["rate"] == 1
    assert scores["unknown, shown"]["rate"] == 0
    assert report["round_trip"]["features"]["right_at_5"]["total"] == 4
    assert all(group.name in as_table(report) for group in GROUPS)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 10 * SIZE


@pytest.mark.parametrize(
    ("lines", "message"),
    [(None, "scripts.emoji.build"), ('{"path": "noto/a.png"}\n', "line 1"), ("\n", "must name images")],
)
def test_a_folder_without_data_is_one_sentence(tmp_path: Path, lines: str | None, message: str) -> None:
    if lines is not None:
        (tmp_path / "cells.jsonl").write_text(lines)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_cells(tmp_path)
