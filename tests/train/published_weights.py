"""Small random files in the layout of the published ones: LPIPS on VGG16, DINOv2, OpenAI's merges, WebDataset tars."""

import gzip
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor
from webdataset import TarWriter

VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def lpips_weights(widths: tuple[int, ...] = (3, 4, 5, 6, 7)) -> dict[str, Tensor]:
    """As lpips_with_vgg.pth, with these widths of the five slices instead of 64, 128, 256, 512, 512."""
    generator = torch.Generator().manual_seed(5)
    state, before = {}, 3
    for number, (width, row) in enumerate(zip(widths, VGG, strict=True), start=1):
        for index in row:
            scale = (2 / (9 * before)) ** 0.5
            state[f"net.slice{number}.{index}.weight"] = scale * torch.randn(width, before, 3, 3, generator=generator)
            state[f"net.slice{number}.{index}.bias"] = 0.1 * torch.randn(width, generator=generator)
            before = width
        state[f"lins.{number - 1}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return state


def dino_weights() -> dict[str, Tensor]:
    """As dinov2_vits14_pretrain.pth, with three blocks of one head, and 5 x 5 positions instead of 37 x 37."""
    generator, width = torch.Generator().manual_seed(6), 64

    def draw(*shape: int, scale: float = 0.1) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    state = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 26, width)}
    state |= {"mask_token": draw(1, width), "patch_embed.proj.weight": draw(width, 3, 14, 14)}
    state |= {"patch_embed.proj.bias": draw(width), "norm.weight": 1 + draw(width), "norm.bias": draw(width)}
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in (f"blocks.{index}" for index in range(3)):
        for name, shape in shapes.items():
            state |= {f"{block}.{name}.weight": draw(*shape), f"{block}.{name}.bias": draw(shape[0])}
        for name in ("norm1", "norm2"):
            state |= {f"{block}.{name}.weight": 1 + draw(width), f"{block}.{name}.bias": draw(width)}
        state |= {f"{block}.{name}.gamma": 1 + draw(width) for name in ("ls1", "ls2")}
    return state


def write_merges(path: Path) -> Path:
    """As bpe_simple_vocab_16e6.txt.gz, with three merges: 517 pieces in all."""
    path.write_bytes(gzip.compress(b"# version\nt h\nth e</w>\nc a\n"))
    return path


def small_image(number: int, *, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """An image of a few random colours, the same for the same number."""
    return Image.frombytes("RGB", (3, 3), Random(number).randbytes(27)).resize(size)


def write_tar(path: Path, numbers: range) -> Path:
    """A WebDataset tar of the images with these numbers, without `.json` members."""
    with TarWriter(str(path)) as tar:
        for number in numbers:
            tar.write({"__key__": f"{number:06d}", "png": small_image(number), "txt": f"the cat {number}"})
    return path
