"""The tokenizer laboratory: numbers against plain computation, folder and archive alike, what is missing is named."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mllm.checkpoint import find_image_tokenizer
from mllm.cli.main import main
from mllm.evaluation.tokenizer import class_names, count_pictures, find_measured, fit_probe, read_pictures
from tests.mllm.tiny_folder import build_tiny_folder
from tokenizer.images import ImageProcessor
from tokenizer.unitok import UniTok

NUM_PICTURES = 7


class Rounding:
    """Another tokenizer: each pixel's mean color in 5 steps; `find_rounding` is its factory."""

    name, image_size, codebook_size = "rounding", 24, 5

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        return ((pixels_B3HW.mean(dim=1) + 1) * 2).round().long().flatten(1)[:, None]

    def decode(self, codes_BKN: Tensor) -> Tensor:
        return (codes_BKN / 2 - 1).view(-1, 1, 24, 24).expand(-1, 3, -1, -1)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        return pixels_B3HW.mean(dim=(2, 3))


def find_rounding() -> Rounding:
    return Rounding()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    levels = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, 40, 33, 3), dtype=np.uint8)
    for number, picture in enumerate(levels):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that any feature tells apart."""
    folder = tmp_path_factory.mktemp("colors")
    for number, name in enumerate(("dark_red", "pale_blue")):
        (folder / name).mkdir()
        for shade in range(4):
            color = ((150 + shade, 0, 0), (150, 150, 250 - shade))[number]
            Image.new("RGB", (40, 40), color).save(folder / name / f"{shade}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"))


def measure(output: Path, *words: str) -> dict:
    assert main(["evaluate", "tokenizer", "--output", str(output), "--device", "cpu", "--batch-size", "3", *words]) == 0
    return json.loads((output / "result.json").read_text())


def test_reconstruction_and_codes_equal_plain_computation(model: Path, pictures: Path, tmp_path: Path) -> None:
    result = measure(tmp_path, "--model", str(model), "--images", str(pictures))
    tokenizer = find_image_tokenizer(str(model), device="cpu")
    prepare = ImageProcessor(height=32, width=32, preparation="zero_shot")
    psnrs, codes = [], []
    for path in sorted(pictures.rglob("*.png")):
        pixels = prepare(Image.open(path))
        codes.append(tokenizer.encode(pixels))
        error = (tokenizer.decode(codes[-1]) - pixels).numpy().astype(np.float64)
        psnrs.append(10 * np.log10(4 / (error**2).mean()))
    assert result["scores"]["PSNR"]["value"] == pytest.approx(np.mean(psnrs), abs=1e-3)
    assert result["scores"]["PSNR"]["low"] < np.mean(psnrs) < result["scores"]["PSNR"]["high"]
    for k in range(3):
        counts = np.bincount(torch.cat(codes)[:, k].flatten().numpy(), minlength=17)
        share = counts[counts > 0] / counts.sum()
        entropy = -(share * np.log(share)).sum()
        assert result["extra"]["entropy"][k] == pytest.approx(entropy, abs=1e-4)
        assert result["extra"]["perplexity"][k] == pytest.approx(np.exp(entropy), rel=1e-4)
        assert result["extra"]["usage"][k] == pytest.approx((counts > 0).mean(), abs=1e-5)
    assert result["protocol"] == "tokenizer@zero_shot-32" and result["is_complete"]
    assert result["extra"]["crop"] == "shorter side to 32 (bicubic), centre crop 32 x 32"
    assert result["extra"]["columns"] == {"Tokens": "4"}
    assert Image.open(tmp_path / "sheet.png").size[0] == 6 * (32 + 8)


def test_an_archive_and_a_folder_of_the_same_pictures_score_the_same(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "pictures.tar"
    with tarfile.open(archive, "w") as file:
        for path in sorted(pictures.rglob("*.*"), reverse=True):
            file.add(path, arcname=str(path.relative_to(pictures)))
    assert [named.name for named in read_pictures(archive)] == [named.name for named in read_pictures(pictures)]
    words = ["--model", str(model), "--limit", "5", "--images"]
    results = [measure(tmp_path / str(n), *words, str(path)) for n, path in enumerate((archive, pictures))]
    assert results[0]["scores"] == results[1]["scores"]
    assert results[0]["items_scored"] == 5 and not results[0]["is_complete"]
    assert f"PARTIAL: 5 of {NUM_PICTURES} items" in capsys.readouterr().out


def test_another_tokenizer_is_measured_through_the_interface(pictures: Path, colors: Path, tmp_path: Path) -> None:
    words = ["--codec", f"{__name__}:find_rounding", "--images", str(pictures), "--crop", "stretch"]
    sys.modules.setdefault(__name__, sys.modules[Rounding.__module__])
    result = measure(tmp_path, *words, "--class-images", str(colors), "--probe-images", str(colors))
    assert result["protocol"] == "tokenizer@stretch-24" and result["model"]["fingerprint"] == "rounding"
    assert result["extra"]["tokens"] == 24 * 24 and result["extra"]["codebooks"] == 1
    assert result["scores"]["linear probe top-1"]["value"] == 100.0
    assert result["scores"]["linear probe top-1"]["count"] == 8


def test_the_probe_minimises_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)
    weights, bias = (part.requires_grad_() for part in fit_probe(features, labels, num_classes=3))
    loss = torch.nn.functional.cross_entropy(features @ weights + bias, labels) + 1e-3 * weights.square().sum()
    for gradient in torch.autograd.grad(loss, (weights, bias)):
        assert gradient.abs().max() < 1e-3


def test_class_names_are_the_folders_unless_a_file_has_others(colors: Path, tmp_path: Path) -> None:
    assert class_names(colors, None) == {"dark_red": "dark red", "pale_blue": "pale blue"}
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"dark_red": "blood", "pale_blue": "sky"}))
    assert class_names(colors, str(file)) == {"dark_red": "blood", "pale_blue": "sky"}


def test_what_is_missing_is_named(
    model: Path, pictures: Path, colors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "tokenizer", "--model", str(model), "--device", "cpu", "--output", str(tmp_path)]
    (tmp_path / "empty").mkdir()
    for more, message in (
        (["--images", str(tmp_path / "none")], "no folder and no tar archive"),
        (["--images", str(tmp_path / "empty")], "holds no picture"),
        (["--images", str(pictures), "--probe-images", str(colors)], "found no --class-images"),
        (["--images", str(pictures), "--class-images", str(colors)], "measures nothing"),
        (["--images", str(pictures), "--codec", "rounding"], "write package.module:function"),
        (["--images", str(pictures), "--codec", "json:rounding"], "cannot be used"),
        (
            ["--images", str(pictures), "--class-images", str(colors), "--text-vocabulary", str(tmp_path / "v.model")],
            "has no text tower",
        ),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "sheet.png").exists()  # said before the work
    archive, broken = tmp_path / "broken.tar", tmp_path / "a.png"
    broken.write_bytes(b"no picture")
    with tarfile.open(archive, "w") as file:
        file.add(broken, arcname="a.png")
    assert count_pictures(archive) == 1
    with pytest.raises(ValueError, match="broken.tar, a.png does not open"):
        list(read_pictures(archive))
    assert isinstance(find_measured(str(model), None, device="cpu").model, UniTok)


def test_fid_is_over_the_pictures_of_this_measurement_alone(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second measurement of fewer pictures in the same folder leaves none of the first; FID itself is a stand-in."""
    library = ModuleType("torch_fidelity")
    seen: list[tuple[int, int]] = []

    def calculate_metrics(*, input1: str, input2: str, **_: object) -> dict[str, float]:
        seen.append((len(list(Path(input1).iterdir())), len(list(Path(input2).iterdir()))))
        return {"frechet_inception_distance": 1.5, "inception_score_mean": 2.5}

    library.__dict__["calculate_metrics"] = calculate_metrics
    monkeypatch.setitem(sys.modules, "torch_fidelity", library)
    words = ["--model", str(model), "--images", str(pictures), "--fid"]
    measure(tmp_path, *words)
    result = measure(tmp_path, *words, "--limit", "4")
    assert seen == [(NUM_PICTURES, NUM_PICTURES), (4, 4)]
    assert (result["scores"]["rFID"]["value"], result["scores"]["IS"]["value"]) == (1.5, 2.5)
    assert result["scores"]["rFID"]["count"] == 4 and "torch-fidelity" in result["scored_with"]


def test_fid_without_its_library_is_refused_before_anything_is_computed(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    words = ["evaluate", "tokenizer", "--model", str(model), "--images", str(pictures), "--output", str(tmp_path / "o")]
    assert main([*words, "--fid"]) == 2
    assert "pip install 'mllm-toolkit[eval-images]'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
