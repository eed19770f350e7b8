"""`mllm convert` as a person types it: what it writes works, and a wrong source is named in one sentence."""

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

from mllm.checkpoint import find_image_tokenizer, require_room
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


def pictures_and_answers(folder: Path) -> list[Any]:
    pipeline = Pipeline.load(folder, device="cpu")
    pictures = pipeline.draw("a red circle", n=2, seed=3)
    looked_at = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
    return [*(np.asarray(picture).tolist() for picture in pictures), pipeline.ask(looked_at, "What is it?", seed=1)]


def test_released_folder_and_its_conversion_draw_and_answer_as_the_model_they_come_from(
    ours: Path, released: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released model may be on the hub."""
    monkeypatch.setattr("mllm.checkpoint.fetch_from_hub", lambda name: released)
    code, out, err = run("unitok-mllm", "someone/model", tmp_path / "model", "--shard-size", "0.00003")
    assert (code, err) == (0, "")
    assert "3 codebooks of 17, images of 32 pixels, full attention" in out
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    assert "trained for: draw, ask, describe, chat" in (tmp_path / "model" / "README.md").read_text()
    found = [pictures_and_answers(folder) for folder in (ours, released, tmp_path / "model")]
    assert found[0] == found[1] == found[2]


def test_image_tokenizer_goes_in_and_out_by_command(ours: Path, released: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("unitok", released / "unitok_tokenizer.pth", tmp_path / "unitok")
    assert code == 0
    assert out == f"{tmp_path}/unitok: 3 codebooks of 17, images of 32 pixels, full attention\n"
    mine = load_file(ours / "image_tokenizer" / "model.safetensors")
    theirs = load_file(tmp_path / "unitok" / "model.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    names = (tmp_path / "unitok", released, released / "unitok_tokenizer.pth")  # a folder, a model, the released file
    found = [find_image_tokenizer(str(name)).quantizer.codebooks for name in names]
    assert found[0].equal(found[1]) and found[0].equal(found[2])
    assert run("export-unitok", tmp_path / "unitok", tmp_path / "back.pth")[0] == 0
    options = ("--dtype", "bfloat16", "--attention", "causal")
    assert run("unitok", tmp_path / "back.pth", tmp_path / "half", *options)[0] == 0
    half = UniTok.from_pretrained(tmp_path / "half")
    assert (half.dtype, half.config.projection_attention) == (torch.bfloat16, "causal")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    code, out, _ = run("probe", tmp_path / "back.pth", "--images", tmp_path / "red.png")
    assert code == 0 and out.splitlines()[3].startswith("undecided"), "weights are random"


def test_types_and_a_separate_image_tokenizer(released: Path, tmp_path: Path, run: Run) -> None:
    copy = Path(shutil.copytree(released, tmp_path / "copy"))
    (copy / "unitok_tokenizer.pth").unlink()
    code, out, _ = run("unitok-mllm", copy, tmp_path / "bare", "--dtype", "bfloat16")
    assert code == 0 and "no image tokenizer" in out
    assert {tensor.dtype for tensor in load_file(tmp_path / "bare" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["dtype"] == "bfloat16"
    words = ("unitok-mllm", copy, tmp_path / "full", "--image-tokenizer", released / "unitok_tokenizer.pth")
    assert run(*words)[0] == 0
    assert (tmp_path / "full" / "image_tokenizer" / "model.safetensors").is_file()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of the last file."""
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    save_file(change(load_file(path)), path)


def swap_codebooks(folder: Path) -> None:
    """Another image tokenizer of the same sizes."""
    path = folder / "unitok_tokenizer.pth"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["trainer"]["unitok"]
    state["quantizer.codebooks.0.codebook.weight"] = -state["quantizer.codebooks.0.codebook.weight"]
    torch.save(checkpoint, path)


def test_damaged_folders_are_refused_in_one_line(ours: Path, released: Path, tmp_path: Path, run: Run) -> None:
    config = json.loads((released / "config.json").read_text())
    damages: list[tuple[Callable[[Path], object], str]] = [
        (lambda folder: rewrite(folder, lambda tensors: dict([*tensors.items()][1:])), "1 missing: "),
        (lambda folder: rewrite(folder, lambda tensors: tensors | {"model.tower": torch.zeros(2)}), "model.tower"),
        (lambda folder: rewrite(folder, lambda tensors: {n: torch.zeros(2, 7) for n in tensors}), "(2, 7)"),
        (lambda folder: sorted(folder.glob("model-*.safetensors"))[1].unlink(), ""),
        (lambda folder: (folder / "config.json").write_text("{"), ""),
        (lambda folder: (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"})), "llava"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 48})), ""),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "text tokenizer"),
        (swap_codebooks, "codebooks"),
        (lambda folder: (folder / "unitok_tokenizer.pth").write_text("a page that says: log in first"), ""),
    ]
    for number, (damage, named) in enumerate(damages):
        copy = Path(shutil.copytree(released, tmp_path / f"copy-{number}"))
        damage(copy)
        code, out, err = run("unitok-mllm", copy, tmp_path / "out")
        assert code == 2 and out == ""
        assert err.startswith("mllm: ") and len(err.splitlines()) == 1 and named in err, err
        assert not (tmp_path / "out" / "config.json").exists()
        if number < 3:
            with pytest.raises(ValueError):
                Pipeline.load(copy)
    for words in (
        ["unitok", released / "config.json", tmp_path / "out"],
        ["unitok-mllm", released, ours],
        ["export-unitok", ours / "image_tokenizer", ours / "config.json"],
    ):
        code, _, err = run(*words)
        assert code == 2 and len(err.splitlines()) == 1, (words, err)
    with pytest.raises(ValueError):  # a full disk is noticed before the first byte
        require_room(tmp_path, 10**18)
