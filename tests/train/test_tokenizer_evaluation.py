"""What is measured while the tokenizer trains, against plain loops, and wrong folders."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.conftest import SMALL, TEXT_TOWER, everything
from tests.train.published_weights import picture, write_merges
from tokenizer.config import UniTokConfig
from tokenizer.images import ImageProcessor, read_image, to_images
from tokenizer.metrics import TEMPLATES, class_ranks, class_vectors, read_templates
from tokenizer.text_tower import load_captions
from tokenizer.unitok import UniTok
from train.recipe import EvaluationRecipe, TokenizerRecipe
from train.tokenizer_trainer import TokenizerEvaluation

NAMES = {"n01": "cat", "n02": "the dog", "n03": "house"}


@pytest.fixture
def model() -> UniTok:
    torch.manual_seed(3)
    made = UniTok(dataclasses.replace(UniTokConfig.tiny(), **SMALL, **TEXT_TOWER)).eval()
    torch.nn.init.normal_(made.quantizer.codebooks)
    for parameter in made.text_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with 3, 2 and 4 images, their names, and 5 references for rFID."""
    for label, (name, count) in enumerate(zip(NAMES, (3, 2, 4), strict=True)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(count):
            picture(10 * label + number).save(tmp_path / "val" / name / f"{number}.png")
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    (tmp_path / "real").mkdir()
    for number in range(5):
        picture(number, size=(32, 32)).save(tmp_path / "real" / f"{number}.png")
    return tmp_path


def evaluation(folder: Path, **fields: Path | bool) -> TokenizerEvaluation:
    captions = load_captions(write_merges(folder / "merges.txt.gz"), vocab_size=517, context=12)
    return TokenizerEvaluation(EvaluationRecipe(**fields), 32, batch_size=2, captions=captions)


def test_zero_shot_accuracy_equals_a_loop_over_images(folder: Path, model: UniTok) -> None:
    assert len(set(TEMPLATES)) == 80 and all(template.count("{}") == 1 for template in TEMPLATES)
    path = folder / "templates.txt"
    path.write_text("a {}.\n\nthe {} here.\nthe {} there.\n")
    templates = read_templates(path)
    assert templates == ("a {}.", "the {} here.", "the {} there.")
    measured = evaluation(folder, imagenet_val=folder / "val", classes=folder / "classes.json", templates=path)
    assert measured.captions is not None
    vectors = []
    for name in NAMES.values():
        rows = [model.encode_text(measured.captions([each.replace("{}", name)]))[0] for each in templates]
        mean = torch.stack([row / row.norm() for row in rows]).mean(0)
        vectors.append(mean / mean.norm())
    made_ND = class_vectors(model, measured.captions, list(NAMES.values()), templates)
    torch.testing.assert_close(made_ND, torch.stack(vectors), rtol=1e-4, atol=1e-5)
    ranks = []
    prepare = ImageProcessor(height=32, width=32, preparation="zero_shot")
    for label, name in enumerate(NAMES):
        for file in sorted((folder / "val" / name).iterdir()):
            pixels_1HW = prepare(read_image(file))
            scores = [
                torch.cosine_similarity(model.encode_image(pixels_1HW)[0], each, dim=0).item() for each in vectors
            ]
            ranks.append(sorted(scores, reverse=True).index(scores[label]))
            assert class_ranks(model, pixels_1HW, torch.tensor([label]), made_ND).tolist() == ranks[-1:]
    expected = sum(rank == 0 for rank in ranks) / len(ranks)
    assert measured.zero_shot(model) == {"zero_shot_top1": pytest.approx(expected), "zero_shot_top5": 1.0}
    path.write_text("no place\n")
    with pytest.raises(ValueError):
        read_templates(path)


def test_references_are_reconstructed_under_their_names_and_sheets_show_the_given_images(
    folder: Path, model: UniTok
) -> None:
    made = folder / "made"
    made.mkdir()
    (made / "of_someone_else.txt").write_text("stays")
    measured = evaluation(folder, fid_reference=folder / "real", fid_output=made, fid_score=False)
    assert measured.reconstruct_for_fid(model) == {}
    assert {file.name for file in made.iterdir()} == {"of_someone_else.txt", *(f"{number}.png" for number in range(5))}
    pixels = ImageProcessor(height=32, width=32, preparation="crop")(read_image(folder / "real" / "3.png"))
    expected = np.asarray(to_images(model.decode(model.encode(pixels)))[0])
    assert np.array_equal(np.asarray(Image.open(made / "3.png")), expected)
    for fields, size in (({"images": folder / "real"}, (5 * 40, 2 * 32 + 8)), ({}, (40, 72))):
        measured = evaluation(folder, **fields)
        measured.write_sheet(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), folder / "sheet.png")
        assert Image.open(folder / "sheet.png").size == size


def test_wrong_folders_and_recipes_are_refused_before_training(folder: Path) -> None:
    (folder / "empty").mkdir()
    references = {"fid_output": folder / "made", "fid_score": False}
    zero_shot = {"imagenet_val": folder / "val", "classes": folder / "other.json"}
    for wrong in ({"images": folder / "absent"}, {"fid_reference": folder / "empty", **references}, zero_shot):
        with pytest.raises(FileNotFoundError):
            evaluation(folder, **wrong)
    picture(9).save(folder / "real" / "lossy.jpg")
    with pytest.raises(ValueError):
        evaluation(folder, fid_reference=folder / "real", **references)
    for classes in ({**NAMES, "n04": "tree"}, []):
        (folder / "other.json").write_text(json.dumps(classes))
        with pytest.raises(ValueError):
            evaluation(folder, **zero_shot)
    with pytest.raises(ValueError):
        everything(folder, folder / "run", evaluation=EvaluationRecipe(imagenet_val=folder))
    with pytest.raises(ValueError):
        TokenizerRecipe(output=folder, evaluation=EvaluationRecipe(fid_reference=folder))
