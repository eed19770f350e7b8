"""Bundling: smaller weights of the same model, and a record of where they come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.bundle import main


@pytest.fixture
def run(random_model_folder: Path, tmp_path: Path) -> Path:
    """The folder of a run, with what bundling reads of it."""
    folder, tokenizer = tmp_path / "run", tmp_path / "tokenizer"
    shutil.copytree(random_model_folder, folder / "final")
    tokenizer.mkdir()
    (tokenizer / "recipe.yaml").write_text("kind: image_tokenizer\nsteps: 7\noutput: somewhere\n")
    (folder / "recipe.yaml").write_text(f"kind: mllm\nlength: 64\nimage_tokenizer: {tokenizer / 'final'}\n")
    (folder / "metrics.jsonl").write_text('{"step": 10}\n{"step": 23}\n')
    return folder


def test_bundle_halves_the_language_model_and_tells_its_source(run: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"ask": {"rate": 0.625}}))
    bundled = tmp_path / "bundled"
    assert main([str(run / "final"), str(bundled)]) == 0
    assert main([str(run / "final"), str(bundled), "--scores", str(scores), "--note", "Two runs."]) == 0
    old, new = (load_file(folder / "model.safetensors") for folder in (run / "final", bundled))
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    assert all(torch.equal(new[name], tensor.to(torch.bfloat16)) for name, tensor in old.items())
    tokenizers = [(folder / "image_tokenizer/model.safetensors").read_bytes() for folder in (run / "final", bundled)]
    assert tokenizers[0] == tokenizers[1]
    source = json.loads((bundled / "SOURCE.json").read_text())
    assert source["steps"] == 23 and source["scores"] == {"ask": {"rate": 0.625}} and source["note"] == "Two runs."
    assert source["recipe"] == {"kind": "mllm", "length": 64}
    assert source["image_tokenizer_recipe"] == {"kind": "image_tokenizer", "steps": 7}
    card = (bundled / "README.md").read_text()
    assert "Two runs." in card and "| ask / rate | 0.625 |" in card


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished model"):
        main([str(tmp_path / "final"), str(tmp_path / "bundled")])
