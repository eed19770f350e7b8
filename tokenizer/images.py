"""Pictures as people have them to the pixels the tokenizer wants, and back.

Comes in: any PIL image. Goes out: float pixels (B, 3, H, W) in [-1, 1] of one exact size. Knows no model.
UniTok resizes differently at every entry point; each way has a name in `PREPARATIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Resampling = Image.Resampling
CLIP_MEAN_COLOR = (122, 116, 104)
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a picture gets to its size."""

    resize: Literal["shorter", "direct", "none"]
    """Scale the shorter side (then crop), stretch both sides, or leave the scale alone (then crop)."""
    ratio: float = 1.0
    """The shorter side becomes this many times the crop."""
    resampling: Image.Resampling = Resampling.BILINEAR
    pad_color: tuple[int, int, int] | None = None
    """Pad to a square with this colour first."""


PREPARATIONS = {
    "reconstruction": Preparation(resize="shorter", ratio=1.125),  # inference.py: shorter side 288, crop 256
    "zero_shot": Preparation(resize="shorter", resampling=Resampling.BICUBIC),  # CLIP validation
    "visual": Preparation(resize="shorter", ratio=1.125, resampling=Resampling.LANCZOS),  # sheets while training
    "crop": Preparation(resize="none"),  # rFID: the pictures already have about the right size
    "understanding": Preparation(resize="direct", pad_color=CLIP_MEAN_COLOR),  # questions about pictures
    "cover": Preparation(resize="shorter", resampling=Resampling.LANCZOS),  # fill the size, lose the borders
    "stretch": Preparation(resize="direct", resampling=Resampling.LANCZOS),  # keep all, lose the proportions
}


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Prepares every picture for one size; equal pictures of that size pass unchanged in most preparations."""

    height: int
    width: int
    preparation: str = "cover"
    """A name in `PREPARATIONS`."""

    def __post_init__(self) -> None:
        if self.preparation not in PREPARATIONS:
            raise ValueError(f"unknown preparation; got {self.preparation!r}; use one of {sorted(PREPARATIONS)}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"sizes must be positive; got {self.height} x {self.width}; give pixels")

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Float32 pixels (B, 3, height, width) in [-1, 1]; one picture makes a batch of one."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        if not images:
            return torch.empty(0, 3, self.height, self.width)
        pixels_BHW3 = np.stack([np.asarray(self.prepare(image)) for image in images])
        return to_pixels(torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2))

    def prepare(self, image: Image.Image) -> Image.Image:
        """The RGB picture that the tokenizer sees."""
        how = PREPARATIONS[self.preparation]
        image = to_rgb(image)
        if how.pad_color is not None:
            image = pad_to_square(image, how.pad_color)
        match how.resize:
            case "direct":
                return image.resize((self.width, self.height), how.resampling)
            case "shorter":
                image = self._scale(image, how)
            case "none":
                pass
            case _:
                raise ValueError(f"unknown resize; got {how.resize!r}; use 'shorter', 'direct' or 'none'")
        return crop_center(image, self.width, self.height)

    def _scale(self, image: Image.Image, how: Preparation) -> Image.Image:
        """Scale until the crop, `ratio` times enlarged, just fits; the longer side is truncated, as in torchvision."""
        wide, high = int(self.width * how.ratio), int(self.height * how.ratio)
        if wide * image.height >= high * image.width:
            size = (wide, wide * image.height // image.width)
        else:
            size = (high * image.width // image.height, high)
        return image if size == image.size else image.resize(size, how.resampling)


def to_pixels(bytes_B3HW: Tensor) -> Tensor:
    """Levels 0 to 255 to float32 pixels in [-1, 1]."""
    return bytes_B3HW.float().div(127.5).sub(1.0)


def to_bytes(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 pixels (3, H, W), in memory of their own."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_images(pixels_B3HW: Tensor, *, truncate: bool = False) -> list[Image.Image]:
    """Pixels in [-1, 1] to RGB pictures; values outside are clamped and NaN becomes grey.

    Args:
        truncate: round down instead of to the nearest, as UniTok's text-to-image scripts do.
    """
    scaled = (pixels_B3HW.detach().float().cpu() + 1.0) * 127.5
    scaled = scaled.nan_to_num(nan=128.0)
    levels = (scaled.floor() if truncate else scaled.round()).clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture_HW3) for picture_HW3 in levels.permute(0, 2, 3, 1).contiguous().numpy()]


def open_image(path: str | Path) -> Image.Image:
    """Read a picture file completely, or say clearly why not."""
    path = Path(path)
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"cannot open picture {path}; {found}; check the path")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read picture {path}; it is in no known format; convert it to PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read picture {path}; {error}; the file is damaged or too large, save it anew"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: upright (EXIF), transparency on white, 16 bit scaled to 8."""
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
    """Grey levels of any depth to 8 bit: float pictures hold 0..1, integers 0..255 or 0..65535."""
    if levels_HW.dtype.kind == "f":
        top = 1.0 if levels_HW.max(initial=0.0) <= 1.0 else 255.0
    else:
        top = 65535.0 if levels_HW.dtype.itemsize == 2 or levels_HW.max(initial=0) > 255 else 255.0
    levels_HW = np.nan_to_num(levels_HW.astype(np.float64))
    return (levels_HW / top * 255.0).round().clip(0, 255).astype(np.uint8)


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of the picture; what lies outside of it is black (as torchvision's CenterCrop)."""
    if image.size == (width, height):
        return image
    left, top = center_offset(image.width, width), center_offset(image.height, height)
    return image.crop((left, top, left + width, top + height))


def center_offset(size: int, crop: int) -> int:
    """Where a centred crop starts; negative when it is larger than the picture."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


# Folders of pictures to measure a tokenizer on: their files, and one folder per class with its name.
#
# In: paths. Out: paths and names, or an error that says which file is wrong. Opens no picture.


IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Endings of image files, in lower case; where files differ by their ending alone, the first one counts."""


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by name."""
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        what = "it holds no picture" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"cannot evaluate on {folder}; {what}; mend the path in evaluation")
    return found


def png_files(folder: Path) -> list[Path]:
    """The reference pictures; PNG, because a lossy copy would change the score."""
    lossy = [file.name for file in pictures_in(folder) if file.suffix.lower() != ".png"]
    if lossy:
        raise ValueError(f"rFID compares PNG pictures; {folder} has {lossy[0]}; convert {len(lossy)} files to PNG")
    return pictures_in(folder)


def read_classes(folder: Path, file: Path | None) -> dict[str, str]:
    """Folder of each class to its name, checked against the folders that are there."""
    assert file is not None, "TokenizerRecipe refuses zero-shot without class names"
    if not file.is_file():
        raise FileNotFoundError(f"there are no class names at {file}; give a JSON file of folder to name")
    classes = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes.values()):
        raise ValueError(f"{file} must map folders of classes to names; found {type(classes).__name__}; mend it")
    there = {path.name for path in folder.glob("*") if path.is_dir()}
    if there != classes.keys():
        differing = sorted(there ^ classes.keys())
        raise ValueError(
            f"{folder} and {file} must have the same classes; {len(differing)} differ, such as {differing[0]}; mend one"
        )
    return classes


# A sheet of pictures for the eye: each original above its reconstruction, or pictures in a row.


GAP = 4
"""Pixels between pictures."""


def reconstruction_sheet(originals_B3HW: Tensor, reconstructions_B3HW: Tensor, *, per_row: int = 6) -> Image.Image:
    """Pairs side by side, `per_row` pairs a row; pixels in [-1, 1]."""
    pairs_B3HW = torch.cat([originals_B3HW, reconstructions_B3HW], dim=2)
    padded_B3HW = torch.nn.functional.pad(pairs_B3HW, (GAP, GAP, GAP, GAP), value=1.0)
    rows = [torch.cat(list(row), dim=2) for row in padded_B3HW.split(per_row)]
    widest = max(row.shape[2] for row in rows)
    rows = [torch.nn.functional.pad(row, (0, widest - row.shape[2]), value=1.0) for row in rows]
    sheet_HW3 = torch.cat(rows, dim=1).permute(1, 2, 0)
    return Image.fromarray(((sheet_HW3.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of any size in one row."""
    width = sum(picture.width + GAP for picture in pictures) - GAP
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet
