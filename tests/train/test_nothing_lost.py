"""What stands on the disk stays: when the disk is full, on Ctrl-C, and when two runs want one folder."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from mllm.cli.main import main
from mllm.files import only_writer
from tests.train.launching import write_recipe
from train.recipe import MLLMRecipe

FILLER = "filler"


class Disk:
    """A folder where writing can be made to fail: a small file system that is filled, or a limit on every file."""

    def __init__(self, folder: Path, *, is_mounted: bool) -> None:
        self.folder, self.is_mounted = folder, is_mounted
        self.error = "no space left on device" if is_mounted else "file too large"
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full(self, *, but: int = 0) -> Iterator[None]:
        """Within, so many bytes can be written and no more."""
        try:
            if self.is_mounted:
                with (self.folder / FILLER).open("wb", buffering=0) as file:
                    with suppress(OSError):
                        while True:
                            file.write(bytes(4096))
                    file.truncate(file.tell() - but)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (but, self.limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
            (self.folder / FILLER).unlink(missing_ok=True)


@pytest.fixture(params=["mounted", "limited"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    is_mounted, mount = request.param == "mounted", ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if is_mounted and subprocess.run(mount, check=False).returncode:
        pytest.skip("file systems cannot be mounted here; the limit on files is tested instead")
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield Disk(folder, is_mounted=is_mounted)
    signal.signal(signal.SIGXFSZ, former)
    if is_mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (FILLER, ".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(".lock")}


def test_a_full_disk_leaves_what_stood_before(
    disk: Disk, tmp_path: Path, random_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = disk.folder
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
        with disk.full():
            code = main([*words, *model])
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2 and error.startswith(f"mllm: {disk.error}: {there}"), (words, error)
    assert contents(there) == before


def test_a_full_disk_costs_a_training_nothing_but_its_last_checkpoint(
    disk: Disk, tmp_path: Path, mllm_recipe: MLLMRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    output = disk.folder / "run"
    words = ["train", str(write_recipe(mllm_recipe, tmp_path / "recipe.yaml")), "--output", str(output)]
    words += ["--trainer.report_to", "none", "--trainer.max_steps"]
    assert main([*words, "2"]) == 0
    before = {name: data for name, data in contents(output).items() if "/" in name}  # not the log and the recipe
    assert {name.split("/")[0] for name in before} == {"checkpoint-2", "final", "codes"}
    with disk.full(but=64 << 10):
        assert main([*words, "4"]) == 2
    assert f"{disk.error}: {output / 'checkpoint-4'}" in capsys.readouterr().err.splitlines()[-1]
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


def test_an_interrupted_training_says_how_to_resume(
    tmp_path: Path, mllm_recipe: MLLMRecipe, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(recipe: MLLMRecipe) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.trainer.train_mllm", train)
    words = ["train", str(write_recipe(mllm_recipe, tmp_path / "recipe.yaml"))]
    assert main(words) == 130 and "no checkpoint yet" in capfd.readouterr().err
    (mllm_recipe.output / "checkpoint-2").mkdir()
    assert main(words) == 130 and f"resumes from {mllm_recipe.output / 'checkpoint-2'}" in capfd.readouterr().err


def test_an_interrupted_draw_keeps_finished_images(
    tmp_path: Path, random_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mllm.pipeline import Pipeline

    draw, counts = Pipeline.draw, []

    def interrupted(pipeline: Pipeline, prompt: str, **settings: int) -> list[Image.Image]:
        counts.append(settings["n"])
        if len(counts) == 3:
            raise KeyboardInterrupt
        return draw(pipeline, prompt, **settings)

    monkeypatch.setattr(Pipeline, "draw", interrupted)
    words = ["draw", "red", "-o", str(tmp_path / "a.png"), "-n", "40", "--model", str(random_model_folder)]
    assert main([*words, "--seed", "5"]) == 130
    done = capfd.readouterr()
    assert f"{sum(counts[:2])} of 40" in done.err and len(list(tmp_path.glob("a-*.png"))) == sum(counts[:2])
    assert done.out.splitlines()[-1].endswith(f"seed {5 + sum(counts[:2]) - 1}")
