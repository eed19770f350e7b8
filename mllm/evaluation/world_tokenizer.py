"""What the image tokenizer keeps of the world: pictures to codes and back, then the checker reads them.

Most patches of a drawing are plain background of a few colors. Where codes depend on their patch alone, each such color
is one entry of a codebook, however large that is, which bounds its perplexity over whole pictures. So it is told over
the other patches too, those with a border of something.

Letters: B batch, H W pixels, M patches, K codebooks, C entries, N positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm

from mllm.world.checker import parse
from mllm.world.measure import same_scene
from mllm.world.render import RenderSize, picture_size, render
from mllm.world.splits import random_scene_for
from tokenizer.config import UniTokConfig
from tokenizer.encoder import cut_into_patches
from tokenizer.image_processor import ImageProcessor, to_images
from tokenizer.metrics import code_counts, entropy_of, psnr, ssim, usage_of
from tokenizer.model import UniTok


@torch.inference_mode()
def score_round_trip(
    tokenizer: UniTok, *, count: int, seed: int, size: RenderSize | None = None, batch_size: int = 64
) -> dict:
    """PSNR, SSIM, share of test scenes still read right, and of each codebook usage, entropy (nats) and perplexity.

    `perplexity_of_borders` is over patches of more than one color, `plain_share` the share of the others. Where codes
    depend on their patch alone, `highest_perplexity` is what a codebook of this size can have over all patches at most.

    Args:
        size: (width, height) of the pictures; default: the tokenizer's.
    """
    width, height = picture_size(size or tokenizer.config.image_size)
    prepare = ImageProcessor(width=width, height=height)
    rng = Random(f"round trip/{seed}")
    scenes = [random_scene_for("test", rng) for _ in range(count)]
    num_right, psnrs, ssims, use = 0, [], [], CodebookUse(tokenizer.config)
    for start in tqdm(range(0, count, batch_size), desc="image tokenizer", leave=False):
        batch = scenes[start : start + batch_size]
        pixels_B3HW = prepare([render(scene, (width, height)) for scene in batch]).to(tokenizer.device)
        codes_BKN = tokenizer.encode(pixels_B3HW)
        decoded_B3HW = tokenizer.decode(codes_BKN, grid=tokenizer.grid_of(pixels_B3HW))
        for scene, picture in zip(batch, to_images(decoded_B3HW), strict=True):
            found = parse(picture).scene
            num_right += found is not None and same_scene(scene, found)
        psnrs.append(psnr(decoded_B3HW, pixels_B3HW))
        ssims.append(ssim(decoded_B3HW, pixels_B3HW))
        use.add(pixels_B3HW, codes_BKN)
    return {
        "count": count,
        "scenes_read_right": num_right / count,
        "psnr": torch.cat(psnrs).mean().item(),
        "ssim": torch.cat(ssims).mean().item(),
        **use.as_report(),
    }


class CodebookUse:
    """Counts the entries that pictures take."""

    def __init__(self, config: UniTokConfig) -> None:
        self.config = config
        self.counts_KC = torch.zeros(config.num_codebooks, config.codebook_size, dtype=torch.int64)
        self.border_counts_KC = torch.zeros_like(self.counts_KC)
        self.plain_counts = Counter[tuple[float, ...]]()
        """Of patches of one color only, by color."""

    def add(self, pixels_B3HW: Tensor, codes_BKN: Tensor) -> None:
        is_plain_M, color_M3 = plain_patches(pixels_B3HW, self.config.patch_size)
        border_codes_KM = codes_BKN.transpose(0, 1).flatten(1)[:, ~is_plain_M]
        self.counts_KC += code_counts(codes_BKN, self.config.codebook_size).cpu()
        self.border_counts_KC += code_counts(border_codes_KM[None], self.config.codebook_size).cpu()
        self.plain_counts.update(map(tuple, color_M3[is_plain_M].tolist()))

    def as_report(self) -> dict[str, float | list[float] | None]:
        entropy_K, total = entropy_of(self.counts_KC), int(self.counts_KC[0].sum())
        plain = [*self.plain_counts.values()]
        is_bound = self.config.encoder_scope == "patch"
        return {
            "usage": usage_of(self.counts_KC).tolist(),
            "entropy": entropy_K.tolist(),
            "perplexity": entropy_K.exp().tolist(),
            "perplexity_of_borders": entropy_of(self.border_counts_KC).exp().tolist(),
            "plain_share": sum(plain) / max(total, 1),
            "highest_perplexity": highest_perplexity(plain, total, self.config.codebook_size) if is_bound else None,
        }


def plain_patches(pixels_B3HW: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Which patches have one color only, (M,), and the first color of each, (M, 3); in the order of their codes."""
    patches_M3P = cut_into_patches(pixels_B3HW, patch_size).flatten(2)
    return (patches_M3P == patches_M3P[:, :, :1]).all(dim=2).all(dim=1), patches_M3P[:, :, 0]


def highest_perplexity(fixed: Sequence[int], total: int, num_entries: int) -> float:
    """No codebook can have a larger perplexity over `total` codes of which groups, as large as `fixed` says, share an
    entry each: the other codes at best fill up the rarest entries to one level. With more groups than entries, that
    is the number of entries."""
    if len(fixed) > num_entries:
        return float(num_entries)
    rising = torch.tensor(sorted([*fixed, *[0] * (num_entries - len(fixed))]), dtype=torch.float64)
    numbers = torch.arange(1, num_entries + 1)
    levels = (total - sum(fixed) + rising.cumsum(0)) / numbers  # if the n rarest are filled up
    return float(entropy_of(torch.maximum(rising, levels.min())[None])[0].exp())
