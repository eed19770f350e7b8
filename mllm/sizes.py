"""Which picture sizes a checkpoint reads and draws, and which of them suits a picture. Sizes are (width, height)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from mllm.config import MLLMConfig
from mllm.layout import Grid

Size = tuple[int, int]
"""(width, height) in pixels; a grid is (rows, columns) of positions."""


def default_size(config: MLLMConfig) -> Size:
    """The size of a picture that nobody gave a size."""
    return config.image_size, config.image_size


def supported_sizes(config: MLLMConfig) -> list[Size]:
    """All sizes of this checkpoint, the default first if it is one of them."""
    if config.sizes is not None:
        sizes = [(width, height) for width, height in config.sizes]
    elif config.image_layout == "grid":
        sides = range(1, config.max_grid_side + 1)
        sizes = [(columns * config.patch_size, rows * config.patch_size) for rows, columns in product(sides, sides)]
    else:
        sizes = [default_size(config)]
    return sorted(sizes, key=lambda size: size != default_size(config))


def grid_of(size: Size, config: MLLMConfig) -> Grid:
    """The grid of a size, if this checkpoint has it."""
    sizes = supported_sizes(config)
    if tuple(size) not in sizes:
        raise ValueError(
            f"this model has no pictures of {size[0]}x{size[1]}; use {' or '.join(f'{w}x{h}' for w, h in sizes)}"
            if len(sizes) <= 12
            else f"this model has no pictures of {size[0]}x{size[1]}; use multiples of {config.patch_size} up to "
            f"{config.max_grid_side * config.patch_size}"
        )
    return size[1] // config.patch_size, size[0] // config.patch_size


def trained_grids(config: MLLMConfig) -> list[Grid]:
    """The grids of the sizes that the config names, else that of the default size."""
    return [grid_of(size, config) for size in (supported_sizes(config) if config.sizes else [default_size(config)])]


def best_size(picture_size: Size, config: MLLMConfig) -> Size:
    """The size among `best_sizes` whose shape is nearest to a picture's, and of these the largest."""
    return nearest_size(picture_size, best_sizes(config))


def best_sizes(config: MLLMConfig) -> list[Size]:
    """Those that pictures are encoded at: the sizes that the config names, else those up to the default's area."""
    sizes = supported_sizes(config)
    if config.sizes is not None:
        return sizes
    default_area = default_size(config)[0] * default_size(config)[1]
    return [size for size in sizes if size[0] * size[1] <= default_area] or sizes


def nearest_size(picture_size: Size, sizes: Sequence[Size]) -> Size:
    """The size whose shape is nearest to a picture's, and of these the largest."""
    wanted = math.log(picture_size[0] / picture_size[1])
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - wanted), 6), -size[0] * size[1]))
