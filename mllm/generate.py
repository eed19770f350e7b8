"""`model.generate` in the manner of transformers: the processor's tensors in, ids and codes out, by the engine.

Names and meanings are those of transformers' any-to-any models (`generation_mode`, `guidance_scale`,
`negative_prompt_ids`, `num_return_sequences`); what this decoder cannot do is refused by name, never ignored. Turns
padded tensors into requests and results into padded tensors; decides nothing about decoding.

Letters: B prompts, S answers (the prompts, each as often as asked for), T positions, P image positions, N positions of
one image, I images, K codebooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Mode, check_mode, check_mode_of
from mllm.engine.loop import generate
from mllm.engine.request import (
    Event,
    GenerationRequest,
    GenerationResult,
    LogitsProcessor,
    RequestBuilder,
    TextDelta,
    read_task_settings,
)
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import IGNORED, ImageLayout, Size, TokenSequence, grid_of

TOLERATED = frozenset({"pad_token_id", "bos_token_id", "eos_token_id", "use_cache"})
"""Options that say what holds anyway; transformers' pipelines pass them."""


@dataclass
class GenerateOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns, and always in mode "interleaved"."""

    sequences: Tensor | None = None  # (S, T) prompts and answers; in mode "image" (S, N * K) codes, see `to_tensor`
    images: list[list[CodesPart]] | None = None  # of each answer, in order
    finish_reasons: list[str] | None = None
    seeds: list[int] | None = None
    answers: list[GenerationResult] | None = None  # text and images of each answer, in order


@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """The arguments of `generate`. None means: as the checkpoint says."""

    input_ids: Tensor  # (B, T), padded on the left
    attention_mask: Tensor | None = None
    codes: Tensor | None = None  # (P, K)
    image_lengths: Tensor | None = None  # (I,)
    negative_prompt_ids: Tensor | None = None  # (B, T'): the prompts to guide away from, with the same images
    negative_prompt_attention_mask: Tensor | None = None
    generation_mode: Mode = "text"
    generation_config: GenerationConfig | None = None
    num_return_sequences: int | None = None
    seed: int | list[int] | None = None  # of the first answer, the others follow; or one each
    size: Size | None = None  # (width, height) of images
    do_sample: bool | None = None
    temperature: Any = None
    top_k: Any = None  # 0 is off
    top_p: Any = None
    guidance_scale: float | None = None
    max_new_tokens: int | None = None
    logits_processor: list[LogitsProcessor] | None = None  # for text tokens
    streamer: Any = None  # gets text tokens
    return_dict_in_generate: bool | None = None

    @classmethod
    def read(cls, **options: Any) -> GenerateArguments:
        """Check the names; an option that this decoder does not have is an error."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(name for name in set(options) - known - TOLERATED if options[name] is not None):
            raise ValueError(
                f"an option of generate must be one of {', '.join(sorted(known))}, got {unknown[0]!r} = "
                f"{options[unknown[0]]!r}"
            )
        if options.get("input_ids") is None:
            raise ValueError("generate must have a prompt, got no input_ids; pass what the processor returns")
        check_mode(options.get("generation_mode", "text"))
        return cls(**{name: value for name, value in options.items() if name in known and value is not None})

    @property
    def num_copies(self) -> int:
        """Answers to each prompt."""
        return self.num_return_sequences or getattr(self.generation_config, "num_return_sequences", None) or 1

    def seeds(self) -> list[int]:
        """One seed per answer; without one they come from torch's random state, which `torch.manual_seed` sets."""
        num_answers = self.input_ids.shape[0] * self.num_copies
        if isinstance(self.seed, list):
            if len(self.seed) != num_answers:
                raise ValueError(f"seeds must be one per answer, got {len(self.seed)} for {num_answers} answers")
            return self.seed
        first = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        return list(range(first, first + num_answers))

    def overrides(self) -> dict[str, Any]:
        """The settings that were given, by our names; those of the generation config lie below the arguments."""
        stored = self.generation_config.to_diff_dict() if self.generation_config is not None else {}
        names = ("do_sample", "temperature", "top_k", "top_p", "guidance_scale", "max_new_tokens")
        layers = [stored, {name: getattr(self, name) for name in names}]
        given = {name: layer[name] for layer in layers for name in names if layer.get(name) is not None}
        settings = {name: given[name] for name in ("temperature", "top_p") if name in given}
        if "top_k" in given:
            settings["top_k"] = given["top_k"] or None
        if "guidance_scale" in given:
            settings["guidance"] = float(given["guidance_scale"])
        if "do_sample" in given:
            settings["greedy"] = not given["do_sample"]
        if given.get("max_new_tokens") and self.generation_mode != "image":  # an image takes what it takes
            settings["max_new_tokens"] = given["max_new_tokens"]
        return settings


