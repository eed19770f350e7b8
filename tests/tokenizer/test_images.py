"""Every kind of image file becomes the right pixels, and pixels become images again; folders and sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizer.images import (
    PREPARATIONS,
    ImageProcessor,
    images_in,
    open_image,
    png_files,
    reconstruction_sheet,
    side_by_side,
    to_bytes,
    to_images,
    to_pixels,
    to_rgb,
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_every_preparation_gives_the_exact_size() -> None:
    for preparation in PREPARATIONS:
        processor = ImageProcessor(height=32, width=48, preparation=preparation)
        for size in ((40, 90), (90, 40), (7, 300), (64, 64), (1, 1)):
            pixels_B3HW = processor([noise(*size), noise(50, 50)])
            assert pixels_B3HW.shape == (2, 3, 32, 48) and pixels_B3HW.dtype == torch.float32
            assert pixels_B3HW.min() >= -1 and pixels_B3HW.max() <= 1
        assert processor([]).shape == (0, 3, 32, 48)
    for settings in ({"height": 8, "width": 8, "preparation": "zoom"}, {"height": 0, "width": 8}):
        with pytest.raises(ValueError):
            ImageProcessor(**settings)


def test_an_image_of_the_right_size_comes_back_unchanged() -> None:
    image = noise(32, 32)
    for preparation in ("crop", "cover", "stretch", "zero_shot", "understanding"):
        (restored,) = to_images(ImageProcessor(height=32, width=32, preparation=preparation)(image))
        assert np.array_equal(np.asarray(restored), np.asarray(image)), preparation


def test_reconstruction_scales_the_shorter_side_to_nine_eighths() -> None:
    image = noise(100, 61)
    scaled = image.resize((288 * 100 // 61, 288), Image.Resampling.BILINEAR)
    left = round((scaled.width - 256) / 2)
    expected = scaled.crop((left, 16, left + 256, 272))
    prepared = ImageProcessor(height=256, width=256, preparation="reconstruction").prepare(image)
    assert np.array_equal(np.asarray(prepared), np.asarray(expected))


def test_understanding_pads_to_a_square_first() -> None:
    black = Image.new("RGB", (90, 30))
    pixels_HW3 = np.asarray(ImageProcessor(height=90, width=90, preparation="understanding").prepare(black))
    assert pixels_HW3[0, 0].tolist() == [122, 116, 104] and pixels_HW3[45, 45].tolist() == [0, 0, 0]


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 100, 0])
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(clear.convert("LA")).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(palette).getpixel((0, 0)) == (200, 100, 0)
    palette.info["transparency"] = 1
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_keeps_its_contrast(tmp_path: Path) -> None:
    levels_HW = np.array([[0, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels_HW).save(tmp_path / "deep.png")
    image = to_rgb(open_image(tmp_path / "deep.png"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_every_mode_becomes_rgb() -> None:
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "F", "I", "RGBA", "LA"):
        assert to_rgb(noise(5, 4).convert("L" if mode in ("F", "I") else "RGB").convert(mode)).mode == "RGB"


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = noise(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "turned.png", exif=exif)
    upright = open_image(tmp_path / "turned.png")
    assert upright.size == (4, 8)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    noise(40, 40).save(tmp_path / "complete.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "complete.png").read_bytes()[:600])
    for name in ("absent.png", "", "text.png", "cut.png"):
        with pytest.raises((FileNotFoundError, ValueError)):
            open_image(tmp_path / name)


def test_pixels_are_rounded_clamped_and_never_nan() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.0067, 1.0, 3.0, float("nan")])
    pixels_B3HW = levels.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert np.asarray(to_images(pixels_B3HW)[0])[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255, 128]


def test_levels_and_pixels_are_inverse() -> None:
    image = noise(5, 4)
    assert np.array_equal(np.asarray(to_images(to_pixels(to_bytes(image)[None]))[0]), np.asarray(image))


def test_folders_are_checked(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError):
            images_in(folder)
    for name in ("b.PNG", "a.jpg"):
        noise(4, 4).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in images_in(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(ValueError):
        png_files(tmp_path)
    (tmp_path / "a.jpg").unlink()
    assert [path.name for path in png_files(tmp_path)] == ["b.PNG"]


def test_a_sheet_shows_pairs_in_rows() -> None:
    originals_B3HW, reconstructions_B3HW = torch.rand(2, 5, 3, 6, 9) * 2 - 1
    sheet = np.asarray(reconstruction_sheet(originals_B3HW, reconstructions_B3HW, per_row=3))
    assert sheet.shape == (2 * (12 + 8), 3 * (9 + 8), 3)
    (fifth,) = to_images(reconstructions_B3HW[4:])  # second row, second column, lower half
    assert np.array_equal(sheet[20 + 4 + 6 : 20 + 4 + 12, 17 + 4 : 17 + 4 + 9], np.asarray(fifth))
    assert (sheet[20:, 34:] == 255).all()  # no sixth pair
    assert side_by_side([noise(4, 9), noise(6, 5)]).size == (14, 9)
