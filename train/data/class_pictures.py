"""Pictures by class, encoded once: of the synthetic world, or of a folder with one sub-folder for each class.

`python -m train.data.class_pictures PICTURES OUT --image-tokenizer FOLDER` encodes a folder such as ImageNet's `train`
in ten views of each picture, as LlamaGen does: shorter side 1.1 times the size, then four corners and the middle, and
their mirror images. An interrupted run goes on where it was.

Letters: E pictures of a file, S views, K codebooks, N positions, H W pixels.
"""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from mllm.loading.device import choose_device
from mllm.world.classes import CLASSES, class_scene
from mllm.world.render import render
from tokenizer.image_processor import open_image, to_bytes
from tokenizer.model import UniTok
from train.data.class_codes import claim, has_part, write_part

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
