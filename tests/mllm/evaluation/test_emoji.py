"""Scores on emoji: what is asked, what is right, that everything is counted; ranks and similarity of drawings."""

import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mllm.conversation import ImagePart
from mllm.evaluation import captions, emoji
from mllm.evaluation.emoji import GROUPS, Cell, Drawing, as_table, make_items, measure_emoji, read_cells
from mllm.evaluation.retrieval import EfficientNetLite0, Gallery, features_of, pad_same, ranks
from scripts.emoji import records
from tests.conftest import small_tokenizer_config
from tests.mllm.evaluation.builders import write_jsonl
from tokenizer.unitok import UniTok

TONES = (None, "light", "dark")
STYLES = ("noto", "flat")
SIZE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clerks of two genders with skin tones, an apple, and a thing that nobody was shown; each image its own color."""
    folder, lines = tmp_path_factory.mktemp("emoji"), []
    for style, gender, tone in product(STYLES, ("man", "woman"), TONES):
        split = "held_out_variant" if (gender, tone) == ("woman", "dark") else "train"
        lines.append(line(f"{gender} clerk", style, split, thing="clerk", tone=tone, gender=gender))
    lines += [line("red apple", style, split) for style, split in zip(STYLES, ("train", "held_out_cell"), strict=True)]
    lines += [line("flag: Nowhere", style, "held_out_thing", group="all-flags") for style in STYLES]
    for number, each in enumerate(lines):
        each["path"] = f"{number}.png"
        image = Image.new("RGB", (SIZE, SIZE), "white")
        image.paste((number * 13 % 256, number * 91 % 256, number * 47 % 256), (number, 5, 30 + number % 7, 40))
        (folder / "images").mkdir(exist_ok=True)
        image.save(folder / "images" / each["path"])
    write_jsonl(folder / "cells.jsonl", lines)
    return folder


def line(label: str, style: str, split: str, **about: Any) -> dict[str, Any]:
    about = {"tone": None, "gender": None, "thing": label, "group": "food-drink", **about}
    name = label.replace("flag: ", "flag of ") + (f" with {about['tone']} skin tone" if about["tone"] else "")
    return {"style": style, "name": name, "label": label, "split": split, **about, "keywords": ["fruit"]}


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
    by_name = {cell.name: cell for cell in cells}
    assert by_name["red apple"].is_named("red apple") and by_name["red apple"].is_named("fruit")  # a keyword
    assert by_name["flag of Nowhere"].is_named("flag of nowhere")
    clerk = by_name["man clerk with dark skin tone"]
    assert clerk.is_named("man clerk with dark skin tone") and not clerk.is_named("man clerk")


def test_nothing_that_was_declined_is_right(cells: list[Cell], scorer: EfficientNetLite0) -> None:
    images = [Image.open(cell.path).convert("RGB") for cell in cells]
    drawings = [Drawing("draw, seen", cell, image) for cell, image in zip(cells, images, strict=True)]
    drawings += [Drawing("draw, seen", cells[0], None), Drawing("draw, seen", cells[0], images[1])]
    names = ["draw, seen", "tone, held-out variants"]
    found = emoji.score_drawings(drawings, names, cells, scorer=scorer, size=SIZE)
    scores, nothing = found.values()
    assert nothing["ssim"]["right_at_1"] == {"rate": None, "low": None, "high": None, "passed": 0, "total": 0}
    assert scores["declined"] == 1
    for kind in ("features", "ssim"):
        assert scores[kind]["right_at_1"]["passed"] == len(cells)
        assert scores[kind]["right_at_5"]["total"] == len(cells) + 2


class Oracle:
    """A pipeline that draws the apple, calls everything an apple, and knows nothing of what is held out."""

    settings = {"image_guidance": 1, "image_temperature": 0.7, "image_top_k": None, "image_top_p": 1}
    config = SimpleNamespace(**settings, image_resamples=0, image_size=SIZE)

    def __init__(self, image: Image.Image) -> None:
        self.image, self.model = image, nn.Linear(2, 3)
        tokenizer = UniTok(small_tokenizer_config()).eval()
        self.processor = SimpleNamespace(need_image_tokenizer=lambda: tokenizer)

    def answer_each(self, dialogues: Any, mode: str, seeds: Any, *, at_once: int) -> Iterator[tuple[int, list]]:
        answers = []
        for dialogue in dialogues:
            *shown, asked = dialogue[0].parts
            assert all(isinstance(part, ImagePart) for part in shown)
            draws = mode == "image" or (mode == "interleaved" and "Nowhere" not in asked.text)
            answers.append([self.image] if draws else ["Red apple."] if mode == "text" else ["I don't know."])
        yield from reversed([*enumerate(answers)])


def test_everything_is_measured_and_shown(folder: Path, scorer: EfficientNetLite0, tmp_path: Path) -> None:
    cells = read_cells(folder)
    apple = next(cell for cell in cells if cell.split == "held_out_cell")
    pipeline: Any = Oracle(Image.open(apple.path).convert("RGB"))
    sheet = tmp_path / "sheet.png"
    report = measure_emoji(pipeline, folder, cells=cells, groups=GROUPS, scorer=scorer, count=4, sheet=sheet)
    scores = report["scores"]
    assert list(scores) == [group.name for group in GROUPS]
    for job in ("draw", "restyle"):
        assert scores[f"{job}, held-out cells"]["features"]["right_at_1"]["rate"] == 1
    assert scores["name, held-out cells"]["by_name"]["rate"] == 1 and scores["unknown, asked for"]["rate"] == 1
    assert scores["unknown, shown"]["rate"] == 0
    assert report["round_trip"]["features"]["right_at_5"]["total"] == 4
    assert all(group.name in as_table(report) for group in GROUPS)
    assert Image.open(sheet).width > 10 * SIZE


def test_drawings_of_captions_are_looked_for_among_all_captioned_images(
    folder: Path, scorer: EfficientNetLite0, tmp_path: Path
) -> None:
    """Every caption is answered with the image called "one" in one style: one of three is right."""
    own = tmp_path / "own"
    own.mkdir()
    for number, name in enumerate(("one", "two", "three", "both", "both", "")):
        shutil.copy(folder / "images" / f"{number}.png", own / f"{number}.PNG")
        (own / f"{number}.txt").write_text(f"{name}\n")
    cells = captions.read_captioned(own)
    assert [cell.name for cell in cells] == ["one", "two", "three"], "what several share names none of them"
    pipeline: Any = Oracle(Image.open(cells[0].path).convert("RGB"))
    sheet = tmp_path / "sheet.png"
    report = captions.measure_captions(pipeline, cells, scorer=scorer, count=9, sheet=sheet)
    for kind in ("ssim", "features"):
        found = report["scores"]["draw"][kind]
        assert (found["right_at_1"]["passed"], found["right_at_5"]["passed"], found["right_at_1"]["total"]) == (1, 3, 3)
    assert "3 drawings among 3 images" in captions.as_table(report) and Image.open(sheet).height > SIZE
    for wrong, what in ((tmp_path / "none", "no such folder"), (folder / "images", "got 0 in 0 captioned images")):
        with pytest.raises(ValueError, match=what):
            captions.read_captioned(wrong)


def test_damaged_images_and_captions_end_the_measurement_before_it_begins(folder: Path, tmp_path: Path) -> None:
    for number, words in enumerate((b"one\ntwo\n", b"three", b"caf\xe9", b"four")):
        shutil.copy(folder / "images" / f"{number}.png", tmp_path)
        (tmp_path / f"{number}.txt").write_bytes(words)
    image = tmp_path / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    cells = captions.read_captioned(tmp_path, skip_broken=True)
    assert [cell.name for cell in cells] == ["one\ntwo", "three"], "the words that the model was trained on"
    for broken in ("2.txt", "3.png"):
        with pytest.raises(ValueError, match=f"{broken} must be .*--skip-broken"):
            captions.read_captioned(tmp_path)
        (tmp_path / broken).unlink()
    (tmp_path / "0.txt").unlink()
    with pytest.raises(ValueError, match="at least two images"):
        captions.read_captioned(tmp_path, skip_broken=True)


# ---- retrieval ----


def images(count: int, side: int, *, seed: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)


def test_a_rank_counts_what_is_nearer_and_a_slightly_changed_image_finds_itself(scorer: EfficientNetLite0) -> None:
    similarity_BG = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.7, 0.7], [0.3, 0.2, 0.1]])
    assert ranks(similarity_BG, torch.tensor([1, 2, 2])).tolist() == [0, 0, 2]
    gallery_G3HW = images(7, 64, seed=0)
    gallery = Gallery(scorer, gallery_G3HW)
    drawn_B3HW = (gallery_G3HW[[4, 2]] + 0.02 * images(2, 64, seed=1)).clamp(-1, 1)
    right_B, wrong_B = torch.tensor([4, 2]), torch.tensor([2, 4])
    for ranks_of, drawn in (
        (gallery.ranks_by_ssim, drawn_B3HW),
        (gallery.ranks_by_features, features_of(scorer, drawn_B3HW)),
    ):
        assert ranks_of(drawn, right_B).tolist() == [0, 0] and ranks_of(drawn, wrong_B).min() > 0


def test_padding_is_that_of_tensorflow() -> None:
    wide = pad_same(torch.zeros(1, 1, 7, 8), nn.Conv2d(1, 1, 3, 2))
    assert wide.shape[2:] == (9, 9), "7 rows need one above and one below, 8 columns one on the right alone"
    marked = pad_same(torch.ones(1, 1, 8, 8), nn.Conv2d(1, 1, 3, 2))
    assert marked[0, 0, 0, 0] == 1 and marked[0, 0, -1, -1] == 0
