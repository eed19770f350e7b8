"""What `mllm benchmark` times: images, the code head alone and the image tokenizer, next to upstream's algorithm.

Models have random weights, so nothing is downloaded: speed does not depend on weight values. Before anything is timed,
the results of both are shown to be equal in float32. Sampled codes need care: a random number within rounding of the
border between two codes may choose either, and all later codes then differ; so the reference follows our codes and
checks that every number chose its code.

Letters: N images, R rows (guided: two of each image), P image positions, K codebooks, C codes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from mllm.benchmark.measure import Case, Roofline, measure_roofline, time_interleaved
from mllm.benchmark.upstream_reference import (
    Choose,
    NearestUpsample,
    UpstreamDrawing,
    UpstreamTokenizer,
    choose_code,
    filter_logits,
    upstream_nearest,
)
from mllm.config import MLLMConfig
from mllm.engine.loop import generate
from mllm.engine.request import GenerationRequest
from mllm.heads import Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig, choose, gumbel, stack_settings
from mllm.sequence import TokenSequence
from tokenizer.config import UniTokConfig
from tokenizer.layers import Upsample
from tokenizer.quantizer import MultiCodebookQuantizer
from tokenizer.unitok import UniTok

BEGIN_IMAGE_ID = 3  # the released model's
VOCABULARY = 1000  # no text is decoded here
FIRST_TEXT_ID = 7
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Sizes of a model and an image."""

    width: int
    heads: int
    intermediate: int
    layers: int
    head_layers: int = 3
    codebooks: int = 8
    codebook_size: int = 512
    side: int = 8  # image positions along a side
    prompt: int = 16  # tokens
    embedder_width: int | None = None  # None: as the model
    embedder_heads: int | None = None


RELEASED: dict[str, Any] = dict(
    width=4096, heads=32, intermediate=11008, codebook_size=4096, embedder_width=1024, embedder_heads=16
)
SIZES = {
    "XXS": Size(width=32, heads=2, intermediate=40, layers=2, head_layers=2, codebooks=3, codebook_size=16, side=3),
    "XS": Size(width=128, heads=4, intermediate=344, layers=4),
    "S": Size(width=256, heads=4, intermediate=688, layers=4),
    "M": Size(width=512, heads=8, intermediate=1376, layers=8, codebook_size=1024),
    "L": Size(width=1024, heads=16, intermediate=2752, layers=8, codebook_size=4096, side=6, prompt=32),
    # the released model's head and code embedding over one layer of its backbone
    "head-7b": Size(layers=1, side=2, **RELEASED),
    "7b": Size(layers=32, side=16, prompt=64, **RELEASED),
}


