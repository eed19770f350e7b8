"""Bundling: smaller weights of the same model, and a record of their origin."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm.evaluation.answerer import model_fingerprint
from mllm.model import MLLMForConditionalGeneration
from tests.train.launching import same
from tokenizer.unitok import UniTok
from train.bundle import main

IMAGE_TOKENIZER_STAGE = {"kind": "image_tokenizer", "steps": 7, "shards": {"shuffle_shards": 4}}


@pytest.fixture
def run(random_model_folder: Path, tmp_path: Path) -> Path:
    """The folder of a run that started from another one, with what bundling reads of them."""
    folder, before, tokenizer = (tmp_path / name for name in ("run", "before", "tokenizer"))
    shutil.copytree(random_model_folder, folder / "final")
    start = f"image_tokenizer: {tokenizer}/final\nstart_from: "
    shards = "shards: {urls: /here/*.tar, shuffle_shards: 4}\n"
    write_recipe(tokenizer, f"kind: image_tokenizer\nsteps: 7\noutput: somewhere\n{shards}")
    data = "data: {root: /here, shards: [{path: /here/a}, {path: b}]}\n"
    write_recipe(before, f"kind: mllm\nlength: 32\n{data}{start}{tmp_path}/downloaded\n")
    write_recipe(folder, f"kind: mllm\nlength: 64\n{start}{before}/final\n")
    return folder


def write_recipe(folder: Path, recipe: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)


def test_bundling_halves_the_language_model_and_records_its_source(run: Path, tmp_path: Path) -> None:
    scores, bundled = tmp_path / "scores.json", tmp_path / "bundled"
    (tmp_path / "authors.md").write_text("Drawn by Ada.")
    words = ["--note", "Two runs.", "--attribution", str(tmp_path / "authors.md")]
    assert main([str(run / "final"), str(bundled), *words]) == 0
    assert (bundled / "ATTRIBUTION.md").read_text() == "Drawn by Ada."
    right = {
        "model": model_fingerprint(MLLMForConditionalGeneration.from_pretrained(bundled)),
        "image_tokenizer": UniTok.from_pretrained(bundled / "image_tokenizer").fingerprint(),
    }
    before = (bundled / "SOURCE.json").read_bytes()
    for measured in ([], *({**right, part: "0123456789abcdef"} for part in right)):  # of another model
        scores.write_text(json.dumps(measured))
        with pytest.raises(ValueError):
            main([str(run / "final"), str(bundled), "--scores", str(scores)])
    assert (bundled / "SOURCE.json").read_bytes() == before
    rate = {"rate": 0.625, "low": 0.5, "high": 0.7, "passed": 5, "total": 8}
    measured = {**right, "ask": rate, "count": 5}
    scores.write_text(json.dumps(measured))
    assert main([str(run / "final"), str(bundled), "--scores", str(scores)]) == 0
    old, new = (load_file(folder / "model.safetensors") for folder in (run / "final", bundled))
    assert same(new, {name: tensor.to(torch.bfloat16) for name, tensor in old.items()})
    tokenizers = [(folder / "image_tokenizer/model.safetensors").read_bytes() for folder in (run / "final", bundled)]
    assert tokenizers[0] == tokenizers[1]
    source = json.loads((bundled / "SOURCE.json").read_text())
    assert source["scores"] == measured and source["note"] == "Two runs."
    first = {"kind": "mllm", "length": 32, "data": {"shards": [{"path": "a"}, {"path": "b"}]}}
    assert source["stages"] == [first, {"kind": "mllm", "length": 64}]
    assert source["image_tokenizer_stages"] == [IMAGE_TOKENIZER_STAGE]
    card = (bundled / "README.md").read_text()
    assert "| ask | 62.5 % | 50.0 to 70.0 | 8 |" in card and "| count | 5 |" in card
    assert "Two runs." in card and right["model"] not in card
    further = tmp_path / "further"  # trained on from the bundled model, whose stages it keeps
    shutil.copytree(run / "final", further / "final")
    paths = f"image_tokenizer: {bundled}/image_tokenizer\nstart_from: {bundled}\n"
    write_recipe(further, f"kind: mllm\nlength: 128\n{paths}")
    main([str(further / "final"), str(bundled)])
    source = json.loads((bundled / "SOURCE.json").read_text())
    assert [stage["length"] for stage in source["stages"]] == [32, 64, 128]
    assert source["image_tokenizer_stages"] == [IMAGE_TOKENIZER_STAGE]


def test_bundling_spares_folders_and_needs_no_git(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (run, run / "final", tmp_path, tmp_path / "file"):
        (tmp_path / "file").write_text("kept")
        with pytest.raises(ValueError, match="must be new, empty or a bundled model"):
            main([str(run / "final"), str(folder)])
    assert (run / "final" / "model.safetensors").is_file() and (tmp_path / "file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert main([str(run / "final"), str(tmp_path / "empty")]) == 0
    assert json.loads((tmp_path / "empty" / "SOURCE.json").read_text())["commit"] is None
