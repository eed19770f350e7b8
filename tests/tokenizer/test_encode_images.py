"""Images of mixed sizes are encoded and decoded in batches of one size, in their order, as one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenizer.config import UniTokConfig
from tokenizer.images import to_pixels
from tokenizer.unitok import EncodedImage, UniTok, decode_images, encode_images


@pytest.mark.parametrize("scope", ["picture", "patch"])
def test_batches_of_one_size_equal_single_images(small_config: UniTokConfig, scope: str) -> None:
    torch.manual_seed(0)
    tokenizer = UniTok(replace(small_config, encoder_scope=scope, depth=1)).eval()
    patch = tokenizer.config.patch_size
    sizes = [(2, 3), (3, 2), (2, 3), (2, 3), (1, 1), (3, 2), (2, 3)]
    images = [
        torch.randint(0, 3, (3, rows * patch, columns * patch), dtype=torch.uint8) * 100 for rows, columns in sizes
    ]
    images[3][:, :, :patch] = images[0][:, :, :patch]  # equal patches in different images
    as_bytes = list(encode_images(iter(images), tokenizer, batch_size=2))
    as_floats = list(encode_images(map(to_pixels, images), tokenizer, batch_size=3))
    for image_3HW, encoded, same, grid in zip(images, as_bytes, as_floats, sizes, strict=True):
        expected_KN = tokenizer.encode(to_pixels(image_3HW[None]))[0].numpy()
        assert encoded.grid == same.grid == grid
        assert encoded.codes_KN.dtype == np.uint16
        assert np.array_equal(encoded.codes_KN, expected_KN) and np.array_equal(same.codes_KN, expected_KN)
    decoded = list(decode_images(as_bytes, tokenizer, batch_size=2))
    for pixels_3HW, encoded in zip(decoded, as_bytes, strict=True):
        codes_1KN = torch.from_numpy(encoded.codes_KN.astype(np.int64))[None]
        torch.testing.assert_close(pixels_3HW, tokenizer.decode(codes_1KN, grid=encoded.grid)[0])


def test_results_come_as_soon_as_their_batch_is_full(small_config: UniTokConfig) -> None:
    tokenizer = UniTok(small_config).eval()
    side, taken = tokenizer.config.patch_size, []

    def images():
        for index in range(5):
            taken.append(index)
            yield torch.zeros(3, side, side)

    assert isinstance(next(encode_images(images(), tokenizer, batch_size=2)), EncodedImage)
    assert taken == [0, 1]
