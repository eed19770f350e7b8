"""`mllm convert` as a person types it: what it writes works, and a wrong source is named in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mllm.checkpoint import require_room
from mllm.cli.main import main
from mllm.pipeline import Pipeline
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.unitok import UniTok

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["convert", *map(str, words)])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the released prompts and preparation of pictures."""
    folder = tmp_path_factory.mktemp("ours")
    fields = {"prompt_style": "unitok", "tasks": ["draw", "ask", "describe", "chat"]}
    build_tiny_folder(folder, context=400, **fields)
    (folder / "processor_config.json").write_text(json.dumps({"preparation": "understanding"}))
    return folder


@pytest.fixture(scope="module")
def released(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the released layout, the image tokenizer's file beside the model."""
    folder = tmp_path_factory.mktemp("released") / "folder"
    assert main(["convert", "export-unitok-mllm", str(ours), str(folder), "--shard-size", "0.00002"]) == 0
    assert (folder / "unitok_tokenizer.pth").is_file()
    assert (folder / "tokenizer.model").is_file() and not (folder / "image_tokenizer").exists()
    return folder


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(released, tmp_path / "copy"))


def pictures_and_answers(folder: Path) -> list[Any]:
    pipeline = Pipeline.load(folder, device="cpu")
    pictures = pipeline.draw("a red circle", n=2, seed=3)
    looked_at = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
    return [*(np.asarray(picture).tolist() for picture in pictures), pipeline.ask(looked_at, "What is it?", seed=1)]


def test_released_folder_and_its_conversion_draw_and_answer_as_the_model_they_come_from(
    ours: Path, released: Path, tmp_path: Path, run: Run
) -> None:
    code, out, err = run("unitok-mllm", released, tmp_path / "model", "--shard-size", "0.00003")
    assert (code, err) == (0, "")
    assert "3 codebooks of 17, images of 32 pixels, full attention" in out
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    assert "trained for: draw, ask, describe, chat" in (tmp_path / "model" / "README.md").read_text()
    converted = pictures_and_answers(tmp_path / "model")
    assert pictures_and_answers(released) == converted
    assert pictures_and_answers(ours) == converted


