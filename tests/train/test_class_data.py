"""Pictures by class as training data: what is read, in which order, from which files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config import MLLMConfig
from mllm.world.checker import parse
from mllm.world.render import render
from mllm.world.scene import CLASSES, HELD_OUT_PAIRS, class_scene
from tokenizer.unitok import UniTok
from train.data.classes import (
    ClassBatches,
    ClassCodes,
    FolderClassPictures,
    WorldClassPictures,
    claim,
    encode_classes,
    main,
    ten_views,
    write_part,
)
from train.recipe import ClassData


def test_the_world_s_classes_are_what_the_checker_reads() -> None:
    assert len(CLASSES) == 30 and not set(CLASSES) & HELD_OUT_PAIRS
    for index in range(0, 30, 7):
        scene = parse(render(class_scene(index, Random(index)), 128)).scene
        assert [item.pair for item in scene.objects] == [CLASSES[index]]


def test_every_epoch_has_every_picture_once_in_its_own_order(tmp_path: Path) -> None:
    codes_ESKN = np.arange(7, dtype=np.uint16)[:, None, None, None] * np.ones((1, 1, 2, 4), dtype=np.uint16)
    claim(tmp_path, {"tokenizer": "any"})
    write_part(tmp_path, 0, codes_ESKN[:4], np.arange(4))
    write_part(tmp_path, 1, codes_ESKN[4:], np.arange(4, 7))
    config = MLLMConfig(
        prompt_style="class",
        image_layout="bare",
        num_classes=7,
        first_class_id=10,
        num_codebooks=2,
        codebook_size=16,
        image_size=32,
    )
    options = {"tokenizer": None, "config": config, "rows": 1, "num_batches": 7}
    batches = ClassBatches([ClassCodes(tmp_path)], ClassData(), length=11, **options)
    assert batches.samples_per_batch == 2
    seen = [int(code) for index in range(7) for code in batches[index]["codes"][::4, 0]]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7)) and seen[:7] != seen[7:]
    for index in range(7):
        batch = batches[index]
        assert batch["input_ids"][0, ::5][:2].tolist() == (batch["codes"][::4, 0] + 10).tolist()
        assert all(torch.equal(value, batches[index][name]) for name, value in batch.items())
    with pytest.raises(ValueError, match="no picture fits into a row: found a length of 3"):
        ClassBatches(
            [ClassCodes(tmp_path)], ClassData(), tokenizer=None, config=config, length=3, rows=1, num_batches=1
        )


def test_llamagen_s_files_are_read_and_views_are_picked(tmp_path: Path) -> None:
    """One file for each picture, ten crops in it, labels beside; no meta.json."""
    for name in ("codes", "labels"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 16, (3, 1, 10, 2, 4))
    for number, label in enumerate((5, 0, 2)):
        np.save(tmp_path / "codes" / f"{number}.npy", stored[number])
        np.save(tmp_path / "labels" / f"{number}.npy", np.array([label]))
    codes = ClassCodes(tmp_path)
    assert [codes[index][1] for index in range(3)] == [5, 0, 2]
    assert all((codes[index][0] == stored[index, 0]).all() for index in range(3))
    codes.check(num_codebooks=2, num_positions=4, num_classes=6, fingerprint="any")


def test_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no codes by class"):
        ClassCodes(tmp_path)
    claim(tmp_path, {"tokenizer": "mine"})
    write_part(tmp_path, 0, np.zeros((2, 1, 2, 4), dtype=np.uint16), np.array([0, 3]))
    codes = ClassCodes(tmp_path)
    fits = {"num_codebooks": 2, "num_positions": 4, "num_classes": 4, "fingerprint": "mine"}
    codes.check(**fits)
    for change, named in (
        ({"num_positions": 9}, "found 2 codebooks and 4 positions"),
        ({"num_classes": 3}, "found 0 to 3, the model has 3"),
        ({"fingerprint": "yours"}, "another image tokenizer"),
    ):
        with pytest.raises(ValueError, match=named):
            codes.check(**{**fits, **change})
    with pytest.raises(ValueError, match="remove the folder"):
        claim(tmp_path, {"tokenizer": "yours"})
    with pytest.raises(ValueError, match="class_dropout is a share: found 1.5"):
        ClassData(class_dropout=1.5)
    (tmp_path / "labels" / "00000.npy").unlink()
    with pytest.raises(FileNotFoundError, match="codes without classes"):
        ClassCodes(tmp_path)


def test_a_folder_of_classes_is_encoded_in_ten_views(
    tmp_path: Path, image_tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for number, name in enumerate(("cat", "ant", "ant")):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8))
        picture.save(tmp_path / "pictures" / name / f"{number}.png")
    words = [str(tmp_path / "pictures"), str(tmp_path / "out"), "--image-tokenizer", str(image_tokenizer_folder)]
    assert main([*words, "--workers", "0"]) == 0
    assert "3 pictures of 2 classes" in capsys.readouterr().out
    codes = ClassCodes(tmp_path / "out")
    assert codes.labels_E.tolist() == [0, 0, 1]
    tokenizer = UniTok.from_pretrained(image_tokenizer_folder)
    views, label = FolderClassPictures(tmp_path / "pictures", size=32)[2]
    assert views.shape == (10, 3, 32, 32) and label == 1
    expected = tokenizer.encode(views.float().div(127.5).sub(1))
    assert (codes[2][0] == expected.numpy()).mean() > 0.98  # batches differ, so near ties may
    with pytest.raises(FileNotFoundError, match="found 0 sub-folders"):
        FolderClassPictures(tmp_path / "out" / "codes", size=32)


def test_the_views_are_four_corners_the_middle_and_their_mirrors() -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (44, 44, 3), dtype=np.uint8))  # 1.1 * 40
    views = [np.asarray(view) for view in ten_views(image, 40)]
    pixels = np.asarray(image)
    for view, (x, y) in zip(views, [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2)], strict=False):
        assert (view == pixels[y : y + 40, x : x + 40]).all()
    assert all((mirror == view[:, ::-1]).all() for view, mirror in zip(views[:5], views[5:], strict=True))


def test_an_interrupted_encoding_goes_on(tmp_path: Path, image_tokenizer_folder: Path) -> None:
    tokenizer = UniTok.from_pretrained(image_tokenizer_folder)
    pictures = WorldClassPictures(5, size=32, seed=0)
    encode_classes(pictures, tmp_path, tokenizer)
    path = tmp_path / "codes" / "00000.npy"
    before = path.read_bytes()
    encode_classes(pictures, tmp_path, tokenizer)
    path.unlink()
    encode_classes(pictures, tmp_path, tokenizer)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="remove the folder"):
        encode_classes(WorldClassPictures(6, size=32, seed=0), tmp_path, tokenizer)
