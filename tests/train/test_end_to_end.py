"""The way from raw files to a picture and an answer, by the script that a person runs; and the stages' launchers."""

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from mllm.config import MLLMConfig
from mllm.vocabulary import load_text_tokenizer
from tests.forked_python import forked_python
from tests.train.launching import ROOT, environment, losses


@pytest.mark.slow
def test_raw_files_become_a_model_that_draws_and_answers(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["bash", "scripts/end_to_end_tiny.sh", str(out)]
    with forked_python(tmp_path / "bin", environment()) as python:
        settings = {**environment(), "PATH": f"{python.parent}:{environment()['PATH']}"}
        done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for stage in ("stage1", "stage2", "stage3", "lora"):
        assert losses(out / stage).keys() == {1, 2, 3}
    assert Image.open(out / "drawn.png").size == (256, 256)
    config = MLLMConfig.from_pretrained(out / "model")
    assert config.vocab_size == len(load_text_tokenizer(out / "model")) >= 768 + 3
    assert config.embedder_width == 192


def test_deepspeed_files_leave_to_the_recipe_what_it_says() -> None:
    for name in ("zero2", "zero3", "zero3_offload"):
        config = json.loads((ROOT / "train/recipes" / f"{name}.json").read_text())
        assert config["zero_optimization"]["stage"] == int(name[4])
        for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
            assert config[key] == "auto"
        assert config["bf16"]["enabled"] == "auto" and "optimizer" not in config


def test_an_unknown_launcher_is_refused() -> None:
    words = ["bash", "scripts/train_stage1.sh"]
    done = subprocess.run(words, cwd=ROOT, env={**environment(), "LAUNCHER": "mpi"}, capture_output=True, text=True)
    assert done.returncode == 2 and "use torchrun, deepspeed or accelerate" in done.stderr
