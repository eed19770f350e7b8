"""Training images of the tokenizer: nothing twice, nothing lost, one order for all, and exact resume."""

import codecs
import gzip
from collections import Counter
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.world.scene import SceneObject
from tests.train.data.raw_data import image_file, tar_of
from tests.train.published_weights import write_tar
from train.data.tokenizer_images import RandomCrop, TarImages, WorldImages, find_shards, shard_order, window_on
from train.recipe import ShardsRecipe, TokenizerRecipe

SIZES = (3, 5, 2, 7, 4, 6, 1, 8)
TOTAL = sum(SIZES)


def numbers_of(captions: Sequence[str]) -> torch.Tensor:
    """Stands for a text vocabulary: the number that the image's caption ends in."""
    return torch.tensor([[int(caption.split()[-1])] for caption in captions])


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    made, first = [], 0
    for index, size in enumerate(SIZES):
        made.append(write_tar(tmp_path / f"{index:02d}.tar", range(first, first + size)))
        first += size
    return made


def reading(
    shards: list[Path], *, rank: int = 0, ranks: int = 1, workers: int = 1, seed: int = 0, **how: Any
) -> TarImages:
    read = ShardsRecipe(urls="::".join(map(str, shards)), **{"shuffle_shards": 2, **how})
    recipe = TokenizerRecipe(output=Path("x"), batch_size=3, num_workers=workers, seed=seed, shards=read)
    return TarImages(recipe, image_size=16, captions=numbers_of, rank=rank, ranks=ranks)


