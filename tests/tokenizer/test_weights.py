"""The released checkpoint's names: complete, strict, both ways."""

from __future__ import annotations

import pytest
import torch

from tests.golden.deterministic_weights import read_manifest
from tokenizer.checkpoint import (
    UPSTREAM_MODELS,
    args_from_config,
    config_from_args,
    from_upstream,
    require_fit,
    to_upstream,
)
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok, build_empty


def test_every_released_tensor_has_its_place() -> None:
    shapes = read_manifest("tokenizer_large_manifest.json")
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if name != "encoder.pos_embed"}
    ours = from_upstream(state, UniTokConfig.large())
    expected = build_empty(UniTokConfig.large()).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in expected.items()}


def test_round_trip_returns_every_tensor(small_model: UniTok) -> None:
    theirs = to_upstream(small_model.state_dict(), small_model.config)
    assert theirs["encoder.pos_embed"].shape == (1, 1, 24)
    assert "encoder.patch_embed.backbone.stages.0.0.shortcut.expand.weight" in theirs
    assert "decoder.up_conv4.conv1.conv.weight" in theirs
    ours = from_upstream(theirs, small_model.config)
    ours.pop("quantizer.num_updates")
    expected = small_model.state_dict()
    expected.pop("quantizer.num_updates")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_foreign_missing_and_misshapen_tensors_are_refused(small_model: UniTok) -> None:
    config = small_model.config
    theirs = to_upstream(small_model.state_dict(), config)
    with pytest.raises(ValueError, match=r"no row in the name table; got 'disc\.weight'"):
        from_upstream({**theirs, "disc.weight": torch.zeros(2)}, config)
    with pytest.raises(ValueError, match=r"lacks \['quantizer\.codebooks\.2\.codebook\.weight'\]"):
        from_upstream({k: v for k, v in theirs.items() if k != "quantizer.codebooks.2.codebook.weight"}, config)
    with pytest.raises(ValueError, match="must be zero"):
        from_upstream({**theirs, "encoder.pos_embed": torch.ones(1, 1, 24)}, config)


def test_tensors_that_do_not_fit_the_network_are_named_in_one_sentence(small_model: UniTok) -> None:
    theirs = to_upstream(small_model.state_dict(), small_model.config)
    wrong = {name: value for name, value in theirs.items() if name != "fc_norm.weight"}
    wrong |= {"disc.weight": torch.zeros(2), "fc_norm.bias": torch.zeros(25)}
    with pytest.raises(ValueError, match="here does not fit the network") as caught:
        require_fit(wrong, small_model.config, source="here")
    assert "1 missing: fc_norm.weight; 1 unexpected: disc.weight;" in str(caught.value)
    assert "1 of another shape: fc_norm.bias (found (25,), expected (24,))" in str(caught.value)
    with pytest.raises(ValueError, match="of [0-9]+ tensors found [0-9]+ missing: .* and [0-9]+ more;"):
        require_fit({"logit_scale": theirs["logit_scale"]}, small_model.config, source="here")


def test_args_decide_the_sizes() -> None:
    assert config_from_args({"dtype": torch.bfloat16, "unknown": 3}) == UniTokConfig.large()
    base = config_from_args({"model": "vitamin_base", "num_codebooks": 4, "vocab_size": 4096, "quant_proj": "linear"})
    assert (base.codebook_size, base.code_width, base.width, base.projection_heads) == (1024, 16, 768, 12)
    assert base.projection == "linear" and base.decoder_widths == (256, 128)
    assert config_from_args({}, projection_attention="causal").projection_attention == "causal"
    with pytest.raises(ValueError, match="unknown UniTok network"):
        config_from_args({"model": "vitamin_huge"})
    with pytest.raises(ValueError, match="register tokens"):
        config_from_args({"num_query": 2})


@pytest.mark.parametrize(
    "config",
    [
        UniTokConfig.large(),
        UniTokConfig(image_size=512, num_codebooks=4, codebook_size=1024, code_width=16),
        UniTokConfig(**UPSTREAM_MODELS["vitamin_base"], projection_heads=12, projection="linear", drop_path=0.0),
        UniTokConfig(projection_attention="causal"),
        UniTokConfig(projection_heads=8),
        UniTokConfig.tiny(),
    ],
)
def test_args_hold_the_whole_config(config: UniTokConfig) -> None:
    args = args_from_config(config)
    assert config_from_args(args) == config
    is_upstreams = (
        config.width in (768, 1024) and config.projection_attention == "full" and config.projection_heads != 8
    )
    assert ("unitok_config" not in args) == is_upstreams  # upstream's own names say it all


def test_what_the_person_says_about_the_attention_counts_most() -> None:
    args = args_from_config(UniTokConfig(projection_attention="causal"))
    assert config_from_args(args, projection_attention="full") == UniTokConfig.large()
