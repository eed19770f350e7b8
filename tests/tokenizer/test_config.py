"""Configs are validated, survive JSON and have the sizes that their docstrings promise."""

import json
from typing import Any

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
    bad: dict[str, tuple[Any, ...]] = {
        "image_size": (40,),
        "codebook_size": (0,),
        "depth": (-1,),
        "stage_depths": ((1, 2, 3), (0, 2), ()),
        "shrink": (2, 3),
        "num_heads": (5,),
        "projection_heads": (7,),
        "projection": ("conv",),
        "projection_attention": ("half",),
        "encoder_scope": ("row",),
        "decoder_padding": ("mirror",),
        "drop_path": (1.0,),
        "vq_beta": (-1.0,),
        "entropy_temperature": (0.0,),
        "colour": (3,),
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):
                UniTokConfig.from_dict({**small_config.to_dict(), name: value})
                pytest.fail(f"{name} {value} was accepted")
