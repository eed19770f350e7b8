"""Connected components of a mask, in numpy: runs of pixels in each row, joined with those they touch in the row above.

Letters: H W pixels, R runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def find_runs(mask_HW: NDArray[np.bool_]) -> tuple[NDArray, NDArray, NDArray]:
    """Row, first column and column after the last of every run of true pixels, in reading order."""
    height, width = mask_HW.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask_HW
    steps = np.diff(padded, axis=1)
    rows_R, starts_R = np.nonzero(steps == 1)
    _, ends_R = np.nonzero(steps == -1)
    return rows_R, starts_R, ends_R


def label_components(mask_HW: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[int]]:
    """Labels 1, 2, ... of the components of touching pixels (by edge, not by corner), and the area of each label.

    Label 0 and area 0 stand for the pixels outside the mask.
    """
    rows_R, starts_R, ends_R = (values.tolist() for values in find_runs(mask_HW))
    parents = list(range(len(rows_R)))

    def find(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above = 0  # first run that may still touch: runs come in reading order, so this only moves on
    for run, row in enumerate(rows_R):
        while rows_R[above] < row - 1 or (rows_R[above] == row - 1 and ends_R[above] <= starts_R[run]):
            above += 1
        other = above
        while other < run and rows_R[other] == row - 1 and starts_R[other] < ends_R[run]:
            parents[find(run)] = find(other)
            other += 1
    numbers: dict[int, int] = {}
    areas = [0]
    labels_HW = np.zeros(mask_HW.shape, np.int32)
    for run, (row, start, end) in enumerate(zip(rows_R, starts_R, ends_R, strict=True)):
        root = find(run)
        label = numbers.setdefault(root, len(numbers) + 1)
        if label == len(areas):
            areas.append(0)
        areas[label] += end - start
        labels_HW[row, start:end] = label
    return labels_HW, areas


def erode(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbors are in the mask too; outside the picture counts as inside."""
    padded = np.pad(mask_HW, 1, mode="edge")
    return mask_HW & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def dilate(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the four neighbors of each of its pixels."""
    padded = np.pad(mask_HW, 1)
    return mask_HW | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
