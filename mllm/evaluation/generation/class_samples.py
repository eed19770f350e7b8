"""Class-conditional samples for the evaluator of ADM (Dhariwal and Nichol 2021): gFID, sFID, IS, precision, recall.

Question file: one class number a line, one picture for each (50,000 random ones in published numbers).
`mllm evaluate submit` writes samples_<N>x<H>x<W>x3.npz with `arr_0` (uint8 pictures) and `arr_1` (classes); the
evaluator is TensorFlow and runs in its own environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from mllm.evaluation.protocol import Answered, Benchmark, Item, ScoreOptions
from mllm.files import need_file

TOOL = (
    "write samples with `mllm evaluate submit`, then `git clone https://github.com/openai/guided-diffusion && pip "
    "install -r guided-diffusion/evaluations/requirements.txt` in its own environment and `python "
    "guided-diffusion/evaluations/evaluator.py VIRTUAL_imagenet256_labeled.npz SAMPLES.npz`"
)


def read_items(questions: Path, images: Path | None) -> list[Item]:
    """One item a line."""
    items = []
    for number, text in enumerate(need_file(questions).read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{questions}, line {number}"
        if not text.strip().isdecimal():
            raise ValueError(f"{where} is no class: found {text!r}; write one number a line")
        label, output = int(text), f"images/{number:06d}.png"
        items.append(Item(str(number), where, number, f"class {label}", output=output, fields={"class": label}))
    if not items:
        raise ValueError(f"{questions} names no class: found an empty file; write one number a line")
    return items


def submit(answered: Sequence[Answered], options: ScoreOptions) -> list[Path]:
    """The archive that the evaluator reads."""
    assert options.folder is not None, "a submission needs a folder"
    files = [one.image for one in answered if one.image is not None]
    height, width = np.asarray(Image.open(files[0])).shape[:2]
    pictures_MHW3 = np.empty((len(files), height, width, 3), dtype=np.uint8)
    for picture_HW3, file in zip(pictures_MHW3, files, strict=True):
        picture_HW3[:] = np.asarray(Image.open(file).convert("RGB"))
    path = options.folder / f"samples_{len(files)}x{height}x{width}x3.npz"
    labels_M = np.array([one.item.fields["class"] for one in answered], dtype=np.int64)
    np.savez(path, arr_0=pictures_MHW3, arr_1=labels_M)
    return [path]


def score(answered: Sequence[Answered], options: ScoreOptions) -> NoReturn:
    """Not here."""
    raise ValueError(f"class-conditional samples are scored by ADM's evaluator: found none here; {TOOL}")


BENCHMARK = Benchmark(
    name="class-samples",
    summary="Class-conditional samples: one class number a line; written for ADM's evaluator as .npz",
    read_items=read_items,
    score=score,
    submit=submit,
    mode="image",
    task="draw_class",
    needs_annotations=False,
)