def test_an_epoch_holds_every_sample_once_in_one_order_for_any_number_of_readers(shards: list[Path]) -> None:
    line = [shards[index] for epoch in range(3) for index in shard_order(0, epoch, len(shards))]
    for ranks, workers in ((1, 1), (1, 3), (2, 2), (4, 2), (3, 1)):
        found = Counter[tuple[int, str]]()
        for rank in range(ranks):
            stream = reading(shards, rank=rank, ranks=ranks, workers=workers)
            for reader, window in product(stream.readers, range(8)):
                found.update((record.epoch, record.sample.name) for record in stream.window(reader, window))
            stream = reading(shards, rank=rank, ranks=ranks, shuffle_shards=1)
            assert [stream.window(rank, window)[0].shard for window in range(24 // ranks)] == line[rank::ranks]
        for epoch in (0, 1):
            assert [found[epoch, f"{number:06d}"] for number in range(TOTAL)] == [1] * TOTAL
    assert shard_order(0, 0, 8) != shard_order(0, 1, 8) != shard_order(1, 1, 8)
    keys, again, other = ([each.sample.name for each in reading(shards, seed=n).window(0, 0)] for n in (0, 0, 1))
    assert sorted(keys) != keys == again != other
    items = list(islice(reading(shards), 2 * TOTAL))  # cropped anew in every epoch
    number = items[0]["text_ids"].item()
    twice = [item["pixels"] for item in items if item["text_ids"].item() == number]
    assert len(twice) == 2 and not torch.equal(*twice)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_goes_on_exactly_where_training_stopped(shards: list[Path], tmp_path: Path, workers: int) -> None:
    whole = list(reading(shards, workers=workers, shuffle_shards=4).batches(0, 9))
    assert all(batch["pixels"].shape == (3, 3, 16, 16) for batch in whole)
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    first = reading(shards, workers=workers, shuffle_shards=4)
    before = list(first.batches(0, 5))
    first.save(folder)
    second = reading(shards, workers=workers, shuffle_shards=4)
    second.load(folder)
    after = list(second.batches(5, 9))
    for one, other in zip([*before, *after], whole, strict=True):
        assert one.keys() == other.keys() == {"pixels", "text_ids"}
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_readers_go_on_before_the_first_unfinished_shard(shards: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    first = reading(shards, workers=2, shuffle_shards=1)
    seen = torch.cat([batch["text_ids"] for batch in first.batches(0, 6)]).flatten().tolist()
    first.save(folder)
    second = reading(shards, workers=0, shuffle_shards=1)
    second.load(folder)
    assert 0 < second.start < len(shards)
    left = [record for window in range(8 - second.start) for record in second.window(0, window)]
    assert {*seen, *(int(record.sample.name) for record in left)} == set(range(TOTAL)), "nothing is lost"
    with pytest.raises(ValueError):
        reading(shards[:4]).load(folder)


def test_bad_records_stop_training_or_are_counted(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "good.tar", range(2))
    members = {"a.txt": b"no picture 7", "b.jpg": b"no JPEG", "b.txt": b"damaged 8", "c.png": image_file(3)}
    (tmp_path / "bad.tar").write_bytes(tar_of(members))
    (tmp_path / "mark.tar").write_bytes(tar_of({"a.png": image_file(1), "a.txt": codecs.BOM_UTF8 + b"5"}))
    assert next(iter(reading([tmp_path / "mark.tar"])))["text_ids"].item() == 5
    (tmp_path / "torn.tar").write_bytes(good.read_bytes()[100:])
    records = reading([tmp_path / "bad.tar"]).window(0, 0)
    assert {record.sample.name for record in records} == {"a", "b", "c"}
    for record in records:
        with pytest.raises(ValueError, match=f"sample {record.sample.name} of .*bad.tar"):
            reading([tmp_path / "bad.tar"]).read(record)
    (tmp_path / "heic.tar").write_bytes(tar_of({"d.heic": b"?", "d.txt": b"4"}))
    with pytest.raises(ValueError, match=r"heic\.tar is invalid: .* got HEIC; convert it"):
        next(iter(reading([tmp_path / "heic.tar"])))
    stream = reading([good, tmp_path / "bad.tar"], skip_bad_records=True)
    assert sorted(item["text_ids"].item() for item in islice(stream, 4)) == [0, 0, 1, 1]
    assert stream.num_skipped >= 3
    for name in ("bad", "torn"):
        with pytest.raises(ValueError):
            next(iter(reading([tmp_path / f"{name}.tar"], skip_bad_records=True)))


def test_shards_are_found_by_pattern_and_folder(shards: list[Path], tmp_path: Path) -> None:
    assert find_shards(f"{tmp_path}/{{00..02}}.tar::{tmp_path}/05.tar") == [*shards[:3], shards[5]]
    assert find_shards(f"{tmp_path}/*.tar") == find_shards(str(tmp_path)) == shards
    for urls in (f"{tmp_path}/{{00..09}}.tar", f"{tmp_path}/*.tgz"):
        with pytest.raises(FileNotFoundError):
            find_shards(urls)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=r"tars, got .*images', in which there are none"):
        find_shards(f"{tmp_path}/images")
    with pytest.raises(ValueError):
        reading(shards, ranks=3, workers=3)
    shards[-1] = shards[-1].rename(tmp_path / "09.TAR")
    assert find_shards(str(tmp_path)) == shards
    (tmp_path / "10.tar.gz").write_bytes(gzip.compress(shards[0].read_bytes()))
    for urls in (str(tmp_path), f"{tmp_path}/10.tar.gz"):
        with pytest.raises(ValueError, match=r"not compressed, got .*10\.tar\.gz"):
            find_shards(urls)


def test_crops_lie_inside_and_keep_to_their_bounds() -> None:
    crop = RandomCrop(ShardsRecipe(crop_area=(0.5, 0.8)), 8)
    for seed in range(200):
        left, top, right, bottom = crop.box(61, 47, Random(seed))
        assert 0 <= left < right <= 61 and 0 <= top < bottom <= 47
        wide, high = right - left, bottom - top
        assert 0.46 <= wide * high / (61 * 47) <= 0.84 and 0.7 <= wide / high <= 1.4
    whole = RandomCrop(ShardsRecipe(crop_area=(1.0, 1.0)), 8)
    assert whole.box(300, 10, Random(0)) == (143, 0, 156, 10), "the widest in the middle"
    y_HW, x_HW = np.mgrid[:64, :64].astype(np.uint8)
    levels, places = np.stack([x_HW, y_HW, 0 * x_HW], axis=-1), set()
    crop = RandomCrop(ShardsRecipe(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), window=16), 64)
    for seed in range(50):  # windows are parts of the crop, not scaled
        window = np.asarray(crop(Image.fromarray(levels), Random(seed)))
        x, y = map(int, window[0, 0, :2])
        assert np.array_equal(levels[y : y + 16, x : x + 16], window)
        places.add((x, y))
    assert len(places) > 40 and max(max(place) for place in places) > 40


def test_a_window_lies_in_the_image_and_holds_the_middle_of_the_object() -> None:
    for x, y in ((0.12, 0.12), (0.5, 0.88), (0.7, 0.3)):
        found = {window_on(SceneObject("star", "red", "small", x, y), 48, 128, Random(n)) for n in range(50)}
        assert len(found) > 10
        for left, top, right, bottom in found:
            assert 0 <= left <= x * 128 + 1 and x * 128 - 1 <= right <= 128 and right - left == 48
            assert 0 <= top <= y * 128 + 1 and y * 128 - 1 <= bottom <= 128 and bottom - top == 48
    recipe = TokenizerRecipe(output=Path("x"), seed=3, world_crop=64)
    one, two = (WorldImages(recipe, image_size=128, captions=None, rank=0, ranks=1) for _ in range(2))
    for n in range(40):
        pixels_3HW = one[n]["pixels"]
        assert pixels_3HW.shape == (3, 64, 64) and torch.equal(pixels_3HW, two[n]["pixels"])
        assert pixels_3HW.flatten(1).float().std(1).max() > 0
