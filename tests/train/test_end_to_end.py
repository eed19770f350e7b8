"""Scripts run to their end: from raw files to an image, the bundled model from nothing, ablations, launchers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mllm.config import MLLMConfig
from mllm.pipeline import Pipeline
from mllm.vocabulary import load_text_tokenizer
from tests.forked_python import forked_python
from tests.train.launching import environment, losses, run_program

SMALLER = {
    "train tiny_text": "--vocab_size 400 --dialogues 400",
    "train tiny_tokenizer": "--steps 6 --batch_size 4 --num_workers 0 --codebooks.initialise_at 2",
    "train tiny_decoder": "--steps 4 --batch_size 4 --num_workers 0",
    "train tiny": "--trainer.max_steps 3 --data.episodes 40 --rows 2 --batches_per_step 1 --compile_backbone false",
    "train tiny_language": "--trainer.max_steps 2 --data.episodes 40 --data.conversation_images 3 --rows 2",
    "evaluate world": "--count 2 --batch-size 4",
}
"""What is added to each command, by its first two words, so that minutes become seconds."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose `mllm` is the real one with less to do; every command is noted."""
    lines = [f'"{words}") more="{more}" ;;' for words, more in SMALLER.items()]
    with forked_python(tmp_path / "bin", environment()) as python:
        head = ["#!/usr/bin/env bash", f'echo "$@" >> {tmp_path}/commands', 'case "$1 $2" in']
        (python.parent / "mllm").write_text("\n".join([*head, *lines, "esac", f'exec {python} -m mllm "$@" $more']))
        (python.parent / "mllm").chmod(0o755)
        yield {"PATH": f"{python.parent}:{environment()['PATH']}", "PYTHON": str(python)}


@pytest.mark.slow
def test_raw_files_become_a_model_that_draws_and_answers(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with forked_python(tmp_path / "bin", environment()) as python:
        run_program("bash", "scripts/end_to_end_tiny.sh", out, PATH=f"{python.parent}:{environment()['PATH']}")
    for stage in ("stage1", "stage2", "stage3", "lora"):
        assert losses(out / stage).keys() == {1, 2, 3}
    assert Image.open(out / "drawn.png").size == (256, 256)
    config = MLLMConfig.from_pretrained(out / "model")
    assert config.vocab_size == len(load_text_tokenizer(out / "model")) >= 768 + 3
    assert config.embedder_width == 192


@pytest.mark.slow
def test_the_bundled_model_is_rebuilt_from_nothing(tmp_path: Path, settings: dict[str, str]) -> None:
    runs, model = tmp_path / "runs", tmp_path / "model"
    for _ in range(2):  # the second time, every stage finds itself finished
        run_program("bash", "scripts/build_tiny_model.sh", runs, model, **settings)
    source = json.loads((model / "SOURCE.json").read_text())
    assert [stage["optimizer"]["matrix_learning_rate"] for stage in source["stages"]] == [0.02, 0.008, 0.004]
    assert [stage["trainable"] for stage in source["image_tokenizer_stages"]] == ["all", "decoder"]
    assert source["scores"]["count"] == 2
    one, two = (sorted((runs / name / "codes" / "shards").iterdir()) for name in ("tiny_first", "tiny"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert Pipeline.load(model).draw("a red circle", seed=1)[0].size == (256, 256)
    assert sum(line.startswith("train tiny ") for line in (tmp_path / "commands").read_text().splitlines()) == 4


@pytest.mark.slow
def test_choices_are_trained_measured_and_plotted(tmp_path: Path, settings: dict[str, str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    reports = tmp_path / "reports"
    run_program("bash", "scripts/train_ablations.sh", tmp_path / "runs", 2, **settings, REPORTS=str(reports))
    assert {path.name for path in reports.glob("*.png")} == {"codebooks.png", "head.png", "steps.png"}
    for codebooks in (2, 4, 8):
        config = json.loads((tmp_path / "runs" / f"codebooks-{codebooks}" / "final" / "config.json").read_text())
        assert (config["num_codebooks"], config["image_layout"], config["head_type"]) == (codebooks, "grid", "mlp")
