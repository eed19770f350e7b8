"""Configs are validated, survive JSON and have the sizes that their docstrings promise."""

from __future__ import annotations

import json

import pytest

from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok, build_empty


def test_config_survives_json(small_config: UniTokConfig) -> None:
    assert UniTokConfig.from_dict(json.loads(json.dumps(small_config.to_dict()))) == small_config


def test_large_has_the_released_geometry() -> None:
    config = UniTokConfig.large()
    assert (config.patch_size, config.grid, config.positions_per_image, config.vector_width) == (16, (16, 16), 256, 64)
    assert sum(parameter.numel() for parameter in build_empty(config).parameters()) == 820_297_668  # without pos_embed


def test_tiny_fits_its_budget() -> None:
    config = UniTokConfig.tiny()
    assert config.positions_per_image == 64
    assert sum(parameter.numel() for parameter in UniTok(config).parameters()) < 4_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 40}, "multiple of the patch size"),
        ({"codebook_size": 0}, "codebook_size must be positive"),
        ({"stage_depths": (1, 2, 3)}, "same number of stages"),
        ({"shrink": 2}, "the decoder 1 more; got .* with shrink 2"),
        ({"shrink": 3}, "shrink must be a power of two; got 3"),
        ({"stage_depths": (0, 2)}, "one positive size per stage"),
        ({"num_heads": 5}, "width must be divisible"),
        ({"projection_heads": 7}, "projection_heads must divide"),
        ({"projection": "conv"}, "unknown projection"),
        ({"projection_attention": "half"}, "unknown projection_attention"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"decoder_padding": "mirror"}, "unknown decoder_padding; got 'mirror'"),
        ({"entropy_temperature": 0.0}, "entropy_temperature"),
        ({"colour": 3}, "unknown fields"),
    ],
)
def test_bad_fields_are_refused(small_config: UniTokConfig, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniTokConfig.from_dict({**small_config.to_dict(), **changes})
