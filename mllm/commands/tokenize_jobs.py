"""The work of `mllm tokenize`: encode, decode, reconstruct. Parsed words in; files and a few printed lines out.

Knows the image tokenizer and no language model.

Letters: B pictures, H W pixels, K codebooks, N positions, C entries per codebook.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mllm.checkpoint import choose_device, find_image_tokenizer
from mllm.commands.arguments import picture_path, writable_endings
from mllm.files import write_json
from tokenizer.codes import CodeFile, check_ending, read_codes, write_codes
from tokenizer.images import ImageProcessor, open_image, to_images
from tokenizer.metrics import code_counts, entropy_of, psnr, ssim, usage_of
from tokenizer.unitok import UniTok

BATCH_SIZE = 16


def encode(arguments: argparse.Namespace) -> None:
    check_ending(arguments.output)
    tokenizer = find_image_tokenizer(arguments.model, device=choose_device(arguments.device))
    pixels_B3HW = read_pixels(arguments, tokenizer)
    codes_BKN = encode_pixels(tokenizer, pixels_B3HW)
    num_images, grid = len(codes_BKN), tokenizer.grid_of(pixels_B3HW)
    file = CodeFile(
        names=tuple(path.name for path in arguments.pictures),
        grids=(grid,) * num_images,
        codes=tuple(codes_BKN.numpy().astype(np.uint16)),
        num_codebooks=tokenizer.config.num_codebooks,
        codebook_size=tokenizer.config.codebook_size,
        fingerprint=tokenizer.fingerprint(),
    )
    write_codes(arguments.output, file)
    print(f"{arguments.output}: {num_images} x {codes_BKN.shape[1]} codebooks x {grid[0]} x {grid[1]} positions")


def decode(arguments: argparse.Namespace) -> None:
    file = read_codes(arguments.codes)
    outputs = output_paths(arguments.output, [Path(name).stem for name in file.names])
    tokenizer = find_image_tokenizer(arguments.model, device=choose_device(arguments.device))
    file.require_fingerprint(tokenizer.fingerprint())
    for path, codes_KN, grid in zip(outputs, file.codes, file.grids, strict=True):
        codes_1KN = torch.from_numpy(codes_KN.astype(np.int64))[None].to(tokenizer.device)
        save(to_images(tokenizer.decode(codes_1KN, grid=grid))[0], path)


def reconstruct(arguments: argparse.Namespace) -> None:
    outputs = output_paths(arguments.output, [path.stem for path in arguments.pictures])
    tokenizer = find_image_tokenizer(arguments.model, device=choose_device(arguments.device))
    pixels_B3HW = read_pixels(arguments, tokenizer)
    codes_BKN = encode_pixels(tokenizer, pixels_B3HW)
    grid = tokenizer.grid_of(pixels_B3HW)
    parts = [tokenizer.decode(part.to(tokenizer.device), grid=grid).cpu() for part in codes_BKN.split(BATCH_SIZE)]
    again_B3HW = torch.cat(parts)
    for path, image in zip(outputs, to_images(again_B3HW), strict=True):
        save(image, path)
    measures = measure(arguments.pictures, pixels_B3HW, again_B3HW, codes_BKN, tokenizer.config.codebook_size)
    print_measures(measures)
    if arguments.json:
        write_json(arguments.json, measures)


def read_pixels(arguments: argparse.Namespace, tokenizer: UniTok) -> torch.Tensor:
    """All pictures as one batch."""
    side = tokenizer.config.image_size
    width, height = arguments.size or (side, side)
    processor = ImageProcessor(height=height, width=width, preparation=arguments.preparation)
    return processor([open_image(path) for path in arguments.pictures])


def encode_pixels(tokenizer: UniTok, pixels_B3HW: torch.Tensor) -> torch.Tensor:
    """Codes on the CPU, a few pictures at a time."""
    parts = [tokenizer.encode(part.to(tokenizer.device)).cpu() for part in pixels_B3HW.split(BATCH_SIZE)]
    return torch.cat(parts)


def output_paths(output: str, stems: list[str]) -> list[Path]:
    """One file per picture: the one named, or a file of the picture's name in the folder named."""
    if Path(output).suffix.lower() in writable_endings():
        if len(stems) != 1:
            raise ValueError(f"{len(stems)} pictures do not fit into the one file {output}; name a folder with -o")
        return [picture_path(output)]
    return [Path(output) / f"{name}.png" for name in distinct(stems)]


def distinct(stems: list[str]) -> list[str]:
    """The names in order; a name that came before gets a number."""
    names: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    print(path)


def measure(
    pictures: list[Path], pixels_B3HW: torch.Tensor, again_B3HW: torch.Tensor, codes_BKN: torch.Tensor, size: int
) -> dict[str, Any]:
    """How close the pictures came back and how well the codebooks were used."""
    counts_KC = code_counts(codes_BKN, size)
    psnr_B, ssim_B = psnr(pixels_B3HW, again_B3HW), ssim(pixels_B3HW, again_B3HW)
    rows = zip(pictures, psnr_B.tolist(), ssim_B.tolist(), strict=True)
    return {
        "pictures": [{"name": path.name, "psnr": first, "ssim": second} for path, first, second in rows],
        "psnr": psnr_B.mean().item(),
        "ssim": ssim_B.mean().item(),
        "usage": usage_of(counts_KC).tolist(),
        "entropy": entropy_of(counts_KC).tolist(),
    }


def print_measures(measures: dict[str, Any]) -> None:
    rows = measures["pictures"]
    if len(rows) > 1:
        rows = [*rows, {"name": "mean", "psnr": measures["psnr"], "ssim": measures["ssim"]}]
    width = max(len(row["name"]) for row in rows)
    print(f"\n{'picture':<{width}}  PSNR dB    SSIM")
    for row in rows:
        print(f"{row['name']:<{width}}  {row['psnr']:7.2f}  {row['ssim']:6.4f}")
    print("\ncodebook  in use %  entropy nats")
    for index, (usage, entropy) in enumerate(zip(measures["usage"], measures["entropy"], strict=True)):
        print(f"{index:<8}  {100 * usage:8.1f}  {entropy:12.2f}")