@torch.inference_mode()
def generate_from_inputs(model: MLLMForConditionalGeneration, arguments: GenerateArguments) -> Tensor | GenerateOutput:
    """Decode what is asked for."""
    requests, streamer = build_requests(model, arguments), arguments.streamer
    if streamer is not None and len(requests) > 1:
        raise ValueError(f"a streamer must follow one answer, got {len(requests)}; ask for one, or leave it out")

    def show(event: Event) -> None:
        if streamer is not None and isinstance(event, TextDelta):
            streamer.put(torch.tensor([event.token_id]))

    if streamer is not None:
        streamer.put(arguments.input_ids.cpu())
    results = generate(model, requests, on_event=show)
    if streamer is not None:
        streamer.end()
    sequences = to_tensor(results, arguments, config=model.config)
    if not arguments.return_dict_in_generate and arguments.generation_mode != "interleaved":
        return sequences
    return GenerateOutput(
        sequences=sequences,
        images=[result.images for result in results],
        finish_reasons=[result.finish_reason for result in results],
        seeds=[result.seed for result in results],
        answers=results,
    )


def build_requests(model: MLLMForConditionalGeneration, arguments: GenerateArguments) -> list[GenerationRequest]:
    """A request for every answer asked for."""
    config, mode, given = model.config, arguments.generation_mode, arguments.overrides()
    check_mode_of(config, mode)
    stored = getattr(model.generation_config, "task_settings", None)
    stored = read_task_settings(Path(config.name_or_path)) if stored is None else stored
    builder = RequestBuilder(config, model.generation_config, stored)
    prompts = list(read_prompts(arguments.input_ids, arguments.attention_mask, arguments, config))
    negatives: list[TokenSequence] | list[None] = [None] * len(prompts)
    if arguments.negative_prompt_ids is not None:
        mask = arguments.negative_prompt_attention_mask
        negatives = list(read_prompts(arguments.negative_prompt_ids, mask, arguments, config))
        if len(negatives) != len(prompts):
            raise ValueError(f"negative prompts must be one per prompt, got {len(negatives)} for {len(prompts)}")
    seeds = iter(arguments.seeds())
    return [
        builder.build(
            prompt,
            mode,
            task={"text": "ask", "image": "edit" if len(prompt.image_lengths_I) else "draw"}.get(mode, "chat"),
            given=given,
            unconditional=negative,
            grid=choose_grid(prompt, arguments.size, config),
            seed=next(seeds),
            logits_processors=tuple(arguments.logits_processor or ()),
        )
        for prompt, negative in zip(prompts, negatives, strict=True)
        for _ in range(arguments.num_copies)
    ]


def read_prompts(
    ids_BT: Tensor, mask_BT: Tensor | None, arguments: GenerateArguments, config: MLLMConfig
) -> Iterator[TokenSequence]:
    """The prompts of padded rows, each with its own images."""
    codes = np.zeros((0, config.num_codebooks)) if arguments.codes is None else arguments.codes.cpu().numpy()
    lengths = np.zeros(0) if arguments.image_lengths is None else arguments.image_lengths.cpu().numpy()
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    num_image_positions = int(((ids_BT == config.image_token_id) & mask_BT.bool()).sum())
    if num_image_positions != len(codes):
        raise ValueError(
            f"image placeholders must have one row of codes each, got {num_image_positions} placeholders and "
            f"{len(codes)} rows; pass all that the processor returns"
        )
    ends_I, start, first = np.cumsum(lengths), 0, 0
    for ids_T, mask_T in zip(ids_BT.cpu(), mask_BT.cpu(), strict=True):
        ids = ids_T[mask_T.bool()].numpy().astype(np.int64)
        end = start + int((ids == config.image_token_id).sum())
        last = int(np.searchsorted(ends_I, end, side="right"))
        yield TokenSequence(
            token_ids_T=ids,
            labels_T=np.full_like(ids, IGNORED),
            codes_PK=codes[start:end].astype(np.int64),
            image_lengths_I=lengths[first:last].astype(np.int64),
            code_targets_P=np.zeros(end - start, dtype=bool),
        )
        start, first = end, last


def choose_grid(prompt: TokenSequence, size: Size | None, config: MLLMConfig) -> tuple[int, int] | None:
    """The size asked for, else that of the last image of the prompt, else the default."""
    if size is not None:
        return grid_of(size, config)
    return ImageLayout.from_config(config).last_grid(prompt.token_ids_T.tolist())


def to_tensor(results: list[GenerationResult], arguments: GenerateArguments, *, config: MLLMConfig) -> Tensor:
    """Prompts and answers (S, T), padded on the right; in mode "image" the codes alone (S, N * K), position by
    position and in each codebook by codebook, as they were sampled."""
    device = arguments.input_ids.device
    if arguments.generation_mode == "image":
        codes = [torch.from_numpy(result.images[0].codes_KN.astype(np.int64).T.copy()).flatten() for result in results]
        if len({len(row) for row in codes}) > 1:
            raise ValueError("images must have one size to be a tensor, got several; use return_dict_in_generate=True")
        return torch.stack(codes).to(device)
    longest = max(len(result.token_ids) for result in results)
    added = [[*r.token_ids, *[config.pad_token_id] * (longest - len(r.token_ids))] for r in results]
    prompts_ST = arguments.input_ids.repeat_interleave(arguments.num_copies, dim=0)
    return torch.cat((prompts_ST, torch.tensor(added, dtype=prompts_ST.dtype, device=device)), dim=1)
