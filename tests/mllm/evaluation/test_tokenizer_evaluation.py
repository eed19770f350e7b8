"""Evaluation of image tokenizers: numbers against plain computation, folder and archive alike, missing input.

Weights of other networks are small and random, in the layout of the published files.
"""

import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mllm.checkpoint import find_image_tokenizer
from mllm.cli.main import main
from mllm.evaluation.tokenizer import fit_probe
from tests.conftest import small_tokenizer_config
from tests.train.published_weights import lpips_weights, write_merges
from tokenizer.images import ImageProcessor
from tokenizer.metrics import CLIP_TEMPLATES, LPIPS, read_templates
from tokenizer.text_tower import load_captions
from tokenizer.unitok import UniTok

NUM_IMAGES = 13
CLASSES = ("acorn", "big_cat", "cup", "drum", "elk", "fork", "goat")


class Rounding:
    """Another tokenizer: each pixel's mean color in 5 steps."""

    name, image_size, codebook_size = "rounding", 24, 5

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        return ((pixels_B3HW.mean(dim=1) + 1) * 2).round().long().flatten(1)[:, None]

    def decode(self, codes_BKN: Tensor) -> Tensor:
        return (codes_BKN / 2 - 1).view(-1, 1, 24, 24).expand(-1, 3, -1, -1)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        return pixels_B3HW.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    levels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 40, 33, 3), dtype=np.uint8)
    for number, image in enumerate(levels):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def evaluate(output: Path, *words: str | Path) -> dict:
    fixed = ["evaluate", "tokenizer", "--output", str(output), "--device", "cpu", "--batch-size", "3"]
    assert main([*fixed, *map(str, words)]) == 0
    return json.loads((output / "result.json").read_text())


def test_reconstruction_and_codes_equal_plain_computation(folder: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "lpips_with_vgg.pth"
    torch.save(lpips_weights(), file)
    result = evaluate(tmp_path, "--model", folder, "--images", images, "--lpips", file)
    tokenizer = find_image_tokenizer(str(folder), device="cpu")
    prepare, lpips = ImageProcessor(height=32, width=32, preparation="zero_shot"), LPIPS(lpips_weights())
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)
    assert sheet.shape == (2 * (2 * 32 + 8), 6 * (32 + 8), 3)  # twelve pairs, six in a row
    psnrs, distances, codes = [], [], []
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        pixels = prepare(Image.open(path))
        codes.append(tokenizer.encode(pixels))
        decoded = tokenizer.decode(codes[-1]).clamp(-1, 1)
        psnrs.append(10 * np.log10(4 / ((decoded - pixels).numpy().astype(np.float64) ** 2).mean()))
        distances.append(lpips(decoded, pixels).item())
        if number < 12:  # on the sheet, each image above what comes back
            top, left = number // 6 * 72 + 4, number % 6 * 40 + 4
            for expected, start in ((pixels, top), (decoded, top + 32)):
                plain = (expected[0].permute(1, 2, 0).numpy() + 1) * 127.5
                assert np.abs(sheet[start : start + 32, left : left + 32] - plain).max() <= 1.0
    for name, values in (("PSNR", psnrs), ("LPIPS", distances)):
        score = result["scores"][name]
        assert score["value"] == pytest.approx(np.mean(values), rel=1e-4) and score["count"] == NUM_IMAGES
        assert score["low"] < score["value"] < score["high"]
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


def test_an_archive_and_a_folder_of_the_same_images_score_the_same(
    folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as file:
        for path in sorted(images.rglob("*.*"), reverse=True):
            file.add(path, arcname=str(path.relative_to(images)))
    words = ["--model", str(folder), "--limit", "5", "--images"]
    results = [evaluate(tmp_path / str(n), *words, path) for n, path in enumerate((archive, images))]
    assert results[0]["scores"] == results[1]["scores"]
    assert results[0]["items_scored"] == 5 and not results[0]["is_complete"]
    assert f"PARTIAL: 5 of {NUM_IMAGES} items" in capsys.readouterr().out


def test_another_tokenizer_is_evaluated_through_the_interface(images: Path, tmp_path: Path) -> None:
    for name, color in (("dark_red", (150, 0, 0)), ("pale_blue", (150, 150, 250))):  # any feature tells them apart
        for shade in range(4):
            path = tmp_path / "colors" / name / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (color[0] - shade, *color[1:])).save(path)
    words = ["--codec", f"{__name__}:Rounding", "--images", images, "--crop", "stretch"]
    result = evaluate(tmp_path, *words, "--class-images", tmp_path / "colors", "--probe-images", tmp_path / "colors")
    assert result["protocol"] == "tokenizer@stretch-24" and result["model"]["fingerprint"] == "rounding"
    assert result["extra"]["tokens"] == 24 * 24 and result["extra"]["codebooks"] == 1
    assert result["scores"]["linear probe top-1"]["value"] == 100.0
    assert result["scores"]["linear probe top-1"]["count"] == 8


