"""What stands on the disk stays: when the disk is full, on Ctrl-C, and when two runs want one folder."""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.files import only_writer
from mllm.pipeline import Pipeline
from tests.train.launching import write_recipe
from train.recipe import MLLMRecipe

FULL = "file too large"  # as the limit on files has it, which needs no rights of mounting a small disk


@contextmanager
def full_disk(*, but: int = 0) -> Iterator[None]:
    """Within, a file can have so many bytes and no more."""
    limits, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (but, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(".lock")}


def test_full_disks_harm_nothing(tmp_path: Path, random_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "disk"
    there.mkdir()
    image, questions, model = tmp_path / "a.png", tmp_path / "gqa.jsonl", ["--model", str(random_model_folder)]
    Image.effect_mandelbrot((60, 50), (-2, -1, 1, 1), 50).convert("RGB").save(image)
    questions.write_text(json.dumps({"question_id": "1", "image": "a.png", "text": "What?"}) + "\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"image": "a.png", "caption": name}) + "\n")
    run = ["--questions", str(questions), "--images", str(tmp_path), "--output", str(there / "run")]
    commands = (
        ["draw", "red", "-o", str(there / "drawn.png")],
        ["edit", str(image), "blue", "-o", str(there / "edited.jpg")],
        ["tokenize", "encode", str(image), "-o", str(there / "codes.npz")],
        ["tokenize", "reconstruct", str(image), "-o", str(there / "again.webp"), "--json", str(there / "scores.json")],
        ["prepare", str(tmp_path / "one.jsonl"), "--out", str(there / "data")],
        ["evaluate", "gqa", *run, "--max-new-tokens", "2"],
    )
    for words in commands:
        assert main([*words, *model]) == 0, capsys.readouterr().err
    before = contents(there)
    for words in commands:
        if words[0] == "prepare":
            words.insert(1, str(tmp_path / "two.jsonl"))
        with full_disk():
            code = main([*words, *model])
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2 and error.startswith(f"mllm: {FULL}: {there}"), (words, error)
    assert contents(there) == before


def test_a_full_disk_costs_a_training_nothing_but_its_last_checkpoint(
    tmp_path: Path, mllm_recipe: MLLMRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = ["train", str(write_recipe(mllm_recipe, tmp_path / "recipe.yaml")), "--output", str(output)]
    words += ["--trainer.report_to", "none", "--trainer.max_steps"]
    assert main([*words, "2"]) == 0
    before = {name: data for name, data in contents(output).items() if "/" in name}  # not the log and the recipe
    assert {name.split("/")[0] for name in before} == {"checkpoint-2", "final", "codes"}
    with full_disk(but=64 << 10):
        assert main([*words, "4"]) == 2
    assert f"{FULL}: {output / 'checkpoint-4'}" in capsys.readouterr().err.splitlines()[-1]
    assert {name: data for name, data in contents(output).items() if "/" in name} == before
    assert main([*words, "4"]) == 0
    after, weights = contents(output), "final/model.safetensors"
    assert "checkpoint-4/model.safetensors" in after and after[weights] != before[weights]


def test_two_runs_do_not_share_a_folder(
    tmp_path: Path, mllm_recipe: MLLMRecipe, image_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    prepare = ["prepare", str(tmp_path / "a.jsonl"), "--image-tokenizer", str(image_tokenizer_folder), "--out"]
    for words in (
        ["train", str(write_recipe(mllm_recipe, tmp_path / "recipe.yaml")), "--output"],
        ["train", "tiny_tokenizer", "--output"],
        prepare,
    ):
        folder = tmp_path / words[1].replace("/", "_")
        with only_writer(folder):
            assert main([*words, str(folder)]) == 2
        assert "by one run at a time" in capfd.readouterr().err
        assert contents(folder) == {}
    assert main([*prepare, str(folder)]) == 0  # the lock is free again


def test_an_interrupted_training_says_how_to_resume_and_a_draw_keeps_finished_images(
    tmp_path: Path,
    mllm_recipe: MLLMRecipe,
    random_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    draw, counts = Pipeline.draw, []

    def interrupted(*words: object, n: int = 0, **settings: int) -> list[Image.Image]:
        counts.append(n)
        if n == 0 or len(counts) == 3:
            raise KeyboardInterrupt
        return draw(*words, n=n, **settings)

    monkeypatch.setattr(Pipeline, "draw", interrupted)
    words = ["draw", "red", "-o", str(tmp_path / "a.png"), "-n", "40", "--model", str(random_model_folder)]
    assert main([*words, "--seed", "5"]) == 130
    done = capfd.readouterr()
    assert f"{sum(counts[:2])} of 40" in done.err and len(list(tmp_path.glob("a-*.png"))) == sum(counts[:2])
    assert done.out.splitlines()[-1].endswith(f"seed {5 + sum(counts[:2]) - 1}")
    monkeypatch.setattr("train.trainer.train_mllm", interrupted)
    words = ["train", str(write_recipe(mllm_recipe, tmp_path / "recipe.yaml"))]
    assert main(words) == 130 and "no checkpoint yet" in capfd.readouterr().err
    (mllm_recipe.output / "checkpoint-2").mkdir()
    assert main(words) == 130 and f"resumes from {mllm_recipe.output / 'checkpoint-2'}" in capfd.readouterr().err
