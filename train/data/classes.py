"""Packed batches of pictures by class: batch b is a pure function of b, so training can stop and go on anywhere.

In: codes by class. Out: one `PackedBatch` per index. Every epoch goes through all pictures in an order of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mllm.checkpoint import choose_device
from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, Message
from mllm.files import whole_file, write_json
from mllm.sequence import PackedBatch, Packer, TokenSequence, build_sequence
from mllm.world.render import render
from mllm.world.scene import CLASSES, class_scene
from tokenizer.images import open_image, to_bytes
from tokenizer.unitok import UniTok
from train.recipe import ClassData

# Codes of pictures by class, in files: what class-conditional training reads.
#
#     FOLDER/codes/*.npy    (E, S, K, N) uint16: E pictures, S views of each (crops; one of them is picked)
#     FOLDER/labels/*.npy   (E,) whole numbers, the classes; the same file names
#     FOLDER/meta.json      what made them; folders of LlamaGen's own extraction (E = 1, S = 10) have none
#
# Knows no tokenizer and no sequences.
#
# Letters: E pictures of a file, S views, K codebooks, N positions.


CODES, LABELS, META = "codes", "labels", "meta.json"


class ClassCodes:
    """`codes[i]` is (views (S, K, N), class) of picture i. Files are opened when they are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(path.name for path in (folder / CODES).glob("[!.]*.npy"))
        if not self.names:
            raise FileNotFoundError(f"no codes by class: found no {CODES}/*.npy in {folder}; encode pictures first")
        labels = [self._labels(name) for name in self.names]
        self.ends = np.cumsum([len(part) for part in labels])
        self.labels_E: NDArray[np.int64] = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self.labels_E)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint16], int]:
        file = int(np.searchsorted(self.ends, index, side="right"))
        codes_ESKN = np.load(self.folder / CODES / self.names[file], mmap_mode="r")
        within = index - (int(self.ends[file - 1]) if file else 0)
        if codes_ESKN.ndim != 4 or within >= len(codes_ESKN):
            raise ValueError(
                f"{self.folder / CODES / self.names[file]} does not fit its labels: found codes of "
                f"{codes_ESKN.shape}; they must be (pictures, views, codebooks, positions)"
            )
        return codes_ESKN[within], int(self.labels_E[index])

    def _labels(self, name: str) -> NDArray[np.int64]:
        path = self.folder / LABELS / name
        if not path.is_file():
            raise FileNotFoundError(f"codes without classes: found no {path}; encode the pictures anew")
        return np.load(path).reshape(-1).astype(np.int64)

    def check(self, *, num_codebooks: int, num_positions: int, num_classes: int, fingerprint: str) -> None:
        """Refuse codes that a model cannot learn from: other sizes, more classes, another image tokenizer."""
        meta = read_meta(self.folder)
        if meta is not None and meta["tokenizer"] != fingerprint:
            raise ValueError(
                f"the codes in {self.folder} were made by another image tokenizer: found {meta['tokenizer']}, the "
                f"recipe's is {fingerprint}; encode the pictures with that one"
            )
        codes_SKN, _ = self[0]
        if codes_SKN.shape[1:] != (num_codebooks, num_positions):
            raise ValueError(
                f"the codes in {self.folder} have another size: found {codes_SKN.shape[1]} codebooks and "
                f"{codes_SKN.shape[2]} positions, the model has {num_codebooks} and {num_positions}"
            )
        if self.labels_E.min() < 0 or self.labels_E.max() >= num_classes:
            raise ValueError(
                f"the classes in {self.folder} do not fit the model: found {self.labels_E.min()} to "
                f"{self.labels_E.max()}, the model has {num_classes}; set model.num_classes"
            )


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What made the codes of a folder, if it says so."""
    path = folder / META
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def claim(folder: Path, meta: dict[str, Any]) -> None:
    """Make a folder for codes that `meta` describes; refuse one that holds others."""
    found = read_meta(folder)
    if found is not None and found != meta:
        raise ValueError(
            f"the codes in {folder} were made with {found}, but {meta} is wanted; remove the folder or name another"
        )
    for name in (CODES, LABELS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(folder / META, meta)


def write_part(folder: Path, number: int, codes_ESKN: NDArray[np.uint16], labels_E: NDArray[np.int64]) -> None:
    """Write one file of codes and its classes, each whole or not at all; the codes come last and make it count."""
    for name, array in ((LABELS, labels_E), (CODES, codes_ESKN)):
        with whole_file(folder / name / part_name(number)) as unfinished, unfinished.open("wb") as file:
            np.save(file, array)


def part_name(number: int) -> str:
    return f"{number:05d}.npy"


def has_part(folder: Path, number: int) -> bool:
    """Whether a file of codes is there already."""
    return (folder / CODES / part_name(number)).is_file()


class ClassBatches(Dataset):
    """`num_batches` packed batches of `rows` rows of `length` positions.

    Args:
        codes: of the same pictures in the same order (other enlargements); each time one of them is picked.
    """

    def __init__(
        self,
        codes: Sequence[ClassCodes],
        data: ClassData,
        *,
        tokenizer: PreTrainedTokenizerBase,
        config: MLLMConfig,
        length: int,
        rows: int,
        num_batches: int,
    ) -> None:
        if len({len(part) for part in codes}) != 1:
            raise ValueError(
                f"the folders of codes hold different pictures: found {[len(part) for part in codes]} of them; "
                "give folders that were made from the same pictures"
            )
        self.codes, self.tokenizer, self.config = codes, tokenizer, config
        self.class_dropout, self.seed = data.class_dropout, data.seed
        self.length, self.rows, self.num_batches = length, rows, num_batches
        self.samples_per_batch = rows * (length // len(self.sequence(0, Random(0))))
        if not self.samples_per_batch:
            raise ValueError(f"no picture fits into a row: found a length of {length}; raise it")

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> PackedBatch:
        rng = Random(f"class batch/{self.seed}/{index}")
        packer = Packer(length=self.length, pad_token_id=self.config.pad_token_id, num_rows=self.rows)
        for number in range(index * self.samples_per_batch, (index + 1) * self.samples_per_batch):
            epoch, place = divmod(number, len(self.codes[0]))
            packer.add(self.sequence(int(order(len(self.codes[0]), self.seed, epoch)[place]), rng))
        return packer.batch()

    def sequence(self, picture: int, rng: Random) -> TokenSequence:
        """A class and a picture of it, in one of its views."""
        codes_SKN, label = rng.choice(self.codes)[picture]
        codes_KN = codes_SKN[rng.randrange(len(codes_SKN))]
        asked = ClassPart(None if rng.random() < self.class_dropout else label)
        drawn = CodesPart(codes_KN, (self.config.grid_side, self.config.grid_side))
        messages = [Message("user", (asked,)), Message("assistant", (drawn,))]
        return build_sequence(messages, tokenizer=self.tokenizer, config=self.config)


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the pictures in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


# Pictures by class, encoded once: of the synthetic world, or of a folder with one sub-folder for each class.
#
# `python -m train.data.classes PICTURES OUT --image-tokenizer FOLDER` encodes a folder such as ImageNet's `train`
# in ten views of each picture, as LlamaGen does: shorter side 1.1 times the size, then four corners and the middle, and
# their mirror images. An interrupted run goes on where it was.
#
# Letters: E pictures of a file, S views, K codebooks, N positions, H W pixels.


PICTURES_PER_FILE = 1024
VIEWS_PER_BATCH = 128
ENLARGEMENT = 1.1  # LlamaGen's extraction: crops of the size out of a square 1.1 times as large
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ClassPictures(Dataset, ABC):
    """Item i is (views (S, 3, H, W) uint8, class) of picture i."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What the pictures are, so that codes of others are not taken for theirs."""


