"""Text to image codes: ours beside upstream's algorithm and beside the floor, on models with random weights.

In: sizes and batches. Out: a case for each. Before anything is timed, the codes of both are shown to be equal in
float32: greedy, for both ways of embedding new positions, and sampled with the same random numbers. There a number
that falls within rounding of the border between two codes may choose either, and all later codes then differ; so the
reference follows our codes and asks of every number whether it chose its code.

Letters: N images, P image positions, K codebooks, C codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mllm.benchmark.machine import measure_roofline
from mllm.benchmark.random_models import (
    BEGIN_IMAGE_ID,
    SIZES,
    Size,
    build_random_model,
    num_parameters,
    position_cost,
    random_prompt,
)
from mllm.benchmark.timing import Case, time_interleaved
from mllm.benchmark.upstream_reference import Choose, UpstreamDrawing, filter_logits
from mllm.engine.loop import generate
from mllm.engine.request import Row
from mllm.model import MLLMForConditionalGeneration
from mllm.sampling import SamplingConfig

GATE = "upstream"
UNCONDITIONAL_SEED = 10**6
ROUNDING = 1e-5  # of a probability in float32, guidance included


@dataclass(frozen=True, slots=True)
class Work:
    """The same pictures for both: rows for our decoding, ids and random numbers for upstream's."""

    rows: list[Row]
    prompts: list[list[int]]
    unconditional: list[list[int]]
    uniforms_NPK: Tensor
    num_positions: int

    @classmethod
    def build(cls, size: Size, batch: int, settings: SamplingConfig, *, device: torch.device) -> Work:
        unconditional = random_prompt(size.prompt, seed=UNCONDITIONAL_SEED)
        rows = [
            Row(
                prompt=random_prompt(size.prompt, seed=n),
                unconditional=unconditional,
                mode="image",
                image=settings,
                seed=n,
            )
            for n in range(batch)
        ]
        shape = (size.side**2, size.codebooks)
        uniforms = [torch.rand(shape, generator=torch.Generator().manual_seed(row.seed)) for row in rows]
        return cls(
            rows=rows,
            prompts=[[*row.prompt.token_ids_T.tolist(), BEGIN_IMAGE_ID] for row in rows],
            unconditional=[[*unconditional.token_ids_T.tolist(), BEGIN_IMAGE_ID] for _ in rows],
            uniforms_NPK=torch.stack(uniforms).to(device),
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
        return (
            drawing.draw(
                self.prompts,
                self.unconditional,
                num_positions=self.num_positions,
                settings=settings,
                uniforms_NPK=self.uniforms_NPK,
                sees_prefix=sees_prefix,
                choose=choose,
            )
            .cpu()
            .numpy()
        )

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
    """Chooses given codes, and keeps how far a random number lay outside of what chooses its code."""

    def __init__(self, codes_NKP: Tensor) -> None:
        self.largest_distance = 0.0
        self.codes = iter(codes_NKP.permute(2, 1, 0).flatten(0, 1))  # position by position, codebook by codebook

    def choose(self, logits_NC: Tensor, settings: SamplingConfig, uniforms_N: Tensor | None) -> Tensor:
        assert uniforms_N is not None, "a sampled code is followed by its random number"
        codes_N1 = next(self.codes)[:, None]
        probability_NC = filter_logits(logits_NC, settings).double().softmax(-1)
        end_N1 = probability_NC.cumsum(-1).gather(-1, codes_N1)
        begin_N1 = end_N1 - probability_NC.gather(-1, codes_N1)
        distance_N1 = torch.maximum(begin_N1 - uniforms_N[:, None], uniforms_N[:, None] - end_N1)
        self.largest_distance = max(self.largest_distance, float(distance_N1.max()))
        return codes_N1[:, 0]
