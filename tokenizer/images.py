"""Images of any kind to pixels of one size in [-1, 1], and back; sheets of images to look at.

`read_image` is the one way in: whatever holds an image becomes an upright RGB image, before anybody asks for its size.
UniTok resizes differently at each of its entry points; `PREPARATIONS` names every way. Knows no model.

Letters: B batch, H W pixels.
"""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling
from torch import Tensor

from tokenizer.config import read_json

ImageSource = Image.Image | str | Path | bytes | bytearray | memoryview | np.ndarray | Tensor
"""An image, its file (path, `file:` or `http:` address, bytes, `data:` URL), or its values."""
CAPTION_ENDINGS = ("txt", "caption")  # of the file with an image's caption, beside it
IMAGE_ENDINGS = tuple(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .jfif .jpe .avif .jp2 .ppm .pgm .tga".split())
"""Endings of image files, in lower case; where files differ by their ending alone, the first one counts."""
UNREAD_FORMATS = {".heic": "HEIC", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JPEG XL", ".svg": "SVG"}
"""Formats of images that Pillow cannot read, by their endings in lower case."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1")  # bytes 8 to 12, after "ftyp"
CLIP_MEAN_COLOR = (122, 116, 104)
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
MAX_RATIO = 200  # of the longer side to the shorter; Qwen2-VL's bound
MAX_PIXELS = 2**26  # of a prepared image
MAX_DOWNLOAD = 2**28  # bytes
URL = re.compile(r"(https?|file|data):", re.IGNORECASE)
GAP = 4  # pixels between the images of a sheet


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image gets to its size."""

    resize: Literal["shorter", "direct", "none"]  # scale the shorter side and crop, stretch both sides, or crop only
    ratio: float = 1.0  # the shorter side becomes this many times the crop
    resampling: Resampling = Resampling.BILINEAR
    pad_color: tuple[int, int, int] | None = None  # first pad to a square with this color


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
    preparation: str = "cover"  # a name in `PREPARATIONS`

    def __post_init__(self) -> None:
        if self.preparation not in PREPARATIONS:
            raise ValueError(
                f"preparation must be one of {', '.join(PREPARATIONS)}, got {self.preparation!r}; choose one of them"
            )
        if self.height < 1 or self.width < 1 or self.height * self.width > MAX_PIXELS:
            raise ValueError(
                f"an image must have from 1 to {MAX_PIXELS:,} pixels, got a size of {self.height} x {self.width}; "
                "choose another height and width"
            )

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Float32 pixels (B, 3, height, width) in [-1, 1]; a single image makes a batch of one."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        if not images:
            return torch.empty(0, 3, self.height, self.width)
        levels_BHW3 = np.stack([np.asarray(self.prepare(image)) for image in images])
        return to_pixels(torch.from_numpy(levels_BHW3).permute(0, 3, 1, 2))

    def prepare(self, image: Image.Image) -> Image.Image:
        how = PREPARATIONS[self.preparation]
        image = read_image(image)
        if how.pad_color is not None:
            image = pad_to_square(image, how.pad_color, self.width, how.resampling)
        if how.resize == "direct":
            return image.resize((self.width, self.height), how.resampling)
        if how.resize == "none":
            return crop_center(image, self.width, self.height)
        # Until the crop, `ratio` times enlarged, just fits; the longer side is truncated, as in torchvision.
        wide, high = int(self.width * how.ratio), int(self.height * how.ratio)
        if wide * image.height >= high * image.width:
            size = (wide, wide * image.height // image.width)
        else:
            size = (high * image.width // image.height, high)
        return scale_and_crop(image, size, self.width, self.height, how.resampling)


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


def read_image(source: Any, *, name: str | None = None) -> Image.Image:
    """The RGB image of an `ImageSource`: first frame, upright (EXIF), transparency on white, 16 bits scaled to 8. Keeps
    `info`, so that what was drawn keeps its seed and plan. An image that is already so comes back as it is. `name`:
    what messages call the image; default: its path or address. Raises FileNotFoundError: there is no such file;
    ValueError: it is no image, a damaged one, or one that no model can use."""
    if name is None:
        name = str(source) if isinstance(source, str | Path) else "the image"
        name = f"{name[:60]}..." if URL.match(name) and len(name) > 200 else name  # data: URLs hold the image itself
    match source:
        case str() if URL.match(source):
            image = decode(io.BytesIO(download(source, name)), name)
        case str() | Path():
            image = decode(open_file(Path(source), name), name)
        case bytes() | bytearray() | memoryview():
            image = decode(io.BytesIO(source), name)
        case np.ndarray():
            image = from_values(source, channels_first=False)
        case Tensor():
            values = source.detach().cpu()
            image = from_values((values.float() if values.is_floating_point() else values).numpy(), channels_first=True)
        case Image.Image():
            image = source
        case _:
            raise ValueError(
                f"an image must be a PIL image, a path, an address, bytes, an array or a tensor, got "
                f"{type(source).__name__}; give one of them"
            )
    width, height = image.size
    if not width or not height:
        raise ValueError(f"{name} must have pixels, got {width} x {height}; give another image")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"no side of {name} must be more than {MAX_RATIO} times as long as the other, got {width} x {height}; "
            "crop it"
        )
    try:
        return to_rgb(image)
    except Exception as error:  # decoders raise anything on damaged files, and a PIL image may not have been read yet
        raise damaged(name, error) from error


def open_file(path: Path, name: str) -> io.BufferedReader:
    """A file to read; no folder and no device."""
    try:
        if path.is_file():
            return path.open("rb")
    except OSError as error:  # such as: file name too long
        raise ValueError(f"{name[:200]} must be a readable file, got: {error.strerror}; correct the path") from error
    found = "a folder" if path.is_dir() else "no such file"
    raise FileNotFoundError(f"{name} must be an image file, got {found}; check the path")


def download(url: str, name: str) -> bytes:
    """What is at an address, `data:` and `file:` included."""
    if not url[:5].lower() == "data:":
        url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        with urlopen(Request(url, headers={"User-Agent": "mllm-toolkit"}), timeout=30) as response:
            data = response.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"{name} must be an address that can be read, got: {error}; correct it") from error
    if len(data) > MAX_DOWNLOAD:
        raise ValueError(f"{name} must have at most {MAX_DOWNLOAD:,} bytes, got more; reduce the image")
    return data


def decode(file: BinaryIO, name: str) -> Image.Image:
    """The first frame of an image file, which is closed."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with file:
            head = file.read(12)
            file.seek(0)
            with Image.open(file) as image:
                image.load()
                return image
    except UnidentifiedImageError as error:
        if not size:
            raise ValueError(f"{name} must be an image, got an empty file; download or save it again") from error
        found = "HEIC" if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS else "an unknown format"
        raise ValueError(f"{name} must be an image, got {found}; convert it to PNG or JPEG") from error
    except Exception as error:  # decoders raise anything on damaged files
        raise damaged(name, error) from error


def unread_format(endings: Iterable[str]) -> str | None:
    """The sentence that refuses images in formats that are not read, if any of these lower-case endings is of one."""
    found = ", ".join(dict.fromkeys(UNREAD_FORMATS[ending] for ending in endings if ending in UNREAD_FORMATS))
    return f"an image must be PNG, JPEG or another format that can be read, got {found}; convert it" if found else None


def damaged(name: str, error: Exception) -> ValueError:
    found = str(error) or type(error).__name__
    return ValueError(f"{name} must be a readable image, got {found}; it is damaged or too large, save it again")


def from_values(values: np.ndarray, *, channels_first: bool) -> Image.Image:
    """An image of values (H, W), or with 1 to 4 channels: gray, gray and alpha, RGB, RGBA."""
    either = () if values.ndim != 3 else (0, 2) if channels_first else (2, 0)
    axes = [axis for axis in either if values.shape[axis] in range(1, 5)]
    if values.dtype.kind not in "buif" or (values.ndim != 2 and not axes):
        order = "(channels, height, width)" if channels_first else "(height, width, channels)"
        raise ValueError(
            f"values of an image must be numbers of shape {order} or (height, width), got {values.dtype} "
            f"{values.shape}; give one image with 1 to 4 channels"
        )
    if values.size and values.dtype.kind in "if" and values.min() < -0.1:
        raise ValueError(f"values of an image must be >= 0, got {values.min()}; scale them to 0 to 1, or 0 to 255")
    levels = to_8_bit(values)
    if axes:
        levels = np.moveaxis(levels, axes[0], 2)
        levels = levels[:, :, 0] if levels.shape[2] == 1 else levels
    # Pillow cannot make an image without pixels of an array
    return Image.fromarray(np.ascontiguousarray(levels)) if levels.size else Image.new("RGB", levels.shape[1::-1])


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to upright RGB; transparency on white, 16 bits scaled to 8."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    info, clear = dict(image.info), image.info.get("transparency")
    info.pop("transparency", None)
    if image.mode == "RGB" and clear is None:
        image.load()
        return image
    if image.mode in DEEP_MODES:
        levels_HW = np.asarray(image)
        gray_HW = to_8_bit(levels_HW)
        if clear is not None:
            gray_HW = np.where(levels_HW == clear, np.uint8(255), gray_HW)
        rgb = Image.fromarray(gray_HW).convert("RGB")
    elif image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # multiplied by alpha already
            image = image.convert(image.mode.replace("a", "A"))
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")  # type: ignore[assignment]
    else:
        rgb = image.convert("RGB")
    rgb.info = info
    return rgb


def to_8_bit(levels: np.ndarray) -> np.ndarray:
    """Levels of any depth to 8 bits. Floats are 0 to 1 and may overshoot a little, as filters make them; values above 2
    are 0 to 255, or 0 to 65535. Integers are 0 to 255 or 0 to 65535."""
    if levels.dtype == np.uint8:
        return levels
    levels = np.nan_to_num(levels.astype(np.float64), posinf=0.0, neginf=0.0) if levels.dtype.kind == "f" else levels
    highest = levels.max(initial=0)
    if levels.dtype.kind == "b" or (levels.dtype.kind == "f" and highest <= 2):
        top = 1.0
    else:
        top = 255.0 if highest <= 255 and levels.dtype != np.uint16 else 65535.0
    return (levels.astype(np.float64) / top * 255.0).round().clip(0, 255).astype(np.uint8)


def pad_to_square(image: Image.Image, color: tuple[int, int, int], width: int, how: Resampling) -> Image.Image:
    """The image in the middle of a square of its longer side, scaled to `width` but not yet to a height. Strip by
    strip, since the square of a long image is much larger than the image; Pillow scales in the same order."""
    if image.width == image.height:
        return image
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    scaled = Image.new("RGB", (width, side), color)
    for start in range(top, top + image.height, 256):
        rows = min(256, top + image.height - start)
        strip = Image.new("RGB", (side, rows), color)
        strip.paste(image.crop((0, start - top, image.width, start - top + rows)), (left, 0))
        scaled.paste(strip.resize((width, rows), how), (0, start))
    return scaled


def scale_and_crop(image: Image.Image, size: tuple[int, int], width: int, height: int, how: Resampling) -> Image.Image:
    """The middle of the image scaled to `size`. Of a long one, only the middle is scaled; it differs by rounding."""
    if max(size) <= 4 * max(width, height):
        return crop_center(image if size == image.size else image.resize(size, how), width, height)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    x, y = image.width / size[0], image.height / size[1]
    box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
    return image.resize((width, height), how, box=box)


def crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of the image; what lies outside of it is black (as torchvision's CenterCrop)."""

    def offset(size: int, crop: int) -> int:
        return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)

    left, top = offset(image.width, width), offset(image.height, height)
    return image.crop((left, top, left + width, top + height))


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name."""
    if found := sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_ENDINGS):
        return found
    what = "no image in it" if folder.is_dir() else "no such folder"
    raise FileNotFoundError(f"{folder} must be a folder of images, got {what}; correct the path")


def files_below(folder: Path) -> list[Path]:
    """In the order of their names, without hidden files, which systems leave there."""
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [folder / path for path in sorted(inside) if not any(part.startswith(".") for part in path.parts)]


def find_captions(files: Sequence[Path]) -> dict[Path, Path]:
    """Those of the files that are images with a caption, and the file of the caption; endings in any case."""
    named = {file.with_suffix(file.suffix.lower()): file for file in files}
    found = {}
    for image in (file for file in files if file.suffix.lower() in IMAGE_ENDINGS):
        beside = (named.get(image.with_suffix(f".{ending}")) for ending in CAPTION_ENDINGS)
        if caption := next(filter(None, beside), None):
            found[image] = caption
    return found


def png_files(folder: Path) -> list[Path]:
    """Reference images; PNG, because a lossy copy would change the score."""
    files = images_in(folder)
    if lossy := [file.name for file in files if file.suffix.lower() != ".png"]:
        raise ValueError(f"rFID references must be PNG, got {lossy[0]} in {folder}; convert all such ({len(lossy)})")
    return files


def read_classes(folder: Path, file: Path) -> dict[str, str]:
    """Folder of each class to its name, from a JSON file that fits the folders that are there."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a JSON file of class names, got no such file; correct the path")
    classes = read_json(file)
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes.values()):
        raise ValueError(f"{file} must map folders to class names, got {type(classes).__name__}; correct the file")
    folders = {path.name for path in folder.glob("*") if path.is_dir()}
    if differing := sorted(folders ^ classes.keys()):
        raise ValueError(
            f"{folder} and {file} must have the same classes, got {len(differing)} in only one of them, such as "
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
    width, left = sum(image.width + GAP for image in images) - GAP, 0
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    return sheet
