"""Configs are validated, survive JSON and have the sizes that their docstrings promise."""

import json

import pytest

from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok, build_empty


def test_config_survives_json(small_config: UniTokConfig) -> None:
    stored = json.loads(json.dumps(small_config.to_dict()))
    assert UniTokConfig.from_dict(stored) == small_config
    assert UniTokConfig.from_dict({**stored, "encoder_scope": "picture"}) == small_config  # an older name


def test_presets_have_their_sizes() -> None:
    config = UniTokConfig.large()
    assert (config.patch_size, config.grid, config.positions_per_image, config.vector_width) == (16, (16, 16), 256, 64)
    assert sum(parameter.numel() for parameter in build_empty(config).parameters()) == 820_297_668  # without pos_embed
    assert UniTokConfig.tiny().positions_per_image == 64
    assert sum(parameter.numel() for parameter in UniTok(UniTokConfig.tiny()).parameters()) < 4_000_000


def test_bad_fields_are_refused(small_config: UniTokConfig) -> None:
    bad = [("image_size", 40), ("codebook_size", 0), ("depth", -1), ("shrink", 3), ("num_heads", 5), ("colour", 3)]
    bad += [("stage_depths", depths) for depths in ((1, 2, 3), (0, 2), ())]
    bad += [("projection_heads", 7), ("encoder_scope", "row"), ("drop_path", 1.0), ("entropy_temperature", 0.0)]
    for name, value in bad:
        with pytest.raises(ValueError):
            UniTokConfig.from_dict({**small_config.to_dict(), name: value})
            pytest.fail(f"{name} {value} was accepted")
