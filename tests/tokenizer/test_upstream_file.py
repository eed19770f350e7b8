"""Files of the released image tokenizer: read, converted, written back bit-equal; wrong ones are refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer.checkpoint import export_upstream, load_upstream, read_upstream, save_converted, to_upstream
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok


def random_config(seed: int) -> UniTokConfig:
    """Small sizes that differ from each other in every way."""
    rng = Random(seed)
    stages, heads, code_width = rng.choice((1, 2, 3)), rng.choice((2, 3)), rng.choice((2, 3, 5))
    width = 2 * heads * rng.choice((2, 3, 4))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randint(low, high) for _ in range(stages))

    return UniTokConfig(
        image_size=2 ** (2 + stages) * rng.choice((2, 3)),
        stem_width=rng.randint(3, 7),
        stage_widths=sizes(4, 9),
        stage_depths=sizes(1, 2),
        conv_expansion=rng.choice((1, 2)),
        width=width,
        depth=rng.choice((0, 1, 2)),
        decoder_depth=rng.choice((0, 1, 2)),
        num_heads=heads,
        drop_path=0.0,
        decoder_widths=sizes(3, 8),
        decoder_depths=sizes(1, 2),
        decoder_expansion=rng.choice((1, 2)),
        num_codebooks=rng.randint(1, 4),
        codebook_size=rng.choice((7, 16, 33)),
        code_width=code_width,
        projection=rng.choice(("attention", "linear")),
        projection_heads=1,
        projection_attention=rng.choice(("full", "causal")),
        embed_dim=rng.choice((0, 6)),
        text_vocab_size=19,
        text_context=5,
        text_width=8,
        text_heads=2,
        text_layers=1,
    )


def same_weights(first: UniTok, second: UniTok) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("seed", range(12))
def test_any_network_goes_out_and_back_bit_equal(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    torch.manual_seed(seed)
    model = UniTok(config).eval()
    model.quantizer.usage.uniform_()
    model.quantizer.num_updates += 7
    model.save_pretrained(tmp_path / "ours")
    export_upstream(tmp_path / "ours", tmp_path / "out" / "theirs.pth")
    checkpoint = read_upstream(tmp_path / "out" / "theirs.pth")
    assert checkpoint.config == config
    save_converted(checkpoint, tmp_path / "again")
    again = UniTok.from_pretrained(tmp_path / "again")
    assert same_weights(again, model) and again.config == config
    assert (tmp_path / "again" / "model.safetensors").read_bytes() != b""
    pixels_B3HW = torch.rand(2, 3, config.image_size, 2 * config.image_size) * 2 - 1
    codes_BKN = model.encode(pixels_B3HW)
    assert torch.equal(again.encode(pixels_B3HW), codes_BKN)
    grid = model.grid_of(pixels_B3HW)
    assert torch.equal(again.decode(codes_BKN, grid=grid), model.decode(codes_BKN, grid=grid))


def test_a_type_changes_encoder_and_decoder_and_leaves_the_codebooks(small_model: UniTok, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, small_model)
    save_converted(read_upstream(path), tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    types = {name.split(".")[0]: tensor.dtype for name, tensor in stored.items() if tensor.is_floating_point()}
    assert types.pop("encoder") == types.pop("decoder") == torch.bfloat16
    assert set(types.values()) == {torch.float32}
    half = UniTok.from_pretrained(tmp_path / "half")
    pixels_B3HW = torch.rand(2, 3, 32, 48) * 2 - 1
    assert torch.equal(half.decode(small_model.encode(pixels_B3HW), grid=(2, 3)).isnan().any(), torch.tensor(False))
    assert torch.isfinite(half.encode_image(pixels_B3HW)).all()


def write_checkpoint(folder: Path, model: UniTok, **changes: Any) -> Path:
    """A training checkpoint as UniTok writes it, with much that inference does not need."""
    state: dict[str, Tensor] = to_upstream(model.state_dict(), model.config)
    args = OrderedDict(
        unitok_config=model.config.to_dict(), dtype=torch.bfloat16, exp_name="x", wandb=None, betas=(0.9, 0.95), lr=5e-4
    )
    trainer = {
        "config": {"wei_l1": 0.2},
        "unitok": {**state, **changes.pop("state", {})},
        "disc": {"x_scale": torch.ones(1, 3, 1, 1)},
        "unitok_optim": {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}},
    }
    path = folder / "unitok_tokenizer.pth"
    torch.save({"args": args, "epoch": 0, "iter": 5, "trainer": trainer}, path, **changes)
    return path


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_training_checkpoint_is_read_with_all_that_it_holds(
    small_model: UniTok, tmp_path: Path, is_zip: bool
) -> None:
    path = write_checkpoint(tmp_path, small_model, _use_new_zipfile_serialization=is_zip)
    loaded = load_upstream(path)
    loaded.quantizer.num_updates.copy_(small_model.quantizer.num_updates)
    assert same_weights(loaded, small_model)
    assert load_upstream(path, projection_attention="causal").config.projection_attention == "causal"


def test_a_safetensors_file_is_read_as_the_released_network(small_model: UniTok, tmp_path: Path) -> None:
    save_file(to_upstream(small_model.state_dict(), small_model.config), tmp_path / "unitok.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network .* of 1335 tensors found [0-9]+ missing"):
        load_upstream(tmp_path / "unitok.safetensors")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch harmed",)


def test_wrong_files_are_refused_in_one_sentence(
    small_model: UniTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(path: Path, match: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
            load_upstream(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700

    refused(tmp_path / "absent.pth", "there is no checkpoint file .*absent.pth; give the downloaded file")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", r"not a UniTok checkpoint; got \['state_dict'\]")
    torch.save({"args": {}, "trainer": {"unitok": {}}}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "holds no tensors by name")
    path = write_checkpoint(tmp_path, small_model)
    whole = path.read_bytes()
    for cut in (3 * len(whole) // 4, 100, 0):
        path.write_bytes(whole[:cut])
        refused(path, "is damaged or no checkpoint: .*; download it again")
    for name in ("notes.pth", "notes.safetensors"):
        (tmp_path / name).write_text("this is no checkpoint at all")
        refused(tmp_path / name, "is damaged or no checkpoint")
    torch.save({"args": {"harm": Harmful()}}, tmp_path / "code.pth")
    refused(tmp_path / "code.pth", r"holds program code, not only tensors: found (posix|os)\.system, which was not run")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful()))
    refused(tmp_path / "plain.pth", "holds program code|is damaged or no checkpoint")
    assert not (tmp_path / "harmed").exists()
    path = write_checkpoint(tmp_path, small_model, state={"fc_norm.bias": torch.zeros(25)})
    refused(path, r"1 of another shape: fc_norm.bias \(found \(25,\), expected \(24,\)\)")
    with pytest.raises(ValueError, match=r"ends in \.pth"):
        export_upstream(tmp_path, tmp_path / "theirs.safetensors")
