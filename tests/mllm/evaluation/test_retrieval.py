"""Retrieval of drawn emoji: ranks, similarity, and padding as the weights were trained with."""

import torch
import torch.nn.functional as F
from torch import nn

from mllm.evaluation.retrieval import EfficientNetLite0, Gallery, features_of, pad_same, ranks


def images(count: int, side: int, *, seed: int) -> torch.Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)


def test_a_rank_counts_what_is_nearer() -> None:
    similarity_BG = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.7, 0.7], [0.3, 0.2, 0.1]])
    assert ranks(similarity_BG, torch.tensor([1, 2, 2])).tolist() == [0, 0, 2]


def test_a_slightly_changed_image_finds_itself() -> None:
    torch.manual_seed(0)
    model = EfficientNetLite0().eval()
    gallery_G3HW = images(7, 64, seed=0)
    gallery = Gallery(model, gallery_G3HW)
    drawn_B3HW = (gallery_G3HW[[4, 2]] + 0.02 * images(2, 64, seed=1)).clamp(-1, 1)
    right_B, wrong_B = torch.tensor([4, 2]), torch.tensor([2, 4])
    for ranks_of, drawn in (
        (gallery.ranks_by_ssim, drawn_B3HW),
        (gallery.ranks_by_features, features_of(model, drawn_B3HW)),
    ):
        assert ranks_of(drawn, right_B).tolist() == [0, 0] and ranks_of(drawn, wrong_B).min() > 0


def test_padding_is_that_of_tensorflow() -> None:
    wide = pad_same(torch.zeros(1, 1, 7, 8), nn.Conv2d(1, 1, 3, 2))
    assert wide.shape[2:] == (9, 9), "7 rows need one above and one below, 8 columns one on the right alone"
    marked = pad_same(torch.ones(1, 1, 8, 8), nn.Conv2d(1, 1, 3, 2))
    assert marked[0, 0, 0, 0] == 1 and marked[0, 0, -1, -1] == 0
