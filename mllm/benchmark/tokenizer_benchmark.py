"""Pictures to codes and back: ours beside upstream's, on random weights; and the two steps that differ, alone.

In: sizes and batches. Out: a case for each. Upstream's network is ours with its own look-up and upsampling, decoding
one picture after another (mllm/benchmark/upstream_reference.py).
"""

from __future__ import annotations

import torch

from mllm.benchmark.timing import Case, time_interleaved
from mllm.benchmark.upstream_reference import NearestUpsample, UpstreamTokenizer, upstream_nearest
from tokenizer.config import UniTokConfig
from tokenizer.layers import Upsample, channels_last
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.unitok import UniTok

SIZES = {"tiny": UniTokConfig.tiny, "large": UniTokConfig.large}
LEAST_EQUAL_CODES = 0.995  # near-ties may flip
LARGEST_PIXEL_ERROR = 1e-4
SEED = 0


def build_random_tokenizer(name: str, *, device: torch.device) -> UniTok:
    """A tokenizer of this size, the same one every time."""
    torch.manual_seed(SEED)
    with device:
        return UniTok(SIZES[name]()).eval().requires_grad_(False)


def benchmark_coding(name: str, batch: int, *, rounds: int, device: torch.device) -> list[Case]:
    """Encode and decode a batch of pictures of the network's own size."""
    ours = build_random_tokenizer(name, device=device)
    upstream = UpstreamTokenizer(ours)
    side = ours.config.image_size
    generator = torch.Generator().manual_seed(1)
    pixels_B3HW = (torch.rand(batch, 3, side, side, generator=generator) * 2 - 1).to(device)
    codes_BKN, grid = ours.encode(pixels_B3HW), ours.grid_of(pixels_B3HW)
    share = float((codes_BKN == upstream.encode(pixels_B3HW)).float().mean())
    error = float((ours.decode(codes_BKN) - upstream.decode(codes_BKN, grid=grid)).abs().max())
    facts = {"size": name, "batch": batch, "image_size": side, "dtype": "float32"}
    encoding = time_interleaved(
        {"upstream": lambda: upstream.encode(pixels_B3HW), "ours": lambda: ours.encode(pixels_B3HW)},
        rounds=rounds,
        device=device,
    )
    decoding = time_interleaved(
        {"upstream": lambda: upstream.decode(codes_BKN, grid=grid), "ours": lambda: ours.decode(codes_BKN, grid=grid)},
        rounds=rounds,
        device=device,
    )
    return [
        Case(
            name=f"encode {name}, {batch} pictures",
            facts={**facts, "equal_codes": share},
            checks={"codes equal but for near-ties": share >= LEAST_EQUAL_CODES},
            timings=encoding,
        ),
        Case(
            name=f"decode {name}, {batch} pictures",
            facts={**facts, "largest_error": error},
            checks={"pixels equal": error <= LARGEST_PIXEL_ERROR},
            timings=decoding,
        ),
    ]


def benchmark_lookup(batch: int, *, rounds: int, device: torch.device) -> Case:
    """The nearest entries for `batch` pictures, in codebooks of the released size."""
    config = UniTokConfig.large()
    torch.manual_seed(SEED)
    quantizer = MultiCodebookQuantizer(config.num_codebooks, config.codebook_size, config.code_width)
    torch.nn.init.normal_(quantizer.codebooks)
    quantizer = quantizer.requires_grad_(False).to(device)
    features_BNZ = torch.randn(batch, config.positions_per_image, config.vector_width).to(device)
    upstream_codes_BKN = upstream_nearest(quantizer, features_BNZ)
    return Case(
        name=f"look up {config.num_codebooks} x {config.codebook_size}, {batch} pictures",
        facts={"batch": batch, "codebooks": config.num_codebooks, "codebook_size": config.codebook_size},
        checks={"codes equal": torch.equal(quantizer.quantize(features_BNZ), upstream_codes_BKN)},
        timings=time_interleaved(
            {
                "upstream": lambda: upstream_nearest(quantizer, features_BNZ),
                "ours": lambda: quantizer.quantize(features_BNZ),
            },
            rounds=rounds,
            device=device,
        ),
    )


@torch.inference_mode()
def benchmark_upsampling(channels: int, side: int, *, rounds: int, device: torch.device) -> Case:
    """Twice the resolution, then a convolution."""
    torch.manual_seed(SEED)
    ours = Upsample(channels, channels).to(device)
    plain = NearestUpsample(ours.conv)
    hidden_BCHW = channels_last(torch.randn(1, channels, side, side).to(device))
    error = float((ours(hidden_BCHW) - plain(hidden_BCHW)).abs().max())
    return Case(
        name=f"upsample {channels} channels, {side} to {2 * side}",
        facts={"channels": channels, "side": side, "largest_error": error},
        checks={"values equal": error <= LARGEST_PIXEL_ERROR},
        timings=time_interleaved(
            {"upstream": lambda: plain(hidden_BCHW), "ours": lambda: ours(hidden_BCHW)}, rounds=rounds, device=device
        ),
    )
