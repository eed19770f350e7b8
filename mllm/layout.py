"""Which tokens one image is made of, in order: the single home of the image layouts.

In: a grid (rows, columns) of image positions. Out: the token ids of the whole image, from begin-of-image to
end-of-image, with `image_token_id` where a position holds K codes. Training lays images out with it, and the decoding
loop follows it token by token, so a size or a new line is never sampled. Knows nothing of codes, models or text.

    fixed   begin, image * N, end                           one grid for all images (the released model)
    bare    image * N                                       one grid, and nothing around it (class-conditional models)
    grid    begin, rows-size, columns-size, (image * columns, new-line) * rows, end           any grid up to `max_side`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mllm.config import MLLMConfig

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLayout:
    """The ids that frame an image, and the rule by which they are put together."""

    kind: Literal["fixed", "grid", "bare"]
    begin_image_id: int
    end_image_id: int
    image_token_id: int
    """Stands at every image position in the token ids; never a text token."""
    default_grid: Grid
    """(rows, columns) of an image whose size nobody asked for; the only grid of the fixed layout."""
    new_line_id: int | None = None
    """Ends every row (grid layout)."""
    first_row_size_id: int | None = None
    """Id of "one row"; "n rows" is n - 1 ids later (grid layout)."""
    first_column_size_id: int | None = None
    """Id of "one column"; "n columns" is n - 1 ids later (grid layout)."""
    max_side: int | None = None
    """How many rows or columns have a size token (grid layout)."""
    begin_outline_id: int | None = None
    """Begins what stands before an image and belongs to it: its size, where sizes differ, and words. None: nothing."""

    def __post_init__(self) -> None:
        if self.kind not in ("fixed", "grid", "bare"):
            raise ValueError(f"unknown image layout: found {self.kind!r}; use 'fixed', 'grid' or 'bare'")
        grid_ids = (self.new_line_id, self.first_row_size_id, self.first_column_size_id, self.max_side)
        if self.kind == "grid" and None in grid_ids:
            raise ValueError(
                f"the grid layout lacks ids: found (new line, first row size, first column size, max side) = "
                f"{grid_ids}; set them all in the model's config"
            )

    @classmethod
    def from_config(cls, config: MLLMConfig) -> ImageLayout:
        """The layout a checkpoint was trained with."""
        side = config.image_size // config.patch_size
        is_grid = config.image_layout == "grid"
        return cls(
            kind=config.image_layout,
            begin_image_id=config.begin_image_id,
            end_image_id=config.end_image_id,
            image_token_id=config.image_token_id,
            default_grid=(side, side),
            new_line_id=config.new_line_id if is_grid else None,
            first_row_size_id=config.first_row_size_id if is_grid else None,
            first_column_size_id=config.first_column_size_id if is_grid else None,
            max_side=config.max_grid_side if is_grid else None,
            begin_outline_id=config.begin_outline_id,
        )

    @property
    def opening_ids(self) -> set[int]:
        """What an image can begin with."""
        return {id_ for id_ in (self.begin_image_id, self.begin_outline_id) if id_ is not None}

    def body_ids(self, grid: Grid) -> list[int]:
        """Everything between begin-of-image and end-of-image."""
        rows, columns = self.check(grid)
        if self.kind != "grid":
            return [self.image_token_id] * (rows * columns)
        row_ids = [self.image_token_id] * columns + [self.new_line_id]
        return self.size_ids(grid) + row_ids * rows

    def size_ids(self, grid: Grid) -> list[int]:
        """The tokens that say how large an image is; none in layouts of one grid."""
        rows, columns = self.check(grid)
        if self.kind != "grid":
            return []
        return [self.first_row_size_id + rows - 1, self.first_column_size_id + columns - 1]

    def outline_opening(self, grid: Grid) -> list[int]:
        """What stands before the words of an image's outline: the marker and, where sizes differ, the size, as what can
        be where depends on it. Empty where there are no outlines."""
        return [] if self.begin_outline_id is None else [self.begin_outline_id, *self.size_ids(grid)]

    def token_ids(self, grid: Grid) -> list[int]:
        """One whole image in reading order, with what frames it."""
        if self.kind == "bare":
            return self.body_ids(grid)
        return [self.begin_image_id, *self.body_ids(grid), self.end_image_id]

    def num_tokens(self, grid: Grid) -> int:
        """Places in the sequence that one whole image takes."""
        rows, columns = self.check(grid)
        num_framing = {"fixed": 2, "grid": rows + 4, "bare": 0}
        return rows * columns + num_framing[self.kind]

    def check(self, grid: Grid) -> Grid:
        """The grid itself, if this layout can express it."""
        rows, columns = grid
        if self.kind != "grid" and (rows, columns) != tuple(self.default_grid):
            raise ValueError(
                f"the {self.kind} layout has one grid: found {rows} x {columns} positions; "
                f"use {self.default_grid[0]} x {self.default_grid[1]}"
            )
        if self.kind == "grid" and not (1 <= rows <= self.max_side and 1 <= columns <= self.max_side):
            raise ValueError(
                f"no size token for this grid: found {rows} x {columns} positions; use 1 to {self.max_side} a side"
            )
        return rows, columns

    def last_grid(self, token_ids: list[int]) -> Grid | None:
        """The grid of the last image among these ids; None: there is none, or images have no sizes (fixed layout)."""
        starts = [place for place, token_id in enumerate(token_ids[:-2]) if token_id == self.begin_image_id]
        if self.kind == "fixed" or not starts:
            return None
        rows_id, columns_id = token_ids[starts[-1] + 1 : starts[-1] + 3]
        return rows_id - self.first_row_size_id + 1, columns_id - self.first_column_size_id + 1
