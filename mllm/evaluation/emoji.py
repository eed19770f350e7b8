"""Score a model on emoji: what it draws, names and changes, of images that it was trained on and of held-out ones.

In: a pipeline and the folder that `python -m scripts.emoji.build` wrote (cells.jsonl and images/). Out: rates by group
with 95 % intervals. A drawing is right at 1 if no other image of its style is nearer to it than the right one, at 5 if
at most four are (mllm/evaluation/retrieval.py); the right image itself after a round trip through the image tokenizer
is the ceiling. A name is right if it is the label or a keyword, with the skin tone. Nothing here knows how records are
made: the sentences below are some of those that the model was trained on.

Letters: B images, H W pixels.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from mllm.conversation import ImagePart, Message, Mode, TextPart
from mllm.emoji import DRAW, GENDER, NAME, RESTYLE, TONE
from mllm.engine.settings import Overrides
from mllm.evaluation.answerer import describe_measurement
from mllm.evaluation.intervals import as_rate, as_values
from mllm.evaluation.retrieval import EfficientNetLite0, Gallery, features_of
from mllm.files import counted, fingerprint_of, read_lines, write_image
from mllm.pipeline import Pipeline, batched
from tokenizer.images import GAP, ImageProcessor, read_image, to_images
from tokenizer.metrics import psnr
from tokenizer.unitok import UniTok

PROTOCOL = "emoji-2"
"""Name of the protocol; it changes when numbers are no longer comparable."""
CELLS_FILE, IMAGE_FOLDER = "cells.jsonl", "images"
DONT_KNOW = "don't know"
"""In every answer that says so."""
ROUND_TRIP = "round trip"
RANKS, RETRIEVALS = (1, 5), ("features", "ssim")
BATCH = 64
SHEET_DRAWINGS, SHEET_COLUMNS, CAPTION_HEIGHT, CAPTION_LENGTH = 100, 10, 26, 22


class Cell(NamedTuple):
    """An image: a thing in a style."""

    path: Path
    style: str
    name: str  # with the skin tone
    label: str
    tone: str | None
    gender: str | None
    thing: str  # the same for all genders and directions
    group: str
    keywords: frozenset[str]
    split: str

    @property
    def group_name(self) -> str:
        return self.group.replace("-", " and ")

    def is_named(self, answer: str) -> bool:
        """Whether an answer is the label or a keyword, with the skin tone."""
        tone = f" with {self.tone} skin tone" if self.tone else ""
        plain = self.name.removesuffix(tone)
        return answer in {f"{name}{tone}".casefold() for name in (plain, self.label, *self.keywords)}


class CellItem(NamedTuple):
    """A question, and the image whose drawing or name is right."""

    question: str
    right: Cell
    shown: Cell | None = None


class Drawing(NamedTuple):
    """What was drawn for an item of a group; no image where the model declined."""

    group: str
    right: Cell
    image: Image.Image | None


class Group(NamedTuple):
    """Items that share one row of the table."""

    job: str
    of: str
    split: str
    draws: bool = True

    @property
    def name(self) -> str:
        return f"{self.job}, {self.of}"


GROUPS = (
    Group("draw", "seen", "train"),
    Group("draw", "held-out cells", "held_out_cell"),
    Group("name", "seen", "train", draws=False),
    Group("name", "held-out cells", "held_out_cell", draws=False),
    Group("restyle", "held-out cells", "held_out_cell"),
    Group("tone", "held-out variants", "held_out_variant"),
    Group("gender", "held-out variants", "held_out_variant"),
    Group("unknown", "asked for", "held_out_thing"),
    Group("unknown", "shown", "held_out_thing", draws=False),
)
CHANGES: dict[str, tuple[str, str, Callable[[Cell], Hashable]]] = {
    "restyle": ("style", RESTYLE, attrgetter("name")),
    "tone": ("tone", TONE, attrgetter("label", "style")),
    "gender": ("gender", GENDER, lambda cell: (cell.thing, cell.style, cell.tone, cell.label.endswith("facing right"))),
}
"""What changes, in which words, and what stays the same."""


def read_cells(folder: Path) -> list[Cell]:
    path = folder / CELLS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"the data must be a folder of `python -m scripts.emoji.build`, got {folder} without {CELLS_FILE}; "
            "correct the path"
        )
    cells = []
    for where, line in read_lines(path):
        try:
            values = {name: line[name] for name in Cell._fields}
        except KeyError as error:
            raise ValueError(f"{where} must have the key {error}, got none; build the data again") from None
        about = {"path": folder / IMAGE_FOLDER / line["path"], "keywords": frozenset(line["keywords"])}
        cells.append(Cell(**{**values, **about}))
    if not cells:
        raise ValueError(f"{path} must name images, got none; build the data again")
    return cells


def measure_emoji(
    pipeline: Pipeline,
    folder: Path,
    *,
    cells: Sequence[Cell],
    groups: Sequence[Group],
    scorer: EfficientNetLite0,
    count: int,
    seed: int = 0,
    batch_size: int = 32,
    sampling: Overrides | None = None,
    sheet: Path | None = None,
) -> dict:
    """Every score of a model on emoji, with the settings it was measured with, as one dictionary for JSON.

    Args:
        folder: of the data; `cells` are its images.
        scorer: whose features say which images are similar.
        count: items of each group, and images of the round trip.
        sampling: settings of images where not the checkpoint's.
        sheet: file for the first drawings by name, none of them hand-picked.
    """
    size, sampling = pipeline.config.image_size, sampling or {}
    scores: dict[str, dict] = {}
    checks = {"resamples": pipeline.config.image_resamples}  # 0: single attempts, which the model does not look at
    sampled = Random(f"{ROUND_TRIP}/{seed}").sample(cells, min(count, len(cells)))
    drawings, decibels = round_trip(sampled, pipeline.processor.need_image_tokenizer())
    for group in groups:
        items = make_items(group, cells, count, seed=seed)
        mode: Mode = "interleaved" if group.draws else "text"  # it may answer in words where it is asked to draw
        chosen = sampling if group.draws else Overrides()
        answers = answer_items(
            pipeline, items, name=group.name, mode=mode, seed=seed, batch_size=batch_size, sampling=chosen
        )
        if group.draws:
            drawings += drawings_of(group.name, items, answers)
        else:
            scores[group.name] = score_texts(group, items, [" ".join(map(str, parts)) for parts in answers])
    names = [ROUND_TRIP, *(group.name for group in groups if group.draws)]
    scores |= score_drawings(drawings, names, cells, scorer=scorer, size=size)
    ceiling = {"psnr": decibels, **scores.pop(ROUND_TRIP)}
    if sheet is not None:
        drawn_by_name = (
            [each for each in drawings if each.group == group.name] for group in GROUPS if group.job == "draw"
        )
        half = SHEET_DRAWINGS // 2
        draw_sheet([each for some in drawn_by_name for each in some[:half]], sheet, size=size)
    return {
        "protocol": PROTOCOL,
        **describe_measurement(pipeline, sampling, seed=seed, count=count, image_size=size, more=checks),
        "data": fingerprint_of(folder / CELLS_FILE),
        "round_trip": ceiling,
        "scores": {group.name: scores[group.name] for group in groups},
    }


def make_items(group: Group, cells: Sequence[Cell], count: int, *, seed: int) -> list[CellItem]:
    """Up to `count` items, at random; the same arguments give the same ones."""
    rng = Random(f"items/{seed}/{group.name}")
    if group.job in CHANGES:
        found = list(changes(group, cells, rng))
    else:
        of_split = [cell for cell in cells if cell.split == group.split]
        found = [
            CellItem(DRAW.format(name=cell.name, style=cell.style), cell) if group.draws else CellItem(NAME, cell, cell)
            for cell in of_split
        ]
    return rng.sample(found, min(count, len(found)))


def changes(group: Group, cells: Sequence[Cell], rng: Random) -> Iterator[CellItem]:
    """From an image that was trained on to one that was not; only where the words name one image."""
    attribute, words, kept = CHANGES[group.job]
    alike = defaultdict(list)
    for cell in cells:
        alike[kept(cell)].append(cell)
    for cell in cells:
        value, mates = getattr(cell, attribute), alike[kept(cell)]
        known = [mate for mate in mates if mate.split == "train" and getattr(mate, attribute) != value]
        if cell.split == group.split and known and [getattr(mate, attribute) for mate in mates].count(value) == 1:
            yield CellItem(words.format(**{attribute: value or "person"}), cell, rng.choice(known))


def answer_items(
    pipeline: Pipeline,
    items: Sequence[CellItem],
    *,
    name: str,
    mode: Mode,
    seed: int,
    batch_size: int,
    sampling: Overrides,
) -> list[list[str | Image.Image]]:
    """What the model answers, item by item. `name`: what the progress bar says."""
    dialogues = (
        [Message("user", (*([ImagePart(read_image(shown.path))] if shown else []), TextPart(question)))]
        for question, _, shown in items
    )
    seeds = range(seed, seed + len(items))
    found = pipeline.answer_each(dialogues, mode, seeds, at_once=batch_size, **sampling)
    answers = dict(tqdm(found, total=len(items), desc=name, leave=False))
    return [answers[index] for index in range(len(items))]


def drawings_of(name: str, items: Sequence[CellItem], answers: Sequence[Sequence[str | Image.Image]]) -> list[Drawing]:
    """The first image of each answer."""
    images = (next((part for part in parts if isinstance(part, Image.Image)), None) for parts in answers)
    return [Drawing(name, item.right, image) for item, image in zip(items, images, strict=True)]


def score_texts(group: Group, items: Sequence[CellItem], answers: Sequence[str]) -> dict:
    """Names; or, of things that it does not know, whether it says so, and whether it names their group."""
    plain = (" ".join(answer.split()).strip(" .").casefold() for answer in answers)
    pairs = [(item.right, answer) for item, answer in zip(items, plain, strict=True)]
    if group.job == "unknown":
        in_group = as_values(cell.group_name in answer for cell, answer in pairs)
        return {**as_values(DONT_KNOW in answer for _, answer in pairs), "group": in_group}
    by_name = as_values(answer == cell.name.casefold() for cell, answer in pairs)
    return {**as_values(cell.is_named(answer) for cell, answer in pairs), "by_name": by_name}


@torch.inference_mode()
def round_trip(cells: Sequence[Cell], tokenizer: UniTok) -> tuple[list[Drawing], float]:
    """Images through the image tokenizer and back, and their mean PSNR."""
    drawings: list[Drawing] = []
    decibels: list[float] = []
    for some in batched(cells, BATCH):
        pixels_B3HW = read_pixels(some, tokenizer.config.image_size).to(tokenizer.device)
        decoded_B3HW = tokenizer.decode(tokenizer.encode(pixels_B3HW), grid=tokenizer.grid_of(pixels_B3HW))
        decibels += psnr(decoded_B3HW.clamp(-1, 1), pixels_B3HW).tolist()
        drawings += map(Drawing, repeat(ROUND_TRIP), some, to_images(decoded_B3HW))
    return drawings, sum(decibels) / max(1, len(decibels))


def read_pixels(cells: Sequence[Cell], size: int) -> torch.Tensor:
    return ImageProcessor(width=size, height=size)([read_image(cell.path) for cell in cells])


@torch.inference_mode()
def score_drawings(
    drawings: Sequence[Drawing], names: Sequence[str], cells: Sequence[Cell], *, scorer: EfficientNetLite0, size: int
) -> dict[str, dict]:
    """Rates of these groups: right at 1 and at 5, by features and by SSIM; of what was declined nothing is right."""
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    prepare = ImageProcessor(width=size, height=size)
    for style in tqdm(sorted({drawing.right.style for drawing in drawings}), desc="retrieval", leave=False):
        of_style = [cell for cell in cells if cell.style == style]
        index_of = {cell.path: number for number, cell in enumerate(of_style)}
        drawn = [each for each in drawings if each.right.style == style and each.image is not None]
        if not drawn:
            continue
        gallery = Gallery(scorer, read_pixels(of_style, size))
        pixels_B3HW = prepare([each.image for each in drawn if each.image is not None])
        right_B = torch.tensor([index_of[each.right.path] for each in drawn])
        by_features = gallery.ranks_by_features(features_of(scorer, pixels_B3HW), right_B)
        for kind, ranks_B in zip(RETRIEVALS, (by_features, gallery.ranks_by_ssim(pixels_B3HW, right_B)), strict=True):
            for each, rank in zip(drawn, ranks_B.tolist(), strict=True):
                ranks[each.group, kind].append(rank)
    return {name: score_group(name, drawings, ranks) for name in names}


def score_group(name: str, drawings: Sequence[Drawing], ranks: dict[tuple[str, str], list[int]]) -> dict:
    is_declined = [each.image is None for each in drawings if each.group == name]
    if name.startswith("unknown"):
        return as_values(is_declined)
    declined = is_declined.count(True)
    found = {kind: [*ranks[name, kind], *[math.inf] * declined] for kind in RETRIEVALS}
    rates = {
        kind: {f"right_at_{most}": as_values(rank < most for rank in each) for most in RANKS}
        for kind, each in found.items()
    }
    return {**rates, "declined": declined}


def draw_sheet(shown: Sequence[Drawing], path: Path, *, size: int) -> None:
    """Drawings, each with what was asked for; empty where declined."""
    width, height = size + GAP, size + CAPTION_HEIGHT
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, -(-len(shown) // SHEET_COLUMNS) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, (_, right, image) in enumerate(shown):
        left, top = number % SHEET_COLUMNS * width, number // SHEET_COLUMNS * height
        if image is not None:
            sheet.paste(image, (left, top))
        name = " ".join(right.name.split())  # a caption of one's own may have several lines
        name = name if len(name) <= CAPTION_LENGTH else f"{name[: CAPTION_LENGTH - 3]}..."
        about = f"{right.style}, held out" if right.split == "held_out_cell" else right.style
        pen.text((left, top + size), f"{name}\n{about}", "black", font)
    write_image(path, sheet)


def as_table(report: dict) -> str:
    return table_of(report, f"up to {counted(report['count'], 'item')} of each kind")


def table_of(report: dict, about: str) -> str:
    lines = [
        f"{report['protocol']}: {about}, seed {report['seed']}",
        f"model {report['model']}, image tokenizer {report['image_tokenizer']}, data {report['data']}",
        ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None),
        "",
    ]
    lines += rows_of(f"{ROUND_TRIP}, PSNR {report['round_trip']['psnr']:.1f} dB", report["round_trip"])
    for name, values in report["scores"].items():
        lines += rows_of(name, values)
    return "\n".join(lines)


def rows_of(name: str, values: dict) -> list[str]:
    """A rate, or a row for every kind of retrieval."""
    if "features" not in values:
        more = {"by_name": "by its name alone", "group": "names the group"}
        rows = [f"{name:<28} {as_rate(values)}"]
        return rows + [f"  {words:<26} {as_rate(values[key])}" for key, words in more.items() if key in values]
    rows = [name + (f", {values['declined']} declined" if values["declined"] else "")]
    for kind in RETRIEVALS:
        for most in RANKS:
            rows.append(f"  {f'right at {most}, by {kind}':<26} {as_rate(values[kind][f'right_at_{most}'])}")
    return rows
