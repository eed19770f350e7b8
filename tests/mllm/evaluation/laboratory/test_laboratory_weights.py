"""What the laboratory measures with further weights: LPIPS and zero-shot accuracy, against plain computation.

The weights are small and random, in the layout of the published files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli.main import main
from tests.train.published_weights import lpips_weights, picture, write_merges
from tokenizer.config import UniTokConfig
from tokenizer.images import ImageProcessor
from tokenizer.metrics import LPIPS, TEMPLATES
from tokenizer.text_tower import load_captions
from tokenizer.unitok import UniTok

NAMES = ("acorn", "big_cat", "cup", "drum", "elk", "fork", "goat")


@pytest.fixture(scope="module")
def tokenizer() -> UniTok:
    """A tokenizer with a text tower."""
    torch.manual_seed(3)
    small = {"width": 12, "depth": 1, "decoder_depth": 1, "num_heads": 2, "stem_width": 4, "projection_heads": 2}
    stages = {"stage_widths": (4, 8), "stage_depths": (1, 1), "decoder_widths": (8, 4), "decoder_depths": (1, 1)}
    codes = {"image_size": 32, "num_codebooks": 3, "codebook_size": 17, "code_width": 4}
    text = {"embed_dim": 10, "text_vocab_size": 517, "text_context": 12, "text_width": 8, "text_heads": 2}
    return UniTok(UniTokConfig(**small, **stages, **codes, **text, text_layers=1)).eval()


@pytest.fixture(scope="module")
def folder(tokenizer: UniTok, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes of unequal size."""
    path = tmp_path_factory.mktemp("classes")
    for label, name in enumerate(NAMES):
        (path / name).mkdir()
        for number in range(2 + label % 3):
            picture(10 * label + number).save(path / name / f"{number}.png")
    return path


def measure(output: Path, *words: str | Path) -> dict:
    fixed = ["evaluate", "tokenizer", "--output", str(output), "--device", "cpu", "--batch-size", "4"]
    assert main([*fixed, *map(str, words)]) == 0
    return json.loads((output / "result.json").read_text())


def test_lpips_is_the_mean_distance_of_pictures_and_their_reconstructions(
    tokenizer: UniTok, folder: Path, classes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lpips_with_vgg.pth"
    torch.save(lpips_weights(), file)
    result = measure(tmp_path / "out", "--model", folder, "--images", classes, "--lpips", file)
    prepare, lpips = ImageProcessor(height=32, width=32, preparation="zero_shot"), LPIPS(lpips_weights())
    distances = []
    for path in sorted(classes.rglob("*.png")):
        pixels = prepare(Image.open(path))
        again = tokenizer.decode(tokenizer.encode(pixels)).clamp(-1, 1)
        distances.append(lpips(again, pixels).item())
    score = result["scores"]["LPIPS"]
    assert score["value"] == pytest.approx(np.mean(distances), rel=1e-4) and score["value"] > 0
    assert score["low"] < score["value"] < score["high"] and score["count"] == len(distances)


@pytest.mark.parametrize("own_templates", [False, True])
def test_zero_shot_accuracy_is_that_of_a_plain_loop(
    own_templates: bool, tokenizer: UniTok, folder: Path, classes: Path, tmp_path: Path
) -> None:
    merges = write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz")
    templates = tmp_path / "templates.txt"
    templates.write_text("a {}.\nthe {} of the cat.\n")
    words: list[str | Path] = ["--templates", templates] if own_templates else []
    names = tmp_path / "names.json"
    names.write_text(json.dumps({name: f"{name[:2]} thing" for name in NAMES}))
    result = measure(
        *(tmp_path / "out", "--model", folder, "--images", classes, "--class-images", classes),
        *("--classes", names, "--text-vocabulary", merges, *words),
    )
    sentences = ["a {}.", "the {} of the cat."] if own_templates else list(TEMPLATES)
    assert result["prompts"] == ("sentences of templates.txt" if own_templates else "CLIP's 80 sentences")
    assert {"python", "mllm-toolkit", "torch", "pillow"} <= set(result["versions"]) and result["decoding"] is None
    captions = load_captions(merges, vocab_size=517, context=12)
    prepare = ImageProcessor(height=32, width=32, preparation="zero_shot")
    towers = []
    with torch.no_grad():
        for name in NAMES:
            vectors = [tokenizer.encode_text(captions([s.format(f"{name[:2]} thing")]))[0] for s in sentences]
            mean = torch.stack([vector / vector.norm() for vector in vectors]).mean(dim=0)
            towers.append(mean / mean.norm())
        places = []
        for label, name in enumerate(NAMES):
            for path in sorted((classes / name).iterdir()):
                seen = tokenizer.encode_image(prepare(Image.open(path)))[0]
                likeness = [(seen @ tower).item() for tower in towers]
                places.append(sum(other > likeness[label] for other in likeness))
    for best in (1, 5):
        score = result["scores"][f"zero-shot top-{best}"]
        assert score["value"] == pytest.approx(100 * np.mean([place < best for place in places]))
        assert score["count"] == len(places)
    assert 0 < result["scores"]["zero-shot top-5"]["value"] < 100  # else nothing was told apart


def test_the_sheet_shows_each_picture_above_what_comes_back(
    tokenizer: UniTok, folder: Path, classes: Path, tmp_path: Path
) -> None:
    measure(tmp_path, "--model", folder, "--images", classes)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    prepare = ImageProcessor(height=32, width=32, preparation="zero_shot")
    assert sheet.shape == (2 * (2 * 32 + 8), 6 * (32 + 8), 3)  # twelve pairs, six in a row
    for number, path in enumerate(sorted(classes.rglob("*.png"))[:12]):
        pixels = prepare(Image.open(path))
        again = tokenizer.decode(tokenizer.encode(pixels)).clamp(-1, 1)
        top, left = number // 6 * 72 + 4, number % 6 * 40 + 4
        for expected, start in ((pixels, top), (again, top + 32)):
            shown = sheet[start : start + 32, left : left + 32].astype(float)
            plain = (expected[0].permute(1, 2, 0).numpy() + 1) * 127.5
            assert np.abs(shown - plain).max() <= 1.0
