"""Through the codes and back: how close pictures come back, and how well the codebooks are used.

In: a tokenizer and pictures. Out: scores with intervals, numbers per codebook, and where wanted the cropped references
and their reconstructions as PNG files, one folder each, for FID: both sides are cropped alike.

Letters: B batch, H W pixels, K codebooks, C entries per codebook, N positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mllm.evaluation.benchmark import Score
from mllm.evaluation.bootstrap import mean_of_many
from mllm.evaluation.laboratory.measured import MeasuredTokenizer
from mllm.evaluation.laboratory.pictures import Named, in_batches
from tokenizer.image_processor import ImageProcessor, to_images
from tokenizer.metrics import bits_per_picture, code_counts, entropy_of, psnr, ssim, usage_of
from tokenizer.picture_sheet import reconstruction_sheet

ON_THE_SHEET = 12
REFERENCE, RECONSTRUCTION, SHEET = "reference", "reconstruction", "sheet.png"


@dataclass(slots=True)
class Tally:
    """What was seen so far."""

    values: dict[str, list[float]] = field(default_factory=dict)
    counts_KC: Tensor | None = None
    positions: int = 0
    shown: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, name: str, values_B: Tensor) -> None:
        self.values.setdefault(name, []).extend(values_B.tolist())


@torch.no_grad()
def measure_reconstruction(
    tokenizer: MeasuredTokenizer,
    pictures: Iterator[Named],
    *,
    prepare: ImageProcessor,
    output: Path,
    batch_size: int,
    lpips: nn.Module | None = None,
    keeps_files: bool = False,
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Scores, and what is no score.

    Args:
        lpips: a distance of two batches in [-1, 1], on its own device.
        keeps_files: write references and reconstructions.
    """
    tally, number = Tally(), 0
    for folder in (output / REFERENCE, output / RECONSTRUCTION) if keeps_files else ():
        remove_pictures(folder)
    for batch in tqdm(in_batches(pictures, batch_size), desc="reconstructions", unit="batch"):
        pixels_B3HW = prepare([named.image for named in batch])
        codes_BKN = tokenizer.encode(pixels_B3HW)
        again_B3HW = tokenizer.decode(codes_BKN).float().clamp(-1, 1)
        tally.add("PSNR", psnr(again_B3HW, pixels_B3HW))
        tally.add("SSIM", ssim(again_B3HW, pixels_B3HW))
        if lpips is not None:
            place = next(lpips.buffers()).device
            tally.add("LPIPS", lpips(again_B3HW.to(place), pixels_B3HW.to(place)))
        counts_KC = code_counts(codes_BKN, tokenizer.codebook_size)
        tally.counts_KC = counts_KC if tally.counts_KC is None else tally.counts_KC + counts_KC
        tally.positions = codes_BKN.shape[2]
        if number < ON_THE_SHEET:
            tally.shown.append((pixels_B3HW, again_B3HW))
        if keeps_files:
            write_pictures(output / REFERENCE, pixels_B3HW, number)
            write_pictures(output / RECONSTRUCTION, again_B3HW, number)
        number += len(batch)
    output.mkdir(parents=True, exist_ok=True)
    originals, reconstructions = (torch.cat(part)[:ON_THE_SHEET] for part in zip(*tally.shown, strict=True))
    reconstruction_sheet(originals, reconstructions).save(output / SHEET)
    return {name: mean_of_many(values) for name, values in tally.values.items()}, describe_codes(tally)


def remove_pictures(folder: Path) -> None:
    """Take away what `write_pictures` left there before: FID is over a whole folder, whoever wrote it."""
    for path in folder.glob("[0-9]" * 6 + ".png"):
        path.unlink()


def write_pictures(folder: Path, pixels_B3HW: Tensor, first: int) -> None:
    """Numbered PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(to_images(pixels_B3HW), start=first):
        picture.save(folder / f"{number:06d}.png")


def describe_codes(tally: Tally) -> dict[str, Any]:
    """Usage, entropy (nats) and perplexity of each codebook."""
    assert tally.counts_KC is not None, "there was at least one picture"
    entropy_K = entropy_of(tally.counts_KC)
    return {
        "tokens": tally.positions,
        "codebooks": len(entropy_K),
        "usage": usage_of(tally.counts_KC).tolist(),
        "entropy": entropy_K.tolist(),
        "perplexity": entropy_K.exp().tolist(),
        "bits_per_picture": bits_per_picture(entropy_K, tally.positions),
    }
