"""The image layouts: which ids an image is made of."""

import pytest

from mllm.sequence import ImageLayout

IDS = {"begin_image_id": 3, "end_image_id": 4, "image_token_id": 9, "default_grid": (4, 4)}
GRID_IDS = {"new_line_id": 5, "first_row_size_id": 20, "first_column_size_id": 30, "max_side": 7}


def test_tokens_of_an_image_in_every_layout() -> None:
    fixed, bare, grid = (
        ImageLayout(kind=kind, **IDS, **(GRID_IDS if kind == "grid" else {})) for kind in ("fixed", "bare", "grid")
    )
    assert fixed.token_ids((4, 4)) == [3] + [9] * 16 + [4]
    assert bare.token_ids((4, 4)) == [9] * 16
    assert grid.token_ids((2, 3)) == [3, 21, 32, 9, 9, 9, 5, 9, 9, 9, 5, 4]
    for layout, size in ((fixed, (4, 4)), (bare, (4, 4)), (grid, (1, 1)), (grid, (7, 2)), (grid, (3, 7))):
        assert layout.num_tokens(size) == len(layout.token_ids(size))
    assert grid.token_ids((3, 7))[1:-1] == grid.body_ids((3, 7))


def test_the_last_grid_is_read_from_size_tokens_and_only_there() -> None:
    """A layout without size tokens has one grid, whatever ids its text holds."""
    grid, bare = ImageLayout(kind="grid", **IDS, **GRID_IDS), ImageLayout(kind="bare", **IDS)
    assert grid.last_grid([1, *grid.token_ids((2, 3)), *grid.token_ids((3, 7)), 8, 8]) == (3, 7)
    assert grid.last_grid([1, 8, 8]) is None
    assert bare.last_grid([1, 3, 7, 8, 8]) is None


def test_what_a_layout_cannot_express_is_refused() -> None:
    for kind, ids, size in (("grid", GRID_IDS, (8, 2)), ("fixed", {}, (2, 3)), ("bare", {}, (2, 3))):
        with pytest.raises(ValueError):
            ImageLayout(kind=kind, **IDS, **ids).token_ids(size)
    with pytest.raises(ValueError):
        ImageLayout(kind="grid", **IDS)
