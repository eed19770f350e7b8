"""The released checkpoint's names: complete, strict, both ways."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.deterministic_weights import read_manifest
from tokenizer.config import UniTokConfig
from tokenizer.model import UniTok, build_empty
from tokenizer.weights import build_from_upstream, config_from_args, from_upstream, load_upstream, to_upstream


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
    with pytest.raises(RuntimeError, match=r"fc_norm\.weight"):
        build_from_upstream({k: v for k, v in theirs.items() if k != "fc_norm.weight"}, config)
    with pytest.raises(RuntimeError, match="size mismatch"):
        build_from_upstream({**theirs, "fc_norm.weight": torch.zeros(25)}, config)


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


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_checkpoint_files_are_read(
    small_model: UniTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    state = to_upstream(small_model.state_dict(), small_model.config)
    path = tmp_path / f"unitok_tokenizer.{ending}"
    if ending == "pth":
        args = OrderedDict(model="vitamin_large", dtype=torch.bfloat16)
        torch.save({"args": args, "epoch": 0, "iter": 5, "trainer": {"config": {}, "unitok": state}}, path)
    else:
        save_file(state, path)
    monkeypatch.setattr("tokenizer.weights.config_from_args", lambda args, projection_attention: small_model.config)
    pixels_B3HW = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_upstream(path).encode(pixels_B3HW), small_model.encode(pixels_B3HW))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_upstream(tmp_path / "absent.pth")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"got \['state_dict'\]"):
        load_upstream(tmp_path / "other.pth")