class WorldClassPictures(ClassPictures):
    """Picture i of the world's classes: always the same for the same seed; classes take turns."""

    def __init__(self, count: int, *, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % len(CLASSES)
        scene = class_scene(label, Random(f"classes/{self.seed}/{index}"))
        return to_bytes(render(scene, self.size))[None], label

    def description(self) -> dict[str, Any]:
        return {"world_classes": len(CLASSES), "pictures": self.count, "seed": self.seed}


class FolderClassPictures(ClassPictures):
    """Pictures of a folder's sub-folders in ten views; class n is the n-th sub-folder by name."""

    def __init__(self, folder: Path, *, size: int) -> None:
        self.size, self.folder = size, folder
        self.classes = sorted(path.name for path in folder.glob("*") if path.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in PICTURE_ENDINGS
        ]
        if not self.files:
            raise FileNotFoundError(
                f"no pictures by class: found {len(self.classes)} sub-folders and no picture in {folder}; give a "
                "folder with one sub-folder of pictures for each class"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return torch.stack([to_bytes(view) for view in ten_views(open_image(path), self.size)]), label

    def description(self) -> dict[str, Any]:
        return {"classes": len(self.classes), "pictures": len(self.files), "views": "ten"}


def ten_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Four corners and the middle of the enlarged middle square, then their mirror images."""
    large = int(size * ENLARGEMENT)
    width, height = image.size
    scale = large / min(width, height)
    resized = image.convert("RGB").resize(
        (max(large, round(width * scale)), max(large, round(height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - large) // 2, (resized.height - large) // 2
    free = large - size
    corners = [(0, 0), (free, 0), (0, free), (free, free), (free // 2, free // 2)]
    views = [resized.crop((left + x, top + y, left + x + size, top + y + size)) for x, y in corners]
    return views + [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]


def encode_classes(
    pictures: ClassPictures,
    folder: Path,
    tokenizer: UniTok,
    *,
    num_workers: int = 0,
) -> None:
    """Write the codes that are not there yet.

    Raises:
        ValueError: the folder holds codes of other pictures or of another tokenizer.
    """
    claim(folder, {"tokenizer": tokenizer.fingerprint(), **pictures.description()})
    numbers = range(-(-len(pictures) // PICTURES_PER_FILE))
    missing = [number for number in numbers if not has_part(folder, number)]
    for number in tqdm(missing, desc="encode pictures by class", disable=not missing):
        first = number * PICTURES_PER_FILE
        part = Subset(pictures, range(first, min(first + PICTURES_PER_FILE, len(pictures))))
        codes, labels = [], []
        for views_BS3HW, labels_B in DataLoader(part, batch_size=16, num_workers=num_workers):
            codes_BKN = encode_views(views_BS3HW.flatten(0, 1), tokenizer)
            codes.append(codes_BKN.unflatten(0, views_BS3HW.shape[:2]).numpy().astype(np.uint16))
            labels.append(labels_B.numpy())
        write_part(folder, number, np.concatenate(codes), np.concatenate(labels))


@torch.inference_mode()
def encode_views(pixels_B3HW: Tensor, tokenizer: UniTok) -> Tensor:
    """Codes (B, K, N) of uint8 pixels."""
    parts = [
        tokenizer.encode(part.to(tokenizer.device).float().div(127.5).sub(1)).to("cpu", torch.int32)
        for part in pixels_B3HW.split(VIEWS_PER_BATCH)
    ]
    return torch.cat(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder with one sub-folder of pictures for each class")
    parser.add_argument("out", type=Path, help="where to write codes/ and labels/")
    parser.add_argument("--image-tokenizer", type=Path, required=True, help="folder of the image tokenizer")
    parser.add_argument("--workers", type=int, default=4, help="processes that read pictures")
    words = parser.parse_args(argv)
    tokenizer = UniTok.from_pretrained(words.image_tokenizer, device=choose_device(None))
    pictures = FolderClassPictures(words.pictures, size=tokenizer.config.image_size)
    encode_classes(pictures, words.out, tokenizer, num_workers=words.workers)
    print(f"{len(pictures)} pictures of {len(pictures.classes)} classes in {words.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())


# From the recipe's fields to codes by class: encode the world where no folder is named, and check what was found.


def check_guidance(data: ClassData, config: MLLMConfig) -> None:
    """Refuse a model that would be guided away from a "no class" that it never learns."""
    if config.image_guidance > 1 and not data.class_dropout:
        raise ValueError(
            f"guidance needs samples without a class: found model.image_guidance {config.image_guidance} and "
            "classes.class_dropout 0; set the first to 1 or the second to 0.1"
        )


def open_class_codes(
    data: ClassData, world_folder: Path, *, image_tokenizer: UniTok, config: MLLMConfig
) -> list[ClassCodes]:
    """The codes that the recipe names, or those of the world's classes; the first process encodes what is missing.

    Args:
        world_folder: where the world's codes are, or will be.
    """
    folders = list(data.folders)
    if not folders:
        pictures = WorldClassPictures(data.world_pictures, size=image_tokenizer.config.image_size, seed=data.seed)
        with PartialState().main_process_first():
            encode_classes(pictures, world_folder, image_tokenizer)
        folders = [world_folder]
    codes = [ClassCodes(folder) for folder in folders]
    for part in codes:
        part.check(
            num_codebooks=config.num_codebooks,
            num_positions=config.positions_per_image,
            num_classes=config.num_classes,
            fingerprint=image_tokenizer.fingerprint(),
        )
    return codes
