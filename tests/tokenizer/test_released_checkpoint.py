"""Checkpoints of others: files, names, settings; the released image tokenizer goes in and out bit-equal."""

import json
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.train.launching import same
from tokenizer import released_checkpoint
from tokenizer.config import UniTokConfig
from tokenizer.metrics import psnr
from tokenizer.released_checkpoint import AttentionProbe, probe_attention, read_as, read_upstream
from tokenizer.unitok import UniTok
from tokenizer.weights import TensorFiles, weight_files

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(3, dtype=torch.int64),
    "c": torch.ones(5, dtype=torch.bfloat16),
}


def write_shards(folder: Path, ending: str) -> None:
    name = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    files = {key: f"{name}-{number:05}.{ending}" for number, key in enumerate(TENSORS)}
    for key, file in files.items():
        save = save_file if ending == "safetensors" else torch.save
        save({key: TENSORS[key]}, folder / file)
    (folder / f"{name}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_folders_of_weights_are_one_mapping_or_refused(tmp_path: Path) -> None:
    for ending in ("bin", "safetensors"):
        (tmp_path / ending).mkdir()
        write_shards(tmp_path / ending, ending)
        files = TensorFiles(weight_files(tmp_path / ending))
        assert list(files) == list(TENSORS) and len(files) == 3
        for name in ("c", "a", "b", "a"):
            assert torch.equal(files[name], TENSORS[name])
            assert (files.shapes[name].shape, files.shapes[name].dtype) == (TENSORS[name].shape, TENSORS[name].dtype)
        kept = files["a"]
        files.close()
        assert torch.equal(kept, TENSORS["a"])  # what was read stays readable
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    write_shards(tmp_path, "safetensors")
    (tmp_path / "model-00001.safetensors").unlink()
    for broken in (None, '{"weight_map": {"a": "../model.safetensors"}}', "{", '{"weight_map": 3}'):
        if broken:
            (tmp_path / "model.safetensors.index.json").write_text(broken)
        with pytest.raises((ValueError, FileNotFoundError)):
            weight_files(tmp_path)


def test_args_decide_the_sizes_and_hold_the_full_config() -> None:
    assert released_checkpoint.config_from_args({"dtype": torch.bfloat16, "unknown": 3}) == UniTokConfig.large()
    for args in ({"model": "vitamin_huge"}, {"num_query": 2}):
        with pytest.raises(ValueError):
            released_checkpoint.config_from_args(args)
    by_name = (
        UniTokConfig(image_size=512, num_codebooks=4, codebook_size=1024, code_width=16),
        UniTokConfig(
            **released_checkpoint.UPSTREAM_MODELS["vitamin_base"],
            projection_heads=12,
            projection="linear",
            drop_path=0.0,
        ),
    )
    causal = UniTokConfig(projection_attention="causal")
    for config in (*by_name, causal, UniTokConfig.tiny()):
        args = released_checkpoint.args_from_config(config)
        assert released_checkpoint.config_from_args(args) == config
        assert ("unitok_config" not in args) == (config in by_name)  # upstream's own names say it all
    args = released_checkpoint.args_from_config(causal)
    assert released_checkpoint.config_from_args(args, projection_attention="full") == UniTokConfig.large()


def test_any_network_goes_out_and_back_bit_equal(small_config: UniTokConfig, tmp_path: Path) -> None:
    geometries: list[dict[str, Any]] = [
        {"num_codebooks": 1, "codebook_size": 70_000, "code_width": 2, "projection_attention": "causal"},
        {"num_codebooks": 12, "code_width": 8, "stage_depths": (2, 3)},  # wide code vectors; more than nine codebooks
        {"projection": "linear", "embed_dim": 0, "depth": 0, "decoder_depth": 0},
        {"stage_widths": (5, 7, 9), "stage_depths": (1, 2, 1)}
        | {"decoder_widths": (8, 6, 3), "decoder_depths": (1, 2, 1)},
    ]
    for number, fields in enumerate(geometries):
        config, folder = replace(small_config, image_size=96, **fields), tmp_path / str(number)
        model = UniTok(config).eval()
        model.quantizer.usage.uniform_()
        model.quantizer.num_updates += 7
        model.save_pretrained(folder / "ours")
        released_checkpoint.export_upstream(folder / "ours", folder / "out" / "theirs.pth")
        theirs = read_upstream(folder / "out" / "theirs.pth")
        assert theirs.config == config
        released_checkpoint.save_converted(theirs, folder / "again")
        again = UniTok.from_pretrained(folder / "again")
        assert same(again.state_dict(), model.state_dict()) and again.config == config
        pixels_B3HW = torch.rand(2, 3, 32, 64) * 2 - 1
        codes_BKN, grid = model.encode(pixels_B3HW), model.grid_of(pixels_B3HW)
        assert torch.equal(again.encode(pixels_B3HW), codes_BKN)
        assert torch.equal(again.decode(codes_BKN, grid=grid), model.decode(codes_BKN, grid=grid))


def write_checkpoint(folder: Path, model: UniTok, **changes: Any) -> Path:
    """A training checkpoint as UniTok writes it, with much that inference does not need."""
    state: dict[str, Tensor] = released_checkpoint.to_upstream(model.state_dict(), model.config)
    args = OrderedDict(unitok_config=model.config.to_dict(), dtype=torch.bfloat16, exp_name="x", betas=(0.9, 0.95))
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    trainer = {"unitok": {**state, **changes.pop("state", {})}, "unitok_optim": {"optimizer": optimizer}}
    path = folder / "unitok_tokenizer.pth"
    torch.save({"args": args, "epoch": 0, "iter": 5, "trainer": trainer}, path, **changes)
    return path


def test_training_checkpoints_are_read_and_converted(small_model: UniTok, tmp_path: Path) -> None:
    for is_zip in (True, False):
        path = write_checkpoint(tmp_path, small_model, _use_new_zipfile_serialization=is_zip)
        loaded = read_upstream(path).build()
        loaded.quantizer.num_updates.copy_(small_model.quantizer.num_updates)
        assert same(loaded.state_dict(), small_model.state_dict())
        assert read_upstream(path, projection_attention="causal").config.projection_attention == "causal"
    released_checkpoint.save_converted(read_upstream(path), tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    types = {name.split(".")[0]: tensor.dtype for name, tensor in stored.items() if tensor.is_floating_point()}
    assert types.pop("encoder") == types.pop("decoder") == torch.bfloat16
    assert set(types.values()) == {torch.float32}
    codes_BKN = small_model.encode(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert UniTok.from_pretrained(tmp_path / "half").decode(codes_BKN, grid=(2, 3)).isfinite().all()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch harmed",)


def test_wrong_files_are_told_in_a_line(small_model: UniTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(name: str, content: bytes | object = None) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            torch.save(content, path)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read_upstream(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
        return str(caught.value)

    path = write_checkpoint(tmp_path, small_model, state={"fc_norm.bias": torch.zeros(25), "other": torch.ones(2)})
    said, complete = refused(path.name), path.read_bytes()
    assert all(words in said for words in ("fc_norm.bias", "(25,)", "(24,)", "other"))
    refused("other.pth", {"args": {}, "trainer": {"unitok": {}}})
    refused("cut.pth", complete[: 3 * len(complete) // 4])
    refused("notes.safetensors", b"no checkpoint")
    assert "system" in refused("code.pth", {"args": {"harm": Harmful()}})
    refused("plain.pth", pickle.dumps(Harmful()))
    assert not (tmp_path / "harmed").exists()


def test_the_attention_that_reconstructs_is_found(small_model: UniTok) -> None:
    causal, pixels_B3HW = read_as(small_model, "causal"), torch.rand(1, 3, 32, 48) * 2 - 1
    assert same(causal.state_dict(), small_model.state_dict())
    assert not torch.equal(causal.features(pixels_B3HW), small_model.features(pixels_B3HW))
    found = probe_attention(causal, pixels_B3HW)
    assert found == probe_attention(small_model, pixels_B3HW)  # however it was loaded
    for kind, model in (("full", small_model), ("causal", causal)):
        decoded_B3HW = model.decode(model.encode(pixels_B3HW), grid=(2, 3))
        assert getattr(found, kind) == pytest.approx(float(psnr(pixels_B3HW, decoded_B3HW)))
    assert AttentionProbe(full=20.0, causal=20.4).answer is None
    assert AttentionProbe(full=20.6, causal=20.0).answer == "full"
