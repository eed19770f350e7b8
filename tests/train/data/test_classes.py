"""Images by class as training data: from which files, what is learned, and in which order."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.config import MLLMConfig
from mllm.world.render import render
from mllm.world.scene import CLASSES, class_scene
from tests.train.data.raw_data import content, of_class, prepare_with, prepared
from tokenizer.images import read_image, to_bytes, to_pixels
from tokenizer.unitok import UniTok
from train.data.batches import class_sequences
from train.data.classes import ClassSequences
from train.data.packing import BatchShape, PackedBatches, Tokenizers
from train.data.records import Record, ten_views
from train.data.shards import CodeSource, ShardFolder
from train.recipe import ClassData

CODE_SOURCE = CodeSource("0123", 2, 16)
CODES = {"num_codebooks": 2, "codebook_size": 16, "image_size": 32}
CONFIG = MLLMConfig(prompt_style="class", image_layout="bare", num_classes=7, first_class_id=10, **CODES)
TOKENIZERS = Tokenizers(text=None, image=None, config=CONFIG)


def make_folder(path: Path, *shards: list[Record]) -> ShardFolder:
    return ShardFolder(prepared(path, shards, CODE_SOURCE))


def test_every_epoch_has_every_image_once_in_its_own_order(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, [of_class(n, [n]) for n in range(4)], [of_class(n, [n]) for n in range(4, 7)])
    sequences = ClassSequences(ClassData(), [folder], TOKENIZERS, BatchShape(rows=1, length=11))
    batches = PackedBatches(sequences, num_batches=7)
    seen = [int(code) for index in range(7) for code in batches[index]["codes"][::4, 0]]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7)) and seen[:7] != seen[7:]
    for index in range(7):
        batch = batches[index]
        assert batch["input_ids"][0, ::5][:2].tolist() == (batch["codes"][::4, 0] + 10).tolist()
        assert all(torch.equal(value, batches[index][name]) for name, value in batch.items())


def test_views_and_folders_are_picked_and_classes_dropped(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / name, [of_class(1, codes)]) for name, codes in (("a", [3, 4]), ("b", [5]))]
    sequences = ClassSequences(ClassData(class_dropout=0.3), folders, TOKENIZERS, BatchShape(1, 5))
    found = [sequences.sequence(0, Random(n)) for n in range(400)]
    codes = [int(sequence.codes_PK[0, 0]) for sequence in found]
    assert abs(codes.count(5) - 200) < 40 and abs(codes.count(3) - 100) < 35 and set(codes) == {3, 4, 5}
    dropped = [sequence.token_ids_T[0] == CONFIG.class_token_id(None) for sequence in found]
    assert abs(sum(dropped) - 120) < 35


def test_images_of_the_world_are_encoded_once(tmp_path: Path, image_tokenizer: UniTok) -> None:
    with pytest.raises(ValueError):  # a class that the model lacks
        ClassSequences(ClassData(), [make_folder(tmp_path / "more", [of_class(7, [1])])], TOKENIZERS, BatchShape(1, 5))
    config = MLLMConfig(**{**CONFIG.to_dict(), "num_classes": len(CLASSES)})
    tokenizers, of_world = replace(TOKENIZERS, image=image_tokenizer, config=config), ClassData(world_images=2)
    with pytest.raises(ValueError, match="raise it"):
        class_sequences(of_world, tmp_path / "codes", tokenizers, BatchShape(1, 4))
    assert not (tmp_path / "codes").exists(), "refused before images are encoded"
    first, longer = (
        class_sequences(data, tmp_path / "codes", tokenizers, BatchShape(1, 5)).folders[0][1]
        for data in (of_world, replace(of_world, world_images=3))
    )
    image = render(class_scene(1, Random("classes/0/1")), 32)
    codes_KN = first.messages[1].parts[0].codes_KN
    assert np.array_equal(codes_KN, image_tokenizer.encode(to_pixels(to_bytes(image)[None]))[0])
    assert content(longer) == content(first)


def test_a_folder_of_classes_is_prepared_in_ten_views(tmp_path: Path, image_tokenizer: UniTok) -> None:
    rng = np.random.default_rng(1)
    for number, name in enumerate(("cat", "ant", "ant")):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / name / f"{number}.png")
    prepare_with(image_tokenizer, tmp_path / "images", out=tmp_path / "out", name="classes", size=2)
    folder = ShardFolder(tmp_path / "out")
    assert [folder[index].messages[0].parts[0].text for index in range(3)] == ["0", "0", "1"]
    views = [to_bytes(view) for view in ten_views(read_image(tmp_path / "images" / "cat" / "0.png"), 32)]
    large = np.asarray(Image.open(tmp_path / "images" / "cat" / "0.png").resize((44, 35), Image.Resampling.BICUBIC))
    for view, (x, y) in zip(views, [(0, 0), (3, 0), (0, 3), (3, 3), (1, 1)], strict=False):
        assert np.array_equal(view.permute(1, 2, 0), large[y : y + 32, 4 + x : 4 + x + 32])
    assert all(torch.equal(mirror, view.flip(2)) for view, mirror in zip(views[:5], views[5:], strict=True))
    expected_BKN = image_tokenizer.encode(to_pixels(torch.stack(views))).numpy()
    codes_BKN = np.stack([part.codes_KN for part in folder[2].messages[1].parts])
    assert (codes_BKN == expected_BKN).mean() > 0.98  # batches differ, so near ties may


def test_codes_that_llamagen_extracted_are_prepared(tmp_path: Path, image_tokenizer: UniTok) -> None:
    """Files of one or several images, crops in them, labels beside."""
    for name in ("codes", "labels"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    stored = np.random.default_rng(0).integers(0, 16, (4, 10, 2, 4))
    for number, (part, labels) in enumerate(((slice(0, 1), [5]), (slice(1, 2), [0]), (slice(2, 4), [2, 3]))):
        np.save(tmp_path / "raw" / "codes" / f"{number}.npy", stored[part])
        np.save(tmp_path / "raw" / "labels" / f"{number}.npy", np.array(labels))
    prepare_with(image_tokenizer, tmp_path / "raw", out=tmp_path / "out", size=3)
    folder = ShardFolder(tmp_path / "out")
    assert [folder[index].messages[0].parts[0].text for index in range(4)] == ["5", "0", "2", "3"]
    assert all(np.array_equal([p.codes_KN for p in folder[i].messages[1].parts], stored[i]) for i in range(4))
