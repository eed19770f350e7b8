"""Every kind of image file becomes the right pixels, and pixels become images again; folders and sheets."""

import base64
import io
import resource
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizer import images
from tokenizer.images import IMAGE_ENDINGS, PREPARATIONS, ImageProcessor, read_image, to_images


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_every_preparation_gives_the_exact_size() -> None:
    for preparation in PREPARATIONS:
        processor = ImageProcessor(height=32, width=48, preparation=preparation)
        for size in ((40, 90), (90, 40), (7, 300), (64, 64), (1, 1)):
            pixels_B3HW = processor([noise(*size), noise(50, 50)])
            assert pixels_B3HW.shape == (2, 3, 32, 48) and pixels_B3HW.abs().max() <= 1
        assert processor([]).shape == (0, 3, 32, 48)
    image = noise(32, 32)  # of the right size it comes back unchanged
    for preparation in ("crop", "cover", "stretch", "zero_shot", "understanding"):
        (restored,) = to_images(ImageProcessor(height=32, width=32, preparation=preparation)(image))
        assert np.array_equal(np.asarray(restored), np.asarray(image)), preparation


def test_an_image_is_scaled_or_padded_and_a_long_one_as_if_whole() -> None:
    assert PREPARATIONS["reconstruction"].ratio == 288 / 256  # of the crop
    assert PREPARATIONS["understanding"].pad_color == (122, 116, 104)
    for size in ((900, 61), (61, 900), (100, 61)):
        image = noise(*size)
        for name in ("reconstruction", "zero_shot", "cover", "understanding"):
            how = PREPARATIONS[name]
            side, wide = int(64 * how.ratio), max(size)
            whole = Image.new("RGB", (wide, wide), how.pad_color or 0)
            if how.pad_color:
                whole.paste(image, ((wide - size[0]) // 2, (wide - size[1]) // 2))
                expected = whole.resize((64, 64), how.resampling)
            else:
                scaled = image.resize((side * size[0] // min(size), side * size[1] // min(size)), how.resampling)
                expected = images.crop_center(scaled, 64, 64)
            prepared = np.asarray(ImageProcessor(height=64, width=64, preparation=name).prepare(image), dtype=int)
            assert np.abs(prepared - np.asarray(expected)).max() <= 2 * (how.pad_color is None and wide == 900), name


def test_extreme_shapes_cost_no_extreme_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in ((8_000, 100), (100, 8_000)):
        for preparation in ("reconstruction", "understanding"):  # scaled, and padded to a square
            ImageProcessor(height=64, width=64, preparation=preparation).prepare(Image.new("RGB", size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the square has 192 MB


def as_file(image: Image.Image, ending: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, ending, **options)
    return stream.getvalue()


def test_every_way_in_gives_the_same_image(tmp_path: Path) -> None:
    image, exif = noise(9, 6), Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    values_HW3, data = np.asarray(image), as_file(image, exif=exif)
    path = tmp_path / "a photo #1 \u00e9.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), path.as_uri(), url, data, bytearray(data), Image.open(path)):
        read = read_image(source)
        assert read.mode == "RGB" and np.array_equal(np.asarray(read), np.rot90(values_HW3, -1)), source
        assert read_image(read) is read  # not turned twice
    tensor_HW3 = torch.tensor(values_HW3)
    for values in (
        *(values_HW3, values_HW3 / 255, values_HW3.astype(np.float32), values_HW3.astype(np.uint16) * 257),
        *(values_HW3.transpose(2, 0, 1), tensor_HW3.permute(2, 0, 1), (tensor_HW3 / 255).permute(2, 0, 1), tensor_HW3),
    ):
        assert np.array_equal(np.asarray(read_image(values)), values_HW3), values.dtype
    for gray in (values_HW3[:, :, 0], torch.tensor(values_HW3[:, :, :1]).permute(2, 0, 1)):
        assert (np.asarray(read_image(gray)) == values_HW3[:, :, :1]).all()
    assert read_image(np.ones((2, 2), bool)).getpixel((0, 0)) == (255, 255, 255)


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 100, 0])
    deep = Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16))
    white = (255, 255, 255)
    for image in (clear, clear.convert("LA"), clear.convert("RGBa"), clear.convert("LA").convert("La")):
        assert read_image(image).getpixel((0, 0)) == white, image.mode
    assert read_image(palette).getpixel((0, 0)) == (200, 100, 0)
    for image, key in ((palette, 1), (palette, bytes([255, 0])), (deep, 40_000), (noise(2, 2).convert("L"), 9)):
        if image.mode != "I;16":
            image.putpixel((0, 0), key if isinstance(key, int) else 1)
        assert read_image(as_file(image, transparency=key)).getpixel((0, 0)) == white, image.mode
    assert read_image(as_file(deep, transparency=9)).getpixel((0, 0)) == (156, 156, 156)


def test_deep_levels_keep_their_contrast() -> None:
    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    over = Image.fromarray(np.array([[0, 0.502, 1.2, np.nan, np.inf, -0.05]], dtype=np.float32))  # a filter overshoots
    wide = Image.fromarray(np.array([[0, 128, 255.0]], dtype=np.float32))
    for image, ending, expected in (
        (deep, "png", [0, 128, 255]),
        (deep, "tiff", [0, 128, 255]),
        (over, "tiff", [0, 128, 255, 0, 0, 0]),
        (wide, "tiff", [0, 128, 255]),
    ):
        read = read_image(as_file(image, ending))
        assert [read.getpixel((x, 0))[0] for x in range(read.width)] == expected, ending


def test_every_mode_and_format_becomes_rgb() -> None:
    image = Image.new("RGB", (16, 12), (200, 100, 50))
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "F", "I", "RGBA", "LA", "LAB"):
        assert read_image(image.convert("L" if mode in ("F", "I") else "RGB").convert(mode)).mode == "RGB"
    assert min(read_image(Image.new("LAB", (1, 1), (255, 128, 128))).getpixel((0, 0))) > 250
    for ending in IMAGE_ENDINGS:
        name = Image.registered_extensions().get(ending)
        if name in Image.SAVE:
            red, green, blue = read_image(as_file(image, name)).getpixel((8, 6))
            assert red > green > blue, ending
    others = [Image.new("RGB", image.size, color) for color in ("blue", "lime")]
    for name in ("GIF", "WEBP", "PNG", "TIFF"):  # the first frame
        moving = read_image(as_file(image, name, save_all=True, append_images=others))
        assert np.abs(np.subtract(moving.getpixel((8, 6)), (200, 100, 50))).max() < 8, name


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(as_file(noise(40, 40))[:600])
    bomb = bytearray(as_file(Image.new("1", (1, 1))))
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    for source in (
        *(tmp_path / name for name in ("absent.png", "", "text.png", "cut.png", "x" * 300 + ".png", "nul\0.png")),
        *(Image.open(tmp_path / "cut.png"), bytes(bomb), b"", b"\xff\xd8\xff", "data:", "file:///absent.png"),
        *("data:image/png;base64,AAAA", "http://[", "http://127.0.0.1:9/a.png", "https://a b.invalid/\u00e9.png"),
        *(Image.new("RGB", (0, 0)), Image.new("RGB", (1, 201)), np.zeros((0, 0, 3)), np.zeros((2, 4, 4, 3))),
        *(np.zeros((5, 5, 5)), np.array([["a"]]), torch.full((3, 4, 4), -1.0), torch.zeros(3), None, 3, [], {}),
    ):
        with pytest.raises((FileNotFoundError, ValueError)) as raised:
            read_image(source)
        assert len(str(raised.value)) < 500, source
    with pytest.raises(ValueError, match="got HEIC; convert it"):
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert read_image(Image.new("RGB", (1, 200))).size == (1, 200)


def test_pixels_are_rounded_clamped_and_never_nan() -> None:
    levels = torch.tensor([-2.0, -1.0, 0.0, 0.0067, 1.0, 3.0, float("nan")])
    pixels_B3HW = levels.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert np.asarray(to_images(pixels_B3HW)[0])[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255, 128]
    image = noise(5, 4)  # levels and pixels are inverse
    assert np.array_equal(np.asarray(to_images(images.to_pixels(images.to_bytes(image)[None]))[0]), np.asarray(image))
