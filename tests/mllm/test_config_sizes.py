"""Sizes that a layout cannot express are refused when the config is built."""

from __future__ import annotations

import pytest

from mllm.config import MLLMConfig

GRID = {"image_layout": "grid", "max_grid_side": 10, "image_size": 128, "patch_size": 16}
TOKENS = {"new_line_id": 10, "first_row_size_id": 11, "first_column_size_id": 21}


def test_sizes_of_a_grid() -> None:
    assert MLLMConfig(**GRID, **TOKENS, sizes=[[128, 128], [160, 32]]).sizes == [[128, 128], [160, 32]]


@pytest.mark.parametrize("size", [[150, 128], [0, 128], [176, 128], [128], [128, 128, 128]])
def test_sizes_that_no_grid_has(size: list[int]) -> None:
    with pytest.raises(ValueError):
        MLLMConfig(**GRID, **TOKENS, sizes=[[128, 128], size])


def test_the_fixed_layout_has_one_size() -> None:
    assert MLLMConfig(image_size=128, patch_size=16, sizes=[[128, 128]]).sizes == [[128, 128]]
    with pytest.raises(ValueError):
        MLLMConfig(image_size=128, patch_size=16, sizes=[[128, 128], [128, 96]])
