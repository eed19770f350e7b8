"""Image files and PIL images to pixels of one size in [-1, 1], and back; sheets of images to look at.

UniTok resizes differently at each of its entry points; `PREPARATIONS` names every way. Knows no model.

Letters: B batch, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling
from torch import Tensor

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of image files, in lower case; where files differ by their ending alone, the first one counts."""
CLIP_MEAN_COLOR = (122, 116, 104)
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
GAP = 4  # pixels between the images of a sheet


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image gets to its size."""

    resize: Literal["shorter", "direct", "none"]
    """Scale the shorter side and crop, stretch both sides, or crop only."""
    ratio: float = 1.0
    """The shorter side becomes this many times the crop."""
    resampling: Resampling = Resampling.BILINEAR
    pad_color: tuple[int, int, int] | None = None
    """First pad to a square with this color."""


PREPARATIONS = {
    "reconstruction": Preparation(resize="shorter", ratio=1.125),  # inference.py: shorter side 288, crop 256
    "zero_shot": Preparation(resize="shorter", resampling=Resampling.BICUBIC),  # CLIP validation
    "visual": Preparation(resize="shorter", ratio=1.125, resampling=Resampling.LANCZOS),  # sheets in training
    "crop": Preparation(resize="none"),  # rFID: images that already have about the right size
    "understanding": Preparation(resize="direct", pad_color=CLIP_MEAN_COLOR),  # questions about images
    "cover": Preparation(resize="shorter", resampling=Resampling.LANCZOS),  # fill the size, lose the borders
    "stretch": Preparation(resize="direct", resampling=Resampling.LANCZOS),  # keep everything, lose the proportions
}


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Prepares images for one size; most preparations leave images of that size unchanged."""

    height: int
    width: int
    preparation: str = "cover"
    """A name in `PREPARATIONS`."""

    def __post_init__(self) -> None:
        if self.preparation not in PREPARATIONS:
            raise ValueError(
                f"preparation must be one of {', '.join(PREPARATIONS)}, got {self.preparation!r}; choose one of them"
            )
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be >= 1, got {self.height} x {self.width}; give them in pixels")

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Float32 pixels (B, 3, height, width) in [-1, 1]; a single image makes a batch of one."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        if not images:
            return torch.empty(0, 3, self.height, self.width)
        levels_BHW3 = np.stack([np.asarray(self.prepare(image)) for image in images])
        return to_pixels(torch.from_numpy(levels_BHW3).permute(0, 3, 1, 2))

    def prepare(self, image: Image.Image) -> Image.Image:
        """The RGB image that the tokenizer sees."""
        how = PREPARATIONS[self.preparation]
        image = to_rgb(image)
        if how.pad_color is not None:
            image = pad_to_square(image, how.pad_color)
        if how.resize == "direct":
            return image.resize((self.width, self.height), how.resampling)
        if how.resize == "shorter":
            image = self._scale(image, how)
        return crop_center(image, self.width, self.height)

    def _scale(self, image: Image.Image, how: Preparation) -> Image.Image:
        """Scale until the crop, `ratio` times enlarged, just fits; the longer side is truncated, as in torchvision."""
        wide, high = int(self.width * how.ratio), int(self.height * how.ratio)
        if wide * image.height >= high * image.width:
            size = (wide, wide * image.height // image.width)
        else:
            size = (high * image.width // image.height, high)
        return image if size == image.size else image.resize(size, how.resampling)


def to_bytes(image: Image.Image) -> Tensor:
    """An RGB image as uint8 levels (3, H, W), in memory of its own."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_pixels(levels_B3HW: Tensor) -> Tensor:
    """Levels 0 to 255 to float32 pixels in [-1, 1]."""
    return levels_B3HW.float().div(127.5).sub(1.0)


def to_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1] to RGB images; values outside are clamped and NaN becomes gray."""
    scaled = ((pixels_B3HW.detach().float().cpu() + 1.0) * 127.5).nan_to_num(nan=128.0)
    levels_B3HW = scaled.round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(levels_HW3) for levels_HW3 in levels_B3HW.permute(0, 2, 3, 1).contiguous().numpy()]


def open_image(path: str | Path) -> Image.Image:
    """Read an image file completely and turn it upright (EXIF)."""
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path} must be an image file, got {found}; check the path")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} must be an image, got an unknown format; convert it to PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} must be a readable image, got {error}; it is damaged or too large, save it again"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: upright (EXIF), transparency on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in DEEP_MODES:
        return Image.fromarray(to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_8_bit(levels_HW: np.ndarray) -> np.ndarray:
    """Gray levels of any depth to 8 bits: float images hold 0 to 1, integers 0 to 255 or 0 to 65535."""
    if levels_HW.dtype.kind == "f":
        top = 1.0 if levels_HW.max(initial=0.0) <= 1.0 else 255.0
    else:
        top = 65535.0 if levels_HW.dtype.itemsize == 2 or levels_HW.max(initial=0) > 255 else 255.0
    levels_HW = np.nan_to_num(levels_HW.astype(np.float64))
    return (levels_HW / top * 255.0).round().clip(0, 255).astype(np.uint8)


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of the image; what lies outside of it is black (as torchvision's CenterCrop)."""
    if image.size == (width, height):
        return image

    def offset(size: int, crop: int) -> int:
        return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)

    left, top = offset(image.width, width), offset(image.height, height)
    return image.crop((left, top, left + width, top + height))


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name."""
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        what = "no image in it" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder} must be a folder of images, got {what}; correct the path")
    return found


def png_files(folder: Path) -> list[Path]:
    """Reference images; PNG, because a lossy copy would change the score."""
    files = images_in(folder)
    if lossy := [file.name for file in files if file.suffix.lower() != ".png"]:
        raise ValueError(f"rFID references must be PNG, got {lossy[0]} in {folder}; convert {len(lossy)} files")
    return files


def read_classes(folder: Path, file: Path) -> dict[str, str]:
    """Folder of each class to its name, from a JSON file that fits the folders that are there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a JSON file of class names, got no such file; correct the path")
    classes = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes.values()):
        raise ValueError(f"{file} must map folders to class names, got {type(classes).__name__}; correct the file")
    folders = {path.name for path in folder.glob("*") if path.is_dir()}
    if differing := sorted(folders ^ classes.keys()):
        raise ValueError(
            f"{folder} and {file} must have the same classes, got {len(differing)} that differ, such as "
            f"{differing[0]}; correct one of them"
        )
    return classes


def reconstruction_sheet(originals_B3HW: Tensor, reconstructions_B3HW: Tensor, *, per_row: int = 6) -> Image.Image:
    """Each original above its reconstruction, `per_row` pairs a row; pixels in [-1, 1]."""
    pairs_B3HW = F.pad(torch.cat([originals_B3HW, reconstructions_B3HW], dim=2), (GAP, GAP, GAP, GAP), value=1.0)
    missing = -len(pairs_B3HW) % min(per_row, len(pairs_B3HW))
    pairs_B3HW = torch.cat([pairs_B3HW, torch.ones_like(pairs_B3HW[:1]).expand(missing, -1, -1, -1)])
    rows = [torch.cat(list(row_B3HW), dim=2) for row_B3HW in pairs_B3HW.split(per_row)]
    return to_images(torch.cat(rows, dim=1)[None])[0]


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images of any size in one row."""
    width = sum(image.width + GAP for image in images) - GAP
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    return sheet