def build_random_model(
    size: Size, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> MLLMForConditionalGeneration:
    """A model of this size, the same one every time."""
    text_config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    config = MLLMConfig(
        text_config=text_config,
        num_codebooks=size.codebooks,
        codebook_size=size.codebook_size,
        image_size=16 * size.side,
        embedder_width=size.embedder_width or size.width,
        embedder_heads=size.embedder_heads or size.heads,
        head_layers=size.head_layers,
        prompt_style="unitok",
    )
    torch.manual_seed(SEED)
    with device:
        model = MLLMForConditionalGeneration(config)
    return model.eval().requires_grad_(False).to(dtype)


def random_prompt(num_tokens: int, *, seed: int) -> TokenSequence:
    """Text without meaning."""
    ids = np.random.default_rng(seed).integers(FIRST_TEXT_ID, VOCABULARY, num_tokens)
    return TokenSequence(
        token_ids_T=ids,
        labels_T=np.full_like(ids, -100),
        codes_PK=np.zeros((0, 1), dtype=np.int64),
        image_lengths_I=np.zeros(0, dtype=np.int64),
        code_targets_P=np.zeros(0, dtype=bool),
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """What one position of a decoding batch moves and computes, with every weight read once per use."""

    weight_bytes: float
    cache_bytes: float
    flops: float

    def floor(self, roofline: Roofline) -> float:
        return roofline.floor(num_bytes=self.weight_bytes + self.cache_bytes, flops=self.flops)


def num_parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def head_cost(model: MLLMForConditionalGeneration, *, rows: int) -> Cost:
    """The head's K steps. Its embeddings of codes are looked up, so they are not streamed."""
    head, num_codebooks = model.code_head, model.config.num_codebooks
    streamed = num_codebooks * num_parameters(head.layers, head.norm, head.linear_head)
    itemsize = model.lm_head.weight.element_size()
    cache = num_codebooks * 2 * model.config.head_layers * model.config.hidden_size * (num_codebooks + 1) / 2
    return Cost(streamed * itemsize, rows * cache * itemsize, 2.0 * rows * streamed)


def position_cost(model: MLLMForConditionalGeneration, *, rows: int, context: float) -> Cost:
    """Backbone, head and code embedding for one image position, at this many places in the cache."""
    head = head_cost(model, rows=rows)
    embedding = model.code_embedding
    streamed = num_parameters(model.backbone.layers, embedding.projection, embedding.projector)
    itemsize = model.lm_head.weight.element_size()
    text = model.config.text_config
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * context
    return Cost(
        head.weight_bytes + streamed * itemsize,
        head.cache_bytes + rows * cache * itemsize,
        head.flops + 2.0 * rows * streamed,
    )


GATE = "upstream"
UNCONDITIONAL_SEED = 10**6
ROUNDING = 1e-4  # of a logit in float32, guidance included


@dataclass(frozen=True, slots=True)
class Work:
    """The same images for both: requests for our decoding, ids and seeds for upstream's."""

    rows: list[GenerationRequest]
    prompts: list[list[int]]
    unconditional: list[list[int]]
    num_positions: int

    @classmethod
    def build(cls, size: Size, batch: int, settings: SamplingConfig, *, device: torch.device) -> Work:
        unconditional = random_prompt(size.prompt, seed=UNCONDITIONAL_SEED)
        rows = [
            GenerationRequest(
                prompt=random_prompt(size.prompt, seed=n),
                unconditional=unconditional,
                mode="image",
                image=settings,
                seed=n,
            )
            for n in range(batch)
        ]
        return cls(
            rows=rows,
            prompts=[[*row.prompt.token_ids_T.tolist(), BEGIN_IMAGE_ID] for row in rows],
            unconditional=[[*unconditional.token_ids_T.tolist(), BEGIN_IMAGE_ID] for _ in rows],
            num_positions=size.side**2,
        )

    def upstream(
        self,
        drawing: UpstreamDrawing,
        settings: SamplingConfig,
        *,
        sees_prefix: bool = False,
        choose: Choose | None = None,
    ) -> np.ndarray:
        """Codes (N, K, P) by upstream's algorithm."""
        noise = {"seeds": [row.seed for row in self.rows], "choose": choose}
        prompts, num = (self.prompts, self.unconditional), self.num_positions
        codes_NKP = drawing.draw(*prompts, num_positions=num, settings=settings, sees_prefix=sees_prefix, **noise)
        return codes_NKP.cpu().numpy()

    def ours(
        self, model: MLLMForConditionalGeneration, settings: SamplingConfig, *, sees_prefix: bool = False
    ) -> np.ndarray:
        """Codes (N, K, P) by our decoding."""
        model.code_embedding.context = "prefix" if sees_prefix else "current"
        results = generate(model, [replace(row, image=settings) for row in self.rows])
        return np.stack([result.images[0].codes_KN for result in results]).astype(np.int64)


def benchmark_drawing(
    name: str,
    batch: int,
    *,
    settings: SamplingConfig,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """One size and batch: shown equal, then timed."""
    size = SIZES[name]
    model = build_random_model(size, device=device)
    work = Work.build(size, batch, settings, device=device)
    checks = compare_codes(model, work, settings)
    model = model.to(dtype)
    upstream, with_cache = UpstreamDrawing(model), UpstreamDrawing(model, cached_head=True)
    timings = time_interleaved(
        {
            "upstream": lambda: work.upstream(upstream, settings),
            "upstream with a head cache": lambda: work.upstream(with_cache, settings),
            "ours": lambda: work.ours(model, settings),
            "ours, embedding the prefix": lambda: work.ours(model, settings, sees_prefix=True),
        },
        rounds=rounds,
        device=device,
    )
    num_rows = batch * (2 if settings.guidance > 1 else 1)
    cost = position_cost(model, rows=num_rows, context=size.prompt + work.num_positions / 2)
    weight_bytes = num_parameters(model) * model.lm_head.weight.element_size()
    roofline = measure_roofline(device, dtype, num_bytes=weight_bytes)
    return Case(
        name=f"draw {name}, batch {batch}",
        facts={
            "size": name,
            "batch": batch,
            "rows": num_rows,
            "positions": work.num_positions,
            "prompt": size.prompt,
            "guidance": settings.guidance,
            "dtype": str(dtype).removeprefix("torch."),
            "weight_bytes": weight_bytes,
            "copied_bytes_per_second": roofline.copied_bytes_per_second,
            "flops_per_second": roofline.flops_per_second,
        },
        checks=checks,
        timings=timings,
        gate=GATE,
        floor=cost.floor(roofline) * work.num_positions,
    )


def compare_codes(model: MLLMForConditionalGeneration, work: Work, settings: SamplingConfig) -> dict[str, bool]:
    """Whether our codes equal upstream's, for the ways of choosing and of embedding."""
    reference, greedy = UpstreamDrawing(model), replace(settings, greedy=True)
    checks = {}
    for name, sees_prefix in (("greedy codes equal", False), ("greedy codes equal, embedding the prefix", True)):
        ours_NKP = work.ours(model, greedy, sees_prefix=sees_prefix)
        checks[name] = np.array_equal(ours_NKP, work.upstream(reference, greedy, sees_prefix=sees_prefix))
    follower = Follower(torch.from_numpy(work.ours(model, settings)).to(model.device))
    work.upstream(reference, settings, choose=follower.choose)
    return checks | {"sampled codes equal but for rounding": follower.largest_distance <= ROUNDING}


class Follower:
    """Chooses given codes, and keeps how much more another code would have had with the noise."""

    def __init__(self, codes_NKP: Tensor) -> None:
        self.largest_distance = 0.0
        self.codes = iter(codes_NKP.permute(2, 1, 0).flatten(0, 1))  # position by position, codebook by codebook

    def choose(self, logits_NC: Tensor, settings: SamplingConfig, noise_NC: Tensor | None) -> Tensor:
        assert noise_NC is not None, "a sampled code is followed with its noise"
        codes_N1 = next(self.codes)[:, None]
        noisy_NC = filter_logits(logits_NC, settings) + noise_NC
        distance_N1 = noisy_NC.amax(-1, keepdim=True) - noisy_NC.gather(-1, codes_N1)
        self.largest_distance = max(self.largest_distance, float(distance_N1.max()))
        return codes_N1[:, 0]


RELEASED_CODES = 4096
FILTERED = SamplingConfig(temperature=0.9, top_k=2048, top_p=0.96)  # upstream's argument defaults
UNFILTERED = SamplingConfig()  # what its published scripts pass
CHOICES_PER_ROUND = 20


def benchmark_head(
    name: str,
    batch: int,
    *,
    settings: SamplingConfig,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    positions_per_round: int = 8,
) -> Case:
    """The K codes of image positions of `batch` images."""
    model = build_random_model(SIZES[name], device=device)
    num_rows = batch * (2 if settings.guidance > 1 else 1)
    generator = torch.Generator().manual_seed(1)
    hidden_RD = torch.randn(num_rows, model.config.hidden_size, generator=generator).to(device)
    head = Heads(model, batch, replace(settings, greedy=True))
    checks = {"greedy codes equal": torch.equal(head.ours(hidden_RD), head.upstream(hidden_RD))}
    head, hidden_RD = Heads(model.to(dtype), batch, settings), hidden_RD.to(dtype)

    def repeated(way: str) -> Callable[[], object]:
        return lambda: [getattr(head, way)(hidden_RD) for _ in range(positions_per_round)]

    timings = time_interleaved(
        {
            "upstream": repeated("upstream"),
            "upstream with a head cache": repeated("upstream_cached"),
            "ours": repeated("ours"),
        },
        rounds=rounds,
        device=device,
    )
    weight_bytes = num_parameters(model.code_head.layers, model.code_head.linear_head) * hidden_RD.element_size()
    roofline = measure_roofline(device, dtype, num_bytes=weight_bytes)
    return Case(
        name=f"head {name}, {batch} images",
        facts={
            "size": name,
            "batch": batch,
            "rows": num_rows,
            "positions": positions_per_round,
            "dtype": str(dtype).removeprefix("torch."),
            "weight_bytes": weight_bytes,
        },
        checks=checks,
        timings=timings,
        floor=head_cost(model, rows=num_rows).floor(roofline) * positions_per_round,
    )


class Heads:
    """One head, decoded in three ways."""

    def __init__(self, model: MLLMForConditionalGeneration, batch: int, settings: SamplingConfig) -> None:
        config, device = model.config, model.device
        self.batch, self.settings = batch, settings
        self.reference, self.cached = UpstreamDrawing(model), UpstreamDrawing(model, cached_head=True)
        self.noise_NKC = self.reference.noise(list(range(batch)), 0)
        self.decoder = model.code_head.decoder()
        self.stacked = [
            stack_settings([settings] * batch, num_choices=config.codebook_size, codebook=k, device=device)
            for k in range(config.num_codebooks)
        ]
        self.guidance = None
        if settings.guidance > 1:
            rows_N = torch.arange(batch, device=device)
            scale_N = torch.full((batch,), settings.guidance, device=device)
            self.guidance = Guidance(conditional_N=rows_N, unconditional_N=rows_N + batch, scale_N=scale_N)

    @torch.inference_mode()
    def ours(self, hidden_RD: Tensor) -> Tensor:
        def choose_next(k: int, logits_NC: Tensor) -> Tensor:
            return choose(logits_NC, self.stacked[k], self.noise_NKC[:, k])

        return self.decoder.decode(hidden_RD, choose=choose_next, guidance=self.guidance)

    @torch.inference_mode()
    def upstream(self, hidden_RD: Tensor) -> Tensor:
        return self.reference.choose_codes(hidden_RD[:, None], self.batch, self.settings, self.noise_NKC)

    @torch.inference_mode()
    def upstream_cached(self, hidden_RD: Tensor) -> Tensor:
        return self.cached.choose_codes(hidden_RD[:, None], self.batch, self.settings, self.noise_NKC)


def benchmark_choice(name: str, settings: SamplingConfig, *, num_rows: int, rounds: int, device: torch.device) -> Case:
    """One code for each row from logits over the released codebooks."""
    generator = torch.Generator().manual_seed(2)
    logits_NC = (3 * torch.randn(num_rows, RELEASED_CODES, generator=generator)).to(device)
    rows_N = torch.arange(num_rows, device=device)
    noise_NC = gumbel(rows_N, rows_N, 0, num_choices=RELEASED_CODES)
    stacked = stack_settings([settings] * num_rows, num_choices=RELEASED_CODES, device=device)
    ours, upstream = choose(logits_NC, stacked, noise_NC), choose_code(logits_NC, settings, noise_NC)

    def repeat(way: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: [way() for _ in range(CHOICES_PER_ROUND)]

    timings = time_interleaved(
        {
            "upstream": repeat(lambda: choose_code(logits_NC, settings, None)),
            "ours": repeat(lambda: choose(logits_NC, stacked, noise_NC)),
        },
        rounds=rounds,
        device=device,
    )
    return Case(
        name=f"choice {name}, {num_rows} rows",
        facts={"rows": num_rows, "codes": RELEASED_CODES, "top_k": settings.top_k, "top_p": settings.top_p},
        checks={"codes equal": torch.equal(ours, upstream)},
        timings=timings,
    )


TOKENIZER_CONFIGS = {"tiny": UniTokConfig.tiny, "large": UniTokConfig.large}
LEAST_EQUAL_CODES = 0.995  # near-ties may flip
LARGEST_PIXEL_ERROR = 1e-4
TOKENIZER_SEED = 0


def build_random_tokenizer(name: str, *, device: torch.device) -> UniTok:
    """A tokenizer of this size, the same one every time."""
    torch.manual_seed(TOKENIZER_SEED)
    with device:
        return UniTok(TOKENIZER_CONFIGS[name]()).eval().requires_grad_(False)


def benchmark_coding(name: str, batch: int, *, rounds: int, device: torch.device) -> list[Case]:
    """Encode and decode a batch of images of the network's own size."""
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
            name=f"encode {name}, {batch} images",
            facts={**facts, "equal_codes": share},
            checks={"codes equal but for near-ties": share >= LEAST_EQUAL_CODES},
            timings=encoding,
        ),
        Case(
            name=f"decode {name}, {batch} images",
            facts={**facts, "largest_error": error},
            checks={"pixels equal": error <= LARGEST_PIXEL_ERROR},
            timings=decoding,
        ),
    ]


def benchmark_lookup(batch: int, *, rounds: int, device: torch.device) -> Case:
    """The nearest entries for `batch` images, in codebooks of the released size."""
    config = UniTokConfig.large()
    torch.manual_seed(TOKENIZER_SEED)
    quantizer = MultiCodebookQuantizer(config.num_codebooks, config.codebook_size, config.code_width)
    torch.nn.init.normal_(quantizer.codebooks)
    quantizer = quantizer.requires_grad_(False).to(device)
    features_BNZ = torch.randn(batch, config.positions_per_image, config.vector_width).to(device)
    upstream_codes_BKN = upstream_nearest(quantizer, features_BNZ)
    return Case(
        name=f"look up {config.num_codebooks} x {config.codebook_size}, {batch} images",
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
    torch.manual_seed(TOKENIZER_SEED)
    ours = Upsample(channels, channels).to(device)
    plain = NearestUpsample(ours.conv)
    hidden_BCHW = torch.randn(1, channels, side, side).to(device, memory_format=torch.channels_last)
    error = float((ours(hidden_BCHW) - plain(hidden_BCHW)).abs().max())
    return Case(
        name=f"upsample {channels} channels, {side} to {2 * side}",
        facts={"channels": channels, "side": side, "largest_error": error},
        checks={"values equal": error <= LARGEST_PIXEL_ERROR},
        timings=time_interleaved(
            {"upstream": lambda: plain(hidden_BCHW), "ours": lambda: ours(hidden_BCHW)}, rounds=rounds, device=device
        ),
    )