def test_the_probe_minimises_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)
    weights, bias = (part.requires_grad_() for part in fit_probe(features, labels, num_classes=3))
    loss = torch.nn.functional.cross_entropy(features @ weights + bias, labels) + 1e-3 * weights.square().sum()
    assert all(gradient.abs().max() < 1e-3 for gradient in torch.autograd.grad(loss, (weights, bias)))


def test_zero_shot_accuracy_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    classes, rng = tmp_path / "classes", np.random.default_rng(1)
    for label, name in enumerate(CLASSES):  # of unequal size
        (classes / name).mkdir(parents=True)
        for number in range(2 + label % 3):
            levels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(levels).save(classes / name / f"{number}.png")
    torch.manual_seed(3)
    text = {"embed_dim": 10, "text_vocab_size": 517, "text_context": 12, "text_width": 8, "text_heads": 2}
    tokenizer = UniTok(replace(small_tokenizer_config(), **text, text_layers=1)).eval()
    tokenizer.save_pretrained(tmp_path / "model")
    merges = write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")
    templates, names = tmp_path / "templates.txt", tmp_path / "names.json"
    templates.write_text("a {}.\nthe {} of the cat.\n")
    names.write_text(json.dumps({name: f"{name[:2]} thing" for name in CLASSES}))
    captions = load_captions(merges, vocab_size=517, context=12)
    prepare = ImageProcessor(height=48, width=48, preparation="zero_shot")
    for more, sentences, prompts in (
        ((), read_templates(CLIP_TEMPLATES), "CLIP's 80 sentences"),
        (("--templates", templates), ("a {}.", "the {} of the cat."), "sentences of templates.txt"),
    ):
        files = ("--model", tmp_path / "model", "--images", classes, "--class-images", classes, "--classes", names)
        result = evaluate(tmp_path / "out", *files, "--text-vocabulary", merges, *more)
        assert result["prompts"] == prompts and result["decoding"] is None
        ranks, towers = [], []
        with torch.no_grad():
            for name in CLASSES:
                vectors = [tokenizer.encode_text(captions([s.format(f"{name[:2]} thing")]))[0] for s in sentences]
                mean = torch.stack([vector / vector.norm() for vector in vectors]).mean(dim=0)
                towers.append(mean / mean.norm())
            for label, name in enumerate(CLASSES):
                for path in sorted((classes / name).iterdir()):
                    seen = tokenizer.encode_image(prepare(Image.open(path)))[0]
                    similarity = [(seen @ tower).item() for tower in towers]
                    ranks.append(sum(other > similarity[label] for other in similarity))
        for best in (1, 5):
            score = result["scores"][f"zero-shot top-{best}"]
            assert score["value"] == pytest.approx(100 * np.mean([rank < best for rank in ranks]))
            assert score["count"] == len(ranks)
        assert 0 < result["scores"]["zero-shot top-5"]["value"] < 100  # else nothing was told apart


def test_fid_is_over_the_images_of_this_evaluation_alone(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second evaluation of fewer images in the same folder leaves none of the first; FID itself is a stand-in."""
    seen: list[tuple[int, int]] = []

    def calculate_metrics(*, input1: str, input2: str, **_: object) -> dict[str, float]:
        seen.append((len(list(Path(input1).iterdir())), len(list(Path(input2).iterdir()))))
        return {"frechet_inception_distance": 1.5, "inception_score_mean": 2.5}

    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=calculate_metrics))
    for more in ((), ("--limit", "4")):
        result = evaluate(tmp_path, "--model", folder, "--images", images, "--fid", *more)
    assert seen == [(NUM_IMAGES, NUM_IMAGES), (4, 4)]
    assert (result["scores"]["rFID"]["value"], result["scores"]["IS"]["value"]) == (1.5, 2.5)
    assert result["scores"]["rFID"]["count"] == 4 and "torch-fidelity" in result["scored_with"]
