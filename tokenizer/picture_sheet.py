"""A sheet of pictures for the eye: each original above its reconstruction, or pictures in a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

GAP = 4
"""Pixels between pictures."""


def reconstruction_sheet(originals_B3HW: Tensor, reconstructions_B3HW: Tensor, *, per_row: int = 6) -> Image.Image:
    """Pairs side by side, `per_row` pairs a row; pixels in [-1, 1]."""
    pairs_B3HW = torch.cat([originals_B3HW, reconstructions_B3HW], dim=2)
    padded_B3HW = torch.nn.functional.pad(pairs_B3HW, (GAP, GAP, GAP, GAP), value=1.0)
    rows = [torch.cat(list(row), dim=2) for row in padded_B3HW.split(per_row)]
    widest = max(row.shape[2] for row in rows)
    rows = [torch.nn.functional.pad(row, (0, widest - row.shape[2]), value=1.0) for row in rows]
    sheet_HW3 = torch.cat(rows, dim=1).permute(1, 2, 0)
    return Image.fromarray(((sheet_HW3.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of any size in one row."""
    width = sum(picture.width + GAP for picture in pictures) - GAP
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet
