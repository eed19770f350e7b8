"""`mllm tokenize` and `mllm convert`: images to codes and back, released checkpoints in and out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.cli.main import (
    DTYPE_NAMES,
    IMAGES_OUTPUT,
    MODEL_FOLDER,
    command,
    file_in_existing_folder,
    gigabytes,
    image_file,
    image_size,
    json_option,
    option,
    writable_endings,
)
from mllm.files import counted, require_new, whole_file, whole_folder, write_image, write_json

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from tokenizer.config import AttentionKind
    from tokenizer.released_checkpoint import UpstreamCheckpoint
    from tokenizer.unitok import UniTok


BATCH_SIZE = 16
TOKENIZE_IMAGES = [
    option("images", nargs="+", type=Path, metavar="IMAGE", help="image file"),
    option("--size", type=image_size, metavar="WxH", help="image size in pixels (default: the model's)"),
    option("--preparation", default="cover", help="how images are resized: cover (default), stretch, crop ..."),
]


@command(
    "tokenize encode",
    "Convert images to codes.",
    "a.png b.png -o codes.npz",
    *TOKENIZE_IMAGES,
    option("-o", "--output", type=file_in_existing_folder, required=True, metavar="FILE", help=".npz or .safetensors"),
    *MODEL_FOLDER,
)
def tokenize_encode(options: Namespace) -> None:
    from tokenizer.codes import CodeFile, check_ending, write_codes
    from tokenizer.unitok import encode_images

    check_ending(options.output.suffix)
    tokenizer = load_image_tokenizer(options)
    encoded = list(encode_images(read_pixels(options, tokenizer), tokenizer, batch_size=BATCH_SIZE))
    file = CodeFile(
        names=tuple(path.name for path in options.images),
        grids=tuple(image.grid for image in encoded),
        codes=tuple(image.codes_KN for image in encoded),
        num_codebooks=tokenizer.config.num_codebooks,
        codebook_size=tokenizer.config.codebook_size,
        fingerprint=tokenizer.fingerprint(),
    )
    with whole_file(options.output) as unfinished:
        write_codes(unfinished, file, ending=options.output.suffix)
    rows, columns = encoded[0].grid
    print(f"{options.output}: {len(encoded)} x {file.num_codebooks} codebooks x {rows} x {columns} positions")


@command(
    "tokenize decode",
    "Convert codes to images.",
    "codes.npz -o images/",
    option("codes", type=Path, metavar="CODES", help="file written by mllm tokenize encode"),
    IMAGES_OUTPUT,
    *MODEL_FOLDER,
)
def tokenize_decode(options: Namespace) -> None:
    from tokenizer.codes import read_codes
    from tokenizer.unitok import EncodedImage, decode_images

    file = read_codes(options.codes)
    outputs = output_paths(options.output, [Path(name).stem for name in file.names])
    tokenizer = load_image_tokenizer(options)
    file.require_fingerprint(tokenizer.fingerprint())
    encoded = map(EncodedImage, file.codes, file.grids)
    write_images(decode_images(encoded, tokenizer, batch_size=BATCH_SIZE), outputs)


@command(
    "tokenize reconstruct",
    "Convert images to codes and back, and measure the quality of the reconstructions.",
    "a.png -o again.png",
    *TOKENIZE_IMAGES,
    IMAGES_OUTPUT,
    json_option("scores"),
    *MODEL_FOLDER,
)
def tokenize_reconstruct(options: Namespace) -> None:
    import numpy as np
    import torch

    from tokenizer.metrics import code_counts, entropy_of, psnr, ssim, usage_of
    from tokenizer.unitok import decode_images, encode_images

    outputs = output_paths(options.output, [path.stem for path in options.images])
    if Path(options.output).is_dir() and {path.resolve() for path in outputs} & {p.resolve() for p in options.images}:
        raise ValueError(f"-o must be another folder than that of the images, got {options.output}; name a new one")
    tokenizer = load_image_tokenizer(options)
    pixels_B3HW = read_pixels(options, tokenizer)
    encoded = list(encode_images(pixels_B3HW, tokenizer, batch_size=BATCH_SIZE))
    again_B3HW = torch.stack(list(decode_images(encoded, tokenizer, batch_size=BATCH_SIZE))).cpu()
    write_images(again_B3HW, outputs)
    codes_BKN = torch.from_numpy(np.stack([image.codes_KN for image in encoded]).astype(np.int64))
    counts_KC = code_counts(codes_BKN, tokenizer.config.codebook_size)
    psnr_B, ssim_B = psnr(pixels_B3HW, again_B3HW), ssim(pixels_B3HW, again_B3HW)
    names = [path.name for path in options.images]
    rows = [*zip(names, psnr_B.tolist(), ssim_B.tolist(), strict=True)]
    scores: dict[str, Any] = {
        "images": [{"name": name, "psnr": first, "ssim": second} for name, first, second in rows],
        "psnr": psnr_B.mean().item(),
        "ssim": ssim_B.mean().item(),
        "usage": usage_of(counts_KC).tolist(),
        "entropy": entropy_of(counts_KC).tolist(),
    }
    rows += [("mean", scores["psnr"], scores["ssim"])] if len(rows) > 1 else []
    width = max(len(name) for name, _, _ in rows)
    print(f"\n{'image':<{width}}  PSNR dB    SSIM")
    for name, first, second in rows:
        print(f"{name:<{width}}  {first:7.2f}  {second:6.4f}")
    print("\ncodebook  in use %  entropy nats")
    for index, (usage, entropy) in enumerate(zip(scores["usage"], scores["entropy"], strict=True)):
        print(f"{index:<8}  {100 * usage:8.1f}  {entropy:12.2f}")
    if options.json:
        write_json(options.json, scores)


def load_image_tokenizer(options: Namespace) -> UniTok:
    from mllm.checkpoint import choose_device, find_image_tokenizer

    return find_image_tokenizer(options.model, device=choose_device(options.device))


def read_pixels(options: Namespace, tokenizer: UniTok) -> Tensor:
    from tokenizer.images import ImageProcessor, read_image

    side = tokenizer.config.image_size
    width, height = options.size or (side, side)
    processor = ImageProcessor(height=height, width=width, preparation=options.preparation)
    return processor([read_image(path) for path in options.images])


def output_paths(output: str, stems: list[str]) -> list[Path]:
    """One file per image: the one named, or a file with the image's name in the folder named."""
    if Path(output).suffix.lower() in writable_endings():
        if len(stems) != 1:
            raise ValueError(f"-o must be a folder for {len(stems)} images, got the file {output}")
        return [image_file(output)]
    names: list[str] = []
    for stem in stems:  # a name that occurred before gets a number
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return [Path(output) / f"{name}.png" for name in names]


def write_images(pixels: Iterable[Tensor], paths: list[Path]) -> None:
    """Write images of pixels (3, H, W) in [-1, 1] and print their names."""
    from tokenizer.images import to_images

    for path, pixels_3HW in zip(paths, pixels, strict=True):
        write_image(path, to_images(pixels_3HW[None])[0])
        print(path)


GB = 10**9
SHARD_SIZE = option(
    "--shard-size", type=gigabytes, default=1.0, metavar="GB", help="maximum size of a weight file (default: 1)"
)
PROBE_IMAGES = option("--images", nargs="+", type=Path, metavar="IMAGE", help="images to probe (default: generated)")
ATTENTION = [
    option(
        "--attention",
        choices=("full", "causal", "probe"),
        help="attention in the tokenizer's projections: full (default; checkpoints since April 2025), causal "
        "(older ones), or probe (try both)",
    ),
    PROBE_IMAGES,
]


@command(
    "convert unitok-mllm",
    "Convert the released MLLM to a model folder of this toolkit.",
    "unitok_mllm/ model/ --image-tokenizer unitok_tokenizer.pth",
    option("source", type=Path, metavar="SRC_DIR", help="released folder, including tokenizer.model"),
    option("output", type=Path, metavar="OUT", help="output folder, which must not exist"),
    option("--image-tokenizer", type=Path, metavar="FILE", help="released file (default: the one in SRC_DIR)"),
    option("--dtype", choices=DTYPE_NAMES, help="number format of the language model (default: unchanged)"),
    SHARD_SIZE,
    *ATTENTION,
)
def convert_unitok_mllm(options: Namespace) -> None:
    from transformers.utils import logging as transformers_logging

    from mllm import checkpoint as checkpoints

    transformers_logging.set_verbosity_error()
    require_new(options.output)
    source = checkpoints.find_model_folder(options.source)
    path = options.image_tokenizer or checkpoints.released_image_tokenizer(source)
    tokenizer = None if path is None else read_released_tokenizer(path, options)
    dtype, largest = checkpoints.DTYPES.get(options.dtype), int(options.shard_size * GB)
    with whole_folder(options.output) as folder:
        config = checkpoints.convert_released(
            source, folder, image_tokenizer=tokenizer, dtype=dtype, max_shard_bytes=largest
        )
    print(f"{options.output}: a model of width {config.hidden_size} in {config.dtype}".replace("torch.", ""))
    if tokenizer is None:
        print("no image tokenizer: the model can neither draw nor see images; convert again with --image-tokenizer")
    else:
        describe_image_tokenizer(options.output / checkpoints.IMAGE_TOKENIZER, tokenizer)


@command(
    "convert unitok",
    "Convert the released image tokenizer to a folder of this toolkit.",
    "unitok_tokenizer.pth unitok/",
    option("source", type=Path, metavar="SRC", help="released file, .pth or .safetensors"),
    option("output", type=Path, metavar="OUT", help="output folder, which must not exist"),
    option("--dtype", choices=DTYPE_NAMES, help="number format of the encoder and decoder (default: unchanged)"),
    *ATTENTION,
)
def convert_unitok(options: Namespace) -> None:
    from mllm.checkpoint import DTYPES
    from tokenizer.released_checkpoint import save_converted

    require_new(options.output)
    checkpoint = read_released_tokenizer(options.source, options)
    with whole_folder(options.output) as folder:
        save_converted(checkpoint, folder, dtype=DTYPES.get(options.dtype))
    describe_image_tokenizer(options.output, checkpoint)


@command(
    "convert export-unitok",
    "Export an image tokenizer to the file format of UniTok.",
    "unitok/ back.pth",
    option("source", type=Path, metavar="FOLDER", help="folder of an image tokenizer"),
    option("output", type=Path, metavar="OUT", help="output file, which must not exist and must end in .pth"),
)
def convert_export_unitok(options: Namespace) -> None:
    from tokenizer.released_checkpoint import export_upstream

    require_new(options.output)
    if options.output.suffix != ".pth":
        raise ValueError(f"OUT must end in .pth, got {options.output}; rename it")
    with whole_file(options.output) as unfinished:
        export_upstream(options.source, unfinished)
    print(options.output)


@command(
    "convert export-unitok-mllm",
    "Export a model to the released layout.",
    "model/ back/",
    option("source", type=Path, metavar="FOLDER", help="folder of a model of this toolkit"),
    option("output", type=Path, metavar="OUT", help="output folder, which must not exist"),
    SHARD_SIZE,
)
def convert_export_unitok_mllm(options: Namespace) -> None:
    from transformers.utils import logging as transformers_logging

    from mllm.checkpoint import export_released

    transformers_logging.set_verbosity_error()
    require_new(options.output)
    with whole_folder(options.output) as folder:
        export_released(options.source, folder, max_shard_bytes=int(options.shard_size * GB))
    print(options.output)


@command(
    "convert probe",
    "Find out whether the projections of an image tokenizer use causal or full attention.",
    "unitok_tokenizer.pth",
    option("source", type=Path, metavar="SRC", help="released file or converted folder"),
    PROBE_IMAGES,
)
def convert_probe(options: Namespace) -> None:
    from mllm.checkpoint import find_image_tokenizer
    from tokenizer.released_checkpoint import CLEAR_MARGIN

    answer = probe(find_image_tokenizer(str(options.source)), options.images)
    undecided = f"undecided: both readings are within {CLEAR_MARGIN} dB; give different images"
    print(undecided if answer is None else f"use --attention {answer}")


def probe(model: UniTok, paths: list[Path] | None) -> AttentionKind | None:
    """Reconstruct images with both kinds of attention and print the PSNR of each; None if they hardly differ."""
    from tokenizer.images import ImageProcessor, read_image
    from tokenizer.released_checkpoint import probe_attention

    side = model.config.image_size
    images = [read_image(path) for path in paths or ()] or probe_patterns(side)
    result = probe_attention(model, ImageProcessor(height=side, width=side)(images))
    print(f"attention  PSNR dB\nfull       {result.full:7.2f}\ncausal     {result.causal:7.2f}")
    return result.answer


def probe_patterns(side: int) -> list[Image.Image]:
    """Four images with shapes and gradients, for a probe without images of one's own."""
    from PIL import Image, ImageDraw

    images = []
    for index in range(4):
        image = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * (index + c)) for c in range(3)])
        image = image.resize((side, side))
        box = [side * (index + 1) // 8, side // 4, side * (index + 4) // 8, side * 3 // 4]
        paint = ImageDraw.Draw(image)
        (paint.ellipse if index % 2 else paint.rectangle)(box, fill=(220, 60, 40 * index))
        images.append(image)
    return images


def read_released_tokenizer(path: Path, options: Namespace) -> UpstreamCheckpoint:
    """The checkpoint with the attention that was asked for or found by the probe."""
    from tokenizer.released_checkpoint import CLEAR_MARGIN, read_upstream

    attention = options.attention
    if attention == "probe" and (attention := probe(read_upstream(path).build(), options.images)) is None:
        raise ValueError(
            f"--attention must be full or causal for {path}: the probe found less than {CLEAR_MARGIN} dB of "
            "difference; say which, or give different --images"
        )
    return read_upstream(path, projection_attention=attention)


def describe_image_tokenizer(folder: Path, checkpoint: UpstreamCheckpoint) -> None:
    config = checkpoint.config
    codebooks = f"{counted(config.num_codebooks, 'codebook')} of {config.codebook_size}"
    print(f"{folder}: {codebooks}, images of {config.image_size} pixels, {config.projection_attention} attention")
