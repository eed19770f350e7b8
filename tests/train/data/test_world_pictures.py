"""Pictures of the world by number: always the same, whole or a window on an object."""

from random import Random

import pytest
import torch

from mllm.world.scene import SceneObject
from train.data.world import WorldPictures, window_on


def test_a_picture_is_always_the_same() -> None:
    for crop, side in ((None, 128), (64, 64)):
        one, two = (WorldPictures(image_size=128, seed=3, crop=crop) for _ in range(2))
        assert one[5]["pixels"].shape == (3, side, side)
        assert torch.equal(one[5]["pixels"], two[5]["pixels"]) and not torch.equal(one[5]["pixels"], one[6]["pixels"])


@pytest.mark.parametrize(("x", "y"), [(0.12, 0.12), (0.5, 0.88), (0.7, 0.3)])
def test_a_window_lies_in_the_picture_and_holds_the_middle_of_the_object(x: float, y: float) -> None:
    item = SceneObject("star", "red", "small", x, y)
    found = {window_on(item, 48, 128, Random(n)) for n in range(50)}
    assert len(found) > 10
    for left, top, right, bottom in found:
        assert 0 <= left <= x * 128 + 1 and x * 128 - 1 <= right <= 128 and right - left == 48
        assert 0 <= top <= y * 128 + 1 and y * 128 - 1 <= bottom <= 128 and bottom - top == 48


def test_windows_show_more_than_flat_background() -> None:
    pictures = WorldPictures(image_size=128, seed=0, crop=64)
    assert all(pictures[n]["pixels"].flatten(1).float().std(1).max() > 0 for n in range(40))


@pytest.mark.parametrize("crop", [0, 129])
def test_windows_larger_than_the_picture_are_refused(crop: int) -> None:
    with pytest.raises(ValueError, match=f"world_crop is {crop}, but pictures have 128 pixels"):
        WorldPictures(image_size=128, seed=0, crop=crop)
