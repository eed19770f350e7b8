"""The image layouts: which ids an image is made of."""

import pytest

from mllm.sequence import ImageLayout

IDS = {"begin_image_id": 3, "end_image_id": 4, "image_token_id": 9, "default_grid": (4, 4)}
GRID_IDS = {"new_line_id": 5, "first_row_size_id": 20, "first_column_size_id": 30, "max_side": 7}


def test_fixed_layout_is_begin_positions_end() -> None:
    layout = ImageLayout(kind="fixed", **IDS)
    assert layout.token_ids((4, 4)) == [3] + [9] * 16 + [4]
    assert layout.num_tokens((4, 4)) == 18


def test_grid_layout_tells_rows_then_columns_and_ends_every_row() -> None:
    layout = ImageLayout(kind="grid", **IDS, **GRID_IDS)
    assert layout.token_ids((2, 3)) == [3, 21, 32, 9, 9, 9, 5, 9, 9, 9, 5, 4]


@pytest.mark.parametrize("grid", [(1, 1), (7, 2), (3, 7)])
def test_number_of_tokens_is_the_length_of_the_image(grid: tuple[int, int]) -> None:
    layout = ImageLayout(kind="grid", **IDS, **GRID_IDS)
    assert layout.num_tokens(grid) == len(layout.token_ids(grid))
    assert layout.token_ids(grid)[1:-1] == layout.body_ids(grid)


def test_a_grid_without_size_token_is_refused() -> None:
    with pytest.raises(ValueError):
        ImageLayout(kind="grid", **IDS, **GRID_IDS).token_ids((8, 2))
    with pytest.raises(ValueError):
        ImageLayout(kind="fixed", **IDS).token_ids((2, 3))


def test_an_incomplete_or_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError):
        ImageLayout(kind="grid", **IDS)
    with pytest.raises(ValueError):
        ImageLayout(kind="spiral", **IDS)
