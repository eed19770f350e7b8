"""Score a model on a folder of captioned images of one's own: is what it draws of a caption nearest to the right image?

In: a pipeline and a folder with `NAME.txt` beside `NAME.png`, as `mllm prepare` reads it. Out: how many drawings are
right at 1 and at 5 (mllm/evaluation/retrieval.py), and as a ceiling the same of the images themselves after a round
trip through the image tokenizer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

from mllm.engine.settings import Overrides
from mllm.evaluation.answerer import describe_measurement
from mllm.evaluation.emoji import (
    ROUND_TRIP,
    SHEET_DRAWINGS,
    Cell,
    CellItem,
    answer_items,
    draw_sheet,
    drawings_of,
    round_trip,
    score_drawings,
    table_of,
)
from mllm.evaluation.retrieval import EfficientNetLite0
from mllm.files import counted, read_text
from mllm.pipeline import Pipeline
from tokenizer.images import files_below, find_captions, read_image

logger = logging.getLogger(__name__)

PROTOCOL, DRAWN = "captions-1", "draw"


def read_captioned(folder: Path, *, skip_broken: bool = False) -> list[Cell]:
    """The captioned images of a folder; those of a caption that several have cannot be told apart and are left out.

    Args:
        skip_broken: leave out damaged images and captions; otherwise the first one is an error.
    """
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise ValueError(f"FOLDER must be a folder of captioned images, got {folder}, {what}; correct the path")
    words: dict[Path, str] = {}
    for image, caption in find_captions(files_below(folder)).items():
        try:
            read_image(image)  # a damaged one would end the measurement after all drawings are made
            words[image] = read_text(caption).strip()
        except ValueError as error:
            if not skip_broken:
                raise ValueError(f"{error} (or leave such images out with --skip-broken)") from error
            logger.warning("left out: %s", error)
    times = Counter(words.values())
    found = [
        Cell(image, "", text, text, None, None, text, "", frozenset(), "train")
        for image, text in words.items()
        if text and times[text] == 1
    ]
    if len(found) < 2:
        raise ValueError(
            f"{folder} must hold at least two images with captions of their own (1.txt beside 1.png), got {len(found)} "
            f"in {counted(len(words), 'captioned image')}; add images, or write different captions"
        )
    return found


def measure_captions(
    pipeline: Pipeline,
    cells: Sequence[Cell],
    *,
    scorer: EfficientNetLite0,
    count: int,
    seed: int = 0,
    batch_size: int = 32,
    sampling: Overrides | None = None,
    sheet: Path | None = None,
) -> dict:
    """How many drawings of captions are right, with the settings they were drawn with, as one dictionary for JSON.

    Args:
        cells: of `read_captioned`; the right image is to be found among all of them.
        count: captions that are drawn, at random.
        sheet: file for the first drawings.
    """
    size, sampling = pipeline.config.image_size, sampling or {}
    checks = {"resamples": pipeline.config.image_resamples}
    chosen = Random(f"captions/{seed}").sample(cells, min(count, len(cells)))
    drawings, decibels = round_trip(chosen, pipeline.processor.need_image_tokenizer())
    items = [CellItem(cell.name, cell) for cell in chosen]
    answers = answer_items(
        pipeline, items, name=DRAWN, mode="image", seed=seed, batch_size=batch_size, sampling=sampling
    )
    drawn = drawings_of(DRAWN, items, answers)
    scores = score_drawings([*drawings, *drawn], [ROUND_TRIP, DRAWN], cells, scorer=scorer, size=size)
    if sheet is not None:
        draw_sheet(drawn[:SHEET_DRAWINGS], sheet, size=size)
    names = "".join(sorted(f"{cell.path.name}\n{cell.name}\n" for cell in cells))
    return {
        "protocol": PROTOCOL,
        **describe_measurement(pipeline, sampling, seed=seed, count=count, image_size=size, more=checks),
        "images": len(cells),
        "data": sha256(names.encode()).hexdigest()[:16],
        "round_trip": {"psnr": decibels, **scores[ROUND_TRIP]},
        "scores": {DRAWN: scores[DRAWN]},
    }


def as_table(report: dict) -> str:
    number = report["scores"][DRAWN]["ssim"]["right_at_1"]["total"]
    return table_of(report, f"{counted(number, 'drawing')} among {counted(report['images'], 'image')}")
