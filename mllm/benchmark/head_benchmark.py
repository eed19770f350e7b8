"""The codebook head alone, and the choice of a code alone: ours beside upstream's, on random weights.

In: sizes and numbers of images. Out: a case for each. The head is timed over single image positions: upstream's over
its growing prefix, the same with transformers' dynamic cache, and ours.

Letters: N images, R rows (guided: two of each), D hidden width, K codebooks, C codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mllm.benchmark.machine import measure_roofline
from mllm.benchmark.random_models import SIZES, build_random_model, head_cost, num_parameters
from mllm.benchmark.timing import Case, time_interleaved
from mllm.benchmark.upstream_reference import UpstreamDrawing, choose_code
from mllm.heads import Guidance
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig, choose, stack_settings

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
    uniforms_NK = torch.rand(batch, model.config.num_codebooks, generator=generator).to(device)
    head = Heads(model, batch, replace(settings, greedy=True), uniforms_NK)
    checks = {"greedy codes equal": torch.equal(head.ours(hidden_RD), head.upstream(hidden_RD))}
    head, hidden_RD = Heads(model.to(dtype), batch, settings, uniforms_NK), hidden_RD.to(dtype)

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

    def __init__(
        self, model: MLLMForConditionalGeneration, batch: int, settings: SamplingConfig, uniforms_NK: Tensor
    ) -> None:
        config, device = model.config, uniforms_NK.device
        self.batch, self.settings, self.uniforms_NK = batch, settings, uniforms_NK
        self.reference, self.cached = UpstreamDrawing(model), UpstreamDrawing(model, cached_head=True)
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
            return choose(logits_NC, self.stacked[k], self.uniforms_NK[:, k])

        return self.decoder.decode(hidden_RD, choose=choose_next, guidance=self.guidance)

    @torch.inference_mode()
    def upstream(self, hidden_RD: Tensor) -> Tensor:
        return self.reference.choose_codes(hidden_RD[:, None], self.batch, self.settings, self.uniforms_NK)

    @torch.inference_mode()
    def upstream_cached(self, hidden_RD: Tensor) -> Tensor:
        return self.cached.choose_codes(hidden_RD[:, None], self.batch, self.settings, self.uniforms_NK)


def benchmark_choice(name: str, settings: SamplingConfig, *, num_rows: int, rounds: int, device: torch.device) -> Case:
    """One code for each row from logits over the released codebooks."""
    generator = torch.Generator().manual_seed(2)
    logits_NC = (3 * torch.randn(num_rows, RELEASED_CODES, generator=generator)).to(device)
    uniforms_N = torch.rand(num_rows, generator=generator).to(device)
    stacked = stack_settings([settings] * num_rows, num_choices=RELEASED_CODES, device=device)
    ours, upstream = choose(logits_NC, stacked, uniforms_N), choose_code(logits_NC, settings, uniforms_N)

    def repeat(way: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: [way() for _ in range(CHOICES_PER_ROUND)]

    timings = time_interleaved(
        {
            "upstream": repeat(lambda: choose_code(logits_NC, settings, None)),
            "ours": repeat(lambda: choose(logits_NC, stacked, uniforms_N)),
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
