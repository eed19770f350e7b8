"""Caches written in place, and the masks of rows that begin at different places."""

import pytest
import torch

from mllm.engine.forward import LeftPadding, PreallocatedLayer


def test_a_layer_returns_all_that_was_written_and_copies_nothing() -> None:
    layer = PreallocatedLayer(capacity=7)
    pieces = [torch.randn(2, 3, length, 5) for length in (3, 1, 2)]
    for piece in pieces:
        keys, values = layer.update(piece, -piece)
    assert torch.equal(keys, torch.cat(pieces, dim=2))
    assert torch.equal(values, -keys)
    assert keys.data_ptr() == layer.buffers[0].data_ptr(), "a view of the one buffer"
    assert layer.get_seq_length() == 6
    with pytest.raises(AssertionError):
        layer.update(torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 5))


def test_masks_hide_padding_and_the_future() -> None:
    padding = LeftPadding([2, 4, 3], capacity=6, dtype=torch.float32, device=torch.device("cpu"))
    can_see_RTT = padding.prefill_mask(4)[:, 0] == 0
    can_see_R6 = padding.step_mask(6)[:, 0, 0] == 0
    for row, begin in enumerate((2, 0, 1)):
        for query in range(begin, 4):
            assert can_see_RTT[row, query].tolist() == [begin <= key <= query for key in range(4)]
        assert can_see_R6[row].tolist() == [begin <= key for key in range(6)]
    assert padding.prefill_mask(4).isfinite().all(), "no row of the softmax is empty, padding included"
    assert padding.position_ids(2, 5).tolist() == [[0, 1, 2], [2, 3, 4], [1, 2, 3]]


def test_equal_lengths_need_no_mask() -> None:
    padding = LeftPadding([3, 3], capacity=6, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert padding.prefill_mask(3) is padding.step_mask(4) is None