def test_a_released_model_may_be_on_the_hub(
    released: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm.checkpoint.fetch_from_hub", lambda name: released)
    code, out, err = run("unitok-mllm", "someone/model", tmp_path / "model")
    assert (code, err) == (0, "") and "3 codebooks of 17" in out


def test_image_tokenizer_goes_in_and_out_by_command(ours: Path, released: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("unitok", released / "unitok_tokenizer.pth", tmp_path / "unitok")
    assert code == 0
    assert out == f"{tmp_path}/unitok: 3 codebooks of 17, images of 32 pixels, full attention\n"
    mine = load_file(ours / "image_tokenizer" / "model.safetensors")
    theirs = load_file(tmp_path / "unitok" / "model.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert run("export-unitok", tmp_path / "unitok", tmp_path / "back.pth")[0] == 0
    assert (
        run("unitok", tmp_path / "back.pth", tmp_path / "half", "--dtype", "bfloat16", "--attention", "causal")[0] == 0
    )
    half = UniTok.from_pretrained(tmp_path / "half")
    assert (half.dtype, half.config.projection_attention) == (torch.bfloat16, "causal")


def test_tokenize_takes_a_converted_folder_a_released_model_and_the_released_file(
    released: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 20).convert("RGB").save("a.png")
    assert run("unitok", released / "unitok_tokenizer.pth", "unitok")[0] == 0
    for number, model in enumerate(("unitok", released, released / "unitok_tokenizer.pth")):
        assert main(["tokenize", "reconstruct", "a.png", "-o", f"{number}.png", "--model", str(model)]) == 0
    converted, model, file = (np.asarray(Image.open(f"{number}.png")).astype(int) for number in range(3))
    assert np.array_equal(converted, file)
    assert abs(model - file).max() <= 8  # where bfloat16 is fast, a model's tokenizer decodes in it


def test_types_and_a_separate_image_tokenizer(released: Path, copy: Path, tmp_path: Path, run: Run) -> None:
    (copy / "unitok_tokenizer.pth").unlink()
    code, out, _ = run("unitok-mllm", copy, tmp_path / "bare", "--dtype", "bfloat16")
    assert code == 0 and "no image tokenizer" in out
    assert {tensor.dtype for tensor in load_file(tmp_path / "bare" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["dtype"] == "bfloat16"
    words = ("unitok-mllm", copy, tmp_path / "full", "--image-tokenizer", released / "unitok_tokenizer.pth")
    assert run(*words)[0] == 0
    assert (tmp_path / "full" / "image_tokenizer" / "model.safetensors").is_file()


def test_probe_prints_both_readings_and_decides_nothing_for_random_weights(
    released: Path, tmp_path: Path, run: Run
) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    code, out, _ = run("probe", released / "unitok_tokenizer.pth", "--images", tmp_path / "red.png")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "attention  PSNR dB" and lines[1].startswith("full") and lines[2].startswith("causal")
    assert lines[3].startswith("undecided")
    words = ("unitok", released / "unitok_tokenizer.pth", tmp_path / "out", "--attention", "probe")
    code, _, err = run(*words)
    assert code == 2 and "--attention" in err
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_are_named_before_anything_is_written(released: Path, tmp_path: Path, run: Run) -> None:
    path = sorted(released.glob("model-*.safetensors"))[-1]
    tensors = load_file(path)
    first, *others = sorted(tensors)
    for number, (changed, named) in enumerate(
        (
            ({name: tensors[name] for name in others}, "1 missing: "),
            (tensors | {"model.vision_tower.weight": torch.zeros(2)}, "model.vision_tower.weight"),
            (tensors | {first: torch.zeros(2, 7)}, "(2, 7)"),
        )
    ):
        copy = Path(shutil.copytree(released, tmp_path / f"copy-{number}"))
        save_file(changed, copy / path.name)
        code, _, err = run("unitok-mllm", copy, tmp_path / "out")
        assert code == 2 and err.startswith("mllm: ") and len(err.splitlines()) == 1 and named in err
        assert not (tmp_path / "out").exists()
        with pytest.raises(ValueError):
            Pipeline.load(copy)


def swap_codebooks(folder: Path) -> None:
    """Another image tokenizer of the same sizes."""
    path = folder / "unitok_tokenizer.pth"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["trainer"]["unitok"]
    state["quantizer.codebooks.0.codebook.weight"] = -state["quantizer.codebooks.0.codebook.weight"]
    torch.save(checkpoint, path)


def test_damaged_folders_are_refused_in_one_line(ours: Path, released: Path, tmp_path: Path, run: Run) -> None:
    config = json.loads((released / "config.json").read_text())
    damages: list[Callable[[Path], object]] = [
        lambda folder: sorted(folder.glob("model-*.safetensors"))[1].unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"})),
        lambda folder: (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 48})),
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        swap_codebooks,
        lambda folder: (folder / "unitok_tokenizer.pth").write_text("a page that says: log in first"),
    ]
    for number, damage in enumerate(damages):
        copy = Path(shutil.copytree(released, tmp_path / f"copy-{number}"))
        damage(copy)
        code, out, err = run("unitok-mllm", copy, tmp_path / "out")
        assert code == 2 and out == ""
        assert err.startswith("mllm: ") and len(err.splitlines()) == 1, err
        assert not (tmp_path / "out" / "config.json").exists()
    for words in (
        ["unitok", released / "config.json", tmp_path / "out"],
        ["unitok-mllm", released, ours],
        ["export-unitok", ours / "image_tokenizer", ours / "config.json"],
    ):
        code, _, err = run(*words)
        assert code == 2 and len(err.splitlines()) == 1, (words, err)
    with pytest.raises(ValueError):  # a full disk is noticed before the first byte
        require_room(tmp_path, 10**18)
