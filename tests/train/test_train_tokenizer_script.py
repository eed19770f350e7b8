"""The launcher of tokenizer training: the arguments people know, and the recipe they are translated to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.conftest import everything
from tests.train.launching import ROOT, environment, free_port, write_recipe
from tests.train.published_weights import picture
from train.recipe import TokenizerRecipe, read_yaml, resolve
from train.run import main as train

SCRIPT = ROOT / "scripts" / "train_tokenizer.sh"


def launch(words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], cwd=ROOT, env={**environment(), **more}, capture_output=True, text=True)


@pytest.mark.slow
def test_the_launcher_trains_on_two_processes_and_evaluates(tmp_path: Path) -> None:
    for name, count in (("n01", 2), ("n02", 3)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(count):
            picture(number).save(tmp_path / "val" / name / f"{number}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"n01": "cat", "n02": "dog"}))
    recipe = write_recipe(everything(tmp_path, tmp_path / "unused", steps=4), tmp_path / "recipe.yaml")
    words = ["--nnodes", "1", "--nproc_per_node", "2", "--node_rank", "0"]
    words += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    words += ["--output_dir", str(tmp_path / "run"), "--train_data", f"{tmp_path}/{{02..03}}.tar"]
    words += ["--imagenet_val", str(tmp_path / "val"), "--imagenet_classes", str(tmp_path / "classes.json")]
    words += ["--fid_eval_src", str(tmp_path / "val" / "n02"), "--fid_eval_dst", str(tmp_path / "made")]
    words += ["--evaluation.fid_score", "false", "--batch_size", "3"]
    done = launch(words, RECIPE=str(recipe), PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr[-3000:]
    used = resolve(TokenizerRecipe, read_yaml(tmp_path / "run" / "recipe.yaml"))
    assert (used.shards.urls, used.batch_size) == (f"{tmp_path}/{{02..03}}.tar", 3)
    reading = json.loads((tmp_path / "run" / "checkpoint-4" / "reading.json").read_text())
    assert (reading["shards"], reading["readers"]) == (2, 2)
    assert {file.name for file in (tmp_path / "made").iterdir()} == {"0.png", "1.png", "2.png"}
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4 and last["zero_shot_top5"] == 1.0
    assert last["zero_shot_top1"] in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    half = launch(["--nnodes"])
    assert half.returncode == 2 and "--nnodes has no value" in half.stderr


def test_the_published_recipe_names_the_files_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "external").mkdir()
    for name, file in (
        ("lpips", "lpips_with_vgg.pth"),
        ("adversarial.dino", "dinov2_vits14_pretrain.pth"),
        ("text_tokenizer", "bpe_simple_vocab_16e6.txt.gz"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            train(["unitok_large", "--output", str(tmp_path / "run")])
        assert str(caught.value).startswith(f"{name} must be")
        (tmp_path / "external" / file).touch()
