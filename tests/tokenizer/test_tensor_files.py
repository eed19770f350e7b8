"""Tensors of several files as one mapping, and what is said of folders that lack some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tokenizer.checkpoint import TensorFiles, weight_files

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


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_one_mapping(tmp_path: Path, ending: str) -> None:
    write_shards(tmp_path, ending)
    files = TensorFiles(weight_files(tmp_path))
    assert list(files) == list(TENSORS) and len(files) == 3
    for name in ("c", "a", "b", "a"):
        assert torch.equal(files[name], TENSORS[name])
        assert (files.shapes[name].shape, files.shapes[name].dtype) == (TENSORS[name].shape, TENSORS[name].dtype)
        assert files.shapes[name].is_meta
    kept = files["a"]
    files.close()
    assert torch.equal(kept, TENSORS["a"])  # what was read stays readable
    with pytest.raises(KeyError):
        files["d"]


def test_a_whole_file_is_found_and_safetensors_come_first(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no weights: found none of model\.safetensors"):
        weight_files(tmp_path)
    write_shards(tmp_path, "safetensors")
    (tmp_path / "model-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards are missing .* found no model-00001\.safetensors"):
        weight_files(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ValueError, match="leads out of its folder"):
        weight_files(tmp_path)
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(ValueError, match="is no index of shards"):
            weight_files(tmp_path)
