"""Make training data of emoji: from npm packages to images, tars, records and the attribution.

usage: python -m scripts.emoji.build OUT [--styles noto twemoji flat gradient] [--size 128] [--packages DIR]

Needs `pip install -r scripts/emoji/requirements.txt`, and npm unless the packages are in OUT/packages. It writes

    OUT/images/STYLE/NAME.png    every image, on white
    OUT/images/augmented/NUMBER/ images of the training split, shifted, lit, mirrored, with colors exchanged
    OUT/cells.jsonl              of every image path, style, name, label, keywords, group, tone, gender, thing, split
    OUT/tokenizer/00000.tar ...  images and captions that the image tokenizer is trained on
    OUT/records/JOB/JOB.jsonl    chat messages for `mllm prepare OUT/records/JOB --images OUT/images`
    OUT/ATTRIBUTION.md           authors and licences; goes wherever the images or weights go

What is held out (scripts/emoji/splits.py) is in images/ and cells.jsonl alone. An interrupted run resumes: existing
images are kept, everything else is written again. For two styles 121,000 augmented images take about ten minutes on one
core.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mllm.files import whole_file, write_lines, write_text
from scripts.emoji.records import LIT, MIXED, MIXED_COLORS, OTHER_COLORS, make_records
from scripts.emoji.sources import STYLES, Cell, Packages, read_cells, read_nouns, read_symbol_names
from tokenizer.images import read_image

logger = logging.getLogger(__name__)

CELLS_PER_TAR = 640
BACKGROUND = "white"
MAX_SHIFT = 12
"""Pixels of 128; of more, too much of an image would be cut off."""


def render(svg: str, path: Path, size: int) -> None:
    """Draw an SVG as a square PNG without transparency."""
    import resvg_py  # the only file and the only step that needs it

    options = {"width": size, "height": size, "background": BACKGROUND, "skip_system_fonts": True}
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, **options)
    except ValueError as error:
        raise ValueError(f"{path.stem} must be a valid SVG, got {error}; download its package again") from None
    with whole_file(path) as unfinished:
        unfinished.write_bytes(bytes(png))


def render_all(cells: list[Cell], folder: Path, *, size: int, num_processes: int) -> None:
    """Draw the images that are missing."""
    missing = [cell for cell in cells if not (folder / cell.path).is_file()]
    logger.info("%d images, %d to draw", len(cells), len(missing))
    if missing:
        with ProcessPoolExecutor(num_processes) as pool:
            svgs, paths = [cell.svg for cell in missing], [folder / cell.path for cell in missing]
            list(pool.map(render, svgs, paths, [size] * len(missing), chunksize=32))


def augment(images: Sequence[Image.Image], number: int) -> Image.Image:
    """Change an image, or mix two, as a number says, in the same way for all images."""
    rng, (image, *_) = Random(f"augment/{number}"), images
    if number in (*MIXED, *MIXED_COLORS):
        image = mix([turn(each, rng) for each in images], rng)
    else:
        shift = [rng.randint(-MAX_SHIFT, MAX_SHIFT) * image.width // 128 for _ in range(2)]
        if number in LIT:
            image = light(image, rng)
        elif rng.random() < 0.5:
            image = ImageOps.mirror(image)
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(image, (shift[0], shift[1]))
        image = canvas
    if number in (*OTHER_COLORS, *MIXED_COLORS):
        image = Image.merge("RGB", rng.sample(image.split(), 3))
    return image


def turn(image: Image.Image, rng: Random) -> Image.Image:
    """Turn, scale, shift and perhaps mirror an image."""
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    center, angle, zoom = image.width / 2, math.radians(rng.uniform(-40, 40)), 1 / rng.uniform(0.75, 1.35)
    across, down = zoom * math.cos(angle), zoom * math.sin(angle)
    x, y = (center + rng.uniform(-2, 2) * MAX_SHIFT * image.width / 128 for _ in range(2))
    matrix = (across, down, center - across * x - down * y, -down, across, center + down * x - across * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=BACKGROUND)


def mix(images: Sequence[Image.Image], rng: Random) -> Image.Image:
    """Two images, one on each side of a line through the middle half of a square."""
    first, second = images
    side, angle = first.width, rng.uniform(0, 2 * math.pi)
    middle = [rng.uniform(0.25, 0.75) * side for _ in range(2)]
    down, across = np.mgrid[:side, :side]
    is_first = (across - middle[0]) * math.cos(angle) + (down - middle[1]) * math.sin(angle) > 0
    return Image.composite(first, second, Image.fromarray(is_first))


def light(image: Image.Image, rng: Random) -> Image.Image:
    """Other brightness, contrast and saturation, and light from a side, on everything that is not white."""
    is_white = (np.asarray(image) == 255).all(-1)
    for enhance in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness):
        image = enhance(image).enhance(rng.uniform(0.75, 1.2))
    pixels, angle, strength = np.asarray(image, dtype=np.float32), rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.4)
    height, width, _ = pixels.shape
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    lit = pixels * (1 + strength * (across * math.cos(angle) + down * math.sin(angle)))[..., None]
    lit[is_white] = 255
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def write_augmented(path: str, images: Path) -> None:
    _, number, style, names = path.removesuffix(".png").split("/")
    originals = [read_image(images / style / f"{name}.png") for name in names.split("+")]
    with whole_file(images / path) as unfinished:
        augment(originals, int(number)).save(unfinished, format="PNG")


def augment_all(records: list[dict], images: Path, *, num_processes: int) -> None:
    """Make the augmented images of the records that are missing."""
    items = (item for record in records for turn in record["messages"] for item in turn["content"])
    paths = {item["path"] for item in items if item.get("path", "").startswith("augmented/")}
    missing = [path for path in sorted(paths) if not (images / path).is_file()]
    if missing:
        logger.info("%d images to augment", len(missing))
        with ProcessPoolExecutor(num_processes) as pool:
            list(pool.map(partial(write_augmented, images=images), missing, chunksize=64))


def write_tars(cells: list[Cell], images: Path, folder: Path) -> int:
    """The training split as WebDataset tars, all styles mixed; returns how many tars there are."""
    training = [cell for cell in cells if cell.split == "train"]
    Random("tars").shuffle(training)
    num_tars = -(-len(training) // CELLS_PER_TAR)
    for number in range(num_tars):
        with whole_file(folder / f"{number:05}.tar") as unfinished, tarfile.open(unfinished, "w") as tar:
            for cell in training[number::num_tars]:
                key = cell.path.removesuffix(".png").replace("/", "-")
                caption = f"{cell.emoji.name}, {cell.style} style"
                add_member(tar, f"{key}.png", (images / cell.path).read_bytes())
                add_member(tar, f"{key}.txt", caption.encode())
    return num_tars


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into a tar, the same bytes at every run."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def describe(cell: Cell) -> dict:
    """A line of cells.jsonl."""
    names = ("name", "label", "tone", "gender", "thing", "group", "subgroup", "keywords")
    about = {name: getattr(cell.emoji, name) for name in names}
    return {"path": cell.path, "style": cell.style, **about, "split": cell.split}


def attribution(styles: list[str], size: int) -> str:
    """Who drew the images and named them; what the licences ask for."""
    rows = [(name, each.title, each.author, each.license, each.url) for name in styles for each in [STYLES[name]]]
    images = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Attribution

Images, drawn at {size} x {size} pixels on white, from the packages of the Iconify project
({", ".join(STYLES[name].package for name in styles)}):

| style | set | author | licence | source |
|---|---|---|---|---|
{images}

Names, keywords and groups: emojibase-data (Miles Johnson, MIT, https://github.com/milesj/emojibase) and the
annotations of Unicode CLDR (Unicode, Inc., Unicode-3.0, https://github.com/unicode-org/cldr-json). Names of what
is declined: WordNet 3.1 (Princeton University, https://wordnet.princeton.edu/license-and-commercial-use).

Licences: Apache-2.0 https://www.apache.org/licenses/LICENSE-2.0, CC-BY-4.0 https://creativecommons.org/licenses/by/4.0/,
MIT https://opensource.org/license/mit, Unicode-3.0 https://www.unicode.org/license.txt. The images were converted
from SVG and not changed otherwise. What a model draws after training on them resembles them; the authors do not
endorse it.
"""


def build(folder: Path, *, styles: list[str], size: int, packages: Path, num_processes: int) -> None:
    """Write everything that the head of this file lists."""
    found = Packages(packages)
    cells = read_cells(found, styles)
    render_all(cells, folder / "images", size=size, num_processes=num_processes)
    write_lines(folder / "cells.jsonl", map(describe, cells))
    num_tars = write_tars(cells, folder / "images", folder / "tokenizer")
    logger.info("%d tars, splits %s", num_tars, dict(Counter(cell.split for cell in cells)))
    other_names = [*read_symbol_names(found), *read_nouns(found)]
    for job, made in make_records(cells, other_names=other_names).items():
        records = list(made)
        augment_all(records, folder / "images", num_processes=num_processes)
        write_lines(folder / "records" / job / f"{job}.jsonl", records)
    write_text(folder / "ATTRIBUTION.md", attribution(styles, size))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--styles", nargs="+", choices=sorted(STYLES), default=list(STYLES))
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--packages", type=Path, help="folder of package files (default: OUT/packages)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    packages = args.packages or args.out / "packages"
    try:
        build(args.out, styles=args.styles, size=args.size, packages=packages, num_processes=args.processes)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
