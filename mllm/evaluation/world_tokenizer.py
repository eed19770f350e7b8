"""What the image tokenizer keeps of the world: pictures to codes and back, then the checker reads them."""

from __future__ import annotations

from random import Random

import torch
from tqdm import tqdm

from mllm.world.checker import parse
from mllm.world.measure import same_scene
from mllm.world.render import Size, picture_size, render
from mllm.world.splits import random_scene_for
from tokenizer.image_processor import ImageProcessor, to_images
from tokenizer.metrics import code_counts, entropy_of, psnr, ssim, usage_of
from tokenizer.model import UniTok


@torch.inference_mode()
def score_round_trip(
    tokenizer: UniTok, *, count: int, seed: int, size: Size | None = None, batch_size: int = 64
) -> dict:
    """PSNR, SSIM, share of test scenes still read right, and usage and entropy (nats) of each codebook.

    Args:
        size: (width, height) of the pictures; default: the tokenizer's.
    """
    width, height = picture_size(size or tokenizer.config.image_size)
    prepare = ImageProcessor(width=width, height=height)
    rng = Random(f"round trip/{seed}")
    scenes = [random_scene_for("test", rng) for _ in range(count)]
    num_right, psnrs, ssims = 0, [], []
    counts_KC = torch.zeros(tokenizer.config.num_codebooks, tokenizer.config.codebook_size, dtype=torch.int64)
    for start in tqdm(range(0, count, batch_size), desc="image tokenizer", leave=False):
        batch = scenes[start : start + batch_size]
        pixels_B3HW = prepare([render(scene, (width, height)) for scene in batch]).to(tokenizer.device)
        codes_BKN = tokenizer.encode(pixels_B3HW)
        decoded_B3HW = tokenizer.decode(codes_BKN)
        for scene, picture in zip(batch, to_images(decoded_B3HW), strict=True):
            found = parse(picture).scene
            num_right += found is not None and same_scene(scene, found)
        psnrs.append(psnr(decoded_B3HW, pixels_B3HW))
        ssims.append(ssim(decoded_B3HW, pixels_B3HW))
        counts_KC += code_counts(codes_BKN, tokenizer.config.codebook_size).cpu()
    entropy_K = entropy_of(counts_KC)
    return {
        "count": count,
        "scenes_read_right": num_right / count,
        "psnr": torch.cat(psnrs).mean().item(),
        "ssim": torch.cat(ssims).mean().item(),
        "usage": usage_of(counts_KC).tolist(),
        "entropy": entropy_K.tolist(),
        "perplexity": entropy_K.exp().tolist(),
    }
