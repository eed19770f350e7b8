"""`model.generate` in the manner of transformers: the processor's tensors in, ids and codes out, by the decoding loop.

Names and meanings are those of transformers' any-to-any models (`generation_mode`, `guidance_scale`,
`negative_prompt_ids`, `num_return_sequences`); what this decoder cannot do is refused by name, never ignored. Turns
padded tensors into rows and rows into padded tensors; decides nothing about decoding.

Letters: B prompts, S rows (the prompts, each as often as asked for), T places, P image positions, N positions of one
image, I images, K codebooks.
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
from mllm.engine.loop import TextEvent, generate
from mllm.engine.request import (
    Generated,
    Row,
    TextProcessor,
    image_settings,
    outline_settings,
    read_task_settings,
    text_settings,
    token_budget,
)
from mllm.model import MLLMForConditionalGeneration
from mllm.sequence import IGNORED, ImageLayout, Size, TokenSequence, grid_of

TOLERATED = frozenset({"pad_token_id", "bos_token_id", "eos_token_id", "use_cache"})
"""Options that say what holds anyway; transformers' pipelines pass them."""


@dataclass
class GenerateOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns, and always in mode "interleaved"."""

    sequences: Tensor | None = None  # (S, T) prompts and answers; in mode "image" (S, N * K) codes, see `to_tensor`
    images: list[list[CodesPart]] | None = None  # of each row, in order
    finish_reasons: list[str] | None = None
    seeds: list[int] | None = None
    answers: list[Generated] | None = None  # text and images of each row, in order


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
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
    seed: int | list[int] | None = None  # of the first row, the others follow; or one per row
    size: Size | None = None  # (width, height) of images
    do_sample: bool | None = None
    temperature: Any = None
    top_k: Any = None  # 0 is off
    top_p: Any = None
    guidance_scale: float | None = None
    max_new_tokens: int | None = None
    logits_processor: list[TextProcessor] | None = None  # for text tokens
    streamer: Any = None  # gets text tokens
    return_dict_in_generate: bool | None = None

    @classmethod
    def read(cls, **options: Any) -> GenerateRequest:
        """Check the names; an option that this decoder does not have is an error."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(name for name in set(options) - known - TOLERATED if options[name] is not None):
            raise ValueError(
                f"generate has no option {unknown[0]!r}: found {options[unknown[0]]!r}; use one of "
                f"{', '.join(sorted(known))}"
            )
        if options.get("input_ids") is None:
            raise ValueError("generate needs a prompt: found no input_ids; pass what the processor returns")
        check_mode(options.get("generation_mode", "text"))
        given = {name: value for name, value in options.items() if name in known and value is not None}
        return cls(**given)

    @property
    def num_copies(self) -> int:
        """Answers to each prompt."""
        return self.num_return_sequences or getattr(self.generation_config, "num_return_sequences", None) or 1

    def seeds(self) -> list[int]:
        """One seed per row; without one they come from torch's random state, so `torch.manual_seed` settles them."""
        num_rows = self.input_ids.shape[0] * self.num_copies
        if isinstance(self.seed, list):
            if len(self.seed) != num_rows:
                raise ValueError(f"seeds do not match the rows: found {len(self.seed)} for {num_rows}; give one each")
            return self.seed
        first = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        return [first + index for index in range(num_rows)]

    def sampling(self) -> dict[str, Any]:
        """The settings that were given, by our names."""
        stored = self.generation_config.to_diff_dict() if self.generation_config is not None else {}
        names = ("do_sample", "temperature", "top_k", "top_p", "guidance_scale")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        given = {**{name: stored[name] for name in names if stored.get(name) is not None}, **given}
        if "top_k" in given and given["top_k"] == 0:
            given["top_k"] = None
        settings = {name: given[name] for name in ("temperature", "top_k", "top_p") if name in given}
        if "guidance_scale" in given:
            settings["guidance"] = float(given["guidance_scale"])
        if "do_sample" in given:
            settings["greedy"] = not given["do_sample"]
        return settings


@torch.inference_mode()
def generate_from_inputs(model: MLLMForConditionalGeneration, request: GenerateRequest) -> Tensor | GenerateOutput:
    """Decode what is asked for."""
    rows = build_rows(model, request)
    if request.streamer is not None and len(rows) > 1:
        raise ValueError(f"a streamer follows one answer: found {len(rows)} rows; ask for one, or leave it out")
    if request.streamer is not None:
        request.streamer.put(request.input_ids.cpu())
    results = generate(model, rows, on_progress=lambda event: show(event, request.streamer))
    if request.streamer is not None:
        request.streamer.end()
    sequences = to_tensor(results, request, config=model.config)
    if not request.return_dict_in_generate and request.generation_mode != "interleaved":
        return sequences
    return GenerateOutput(
        sequences=sequences,
        images=[result.images for result in results],
        finish_reasons=[result.finish_reason for result in results],
        seeds=[result.seed for result in results],
        answers=results,
    )


def show(event: object, streamer: Any) -> None:
    """Hand a text token to the streamer."""
    if streamer is not None and isinstance(event, TextEvent):
        streamer.put(torch.tensor([event.token_id]))


def build_rows(model: MLLMForConditionalGeneration, request: GenerateRequest) -> list[Row]:
    """One row of the decoding loop for every answer asked for."""
    config, mode = model.config, request.generation_mode
    check_mode_of(config, mode)
    given = request.sampling()
    if mode == "text" and "guidance" in given:
        raise ValueError(f"guidance is for pictures: found {given['guidance']} for a text; leave it out")
    prompts = list(read_prompts(request.input_ids, request.attention_mask, request, config))
    negatives: list[TokenSequence] | list[None] = [None] * len(prompts)
    if request.negative_prompt_ids is not None:
        mask = request.negative_prompt_attention_mask
        negatives = list(read_prompts(request.negative_prompt_ids, mask, request, config))
        if len(negatives) != len(prompts):
            raise ValueError(f"negative prompts do not match: found {len(negatives)} for {len(prompts)}; give one each")
    stored = stored_settings(model)
    seeds, rows = iter(request.seeds()), []
    for prompt, negative in zip(prompts, negatives, strict=True):
        task = {"text": "ask", "image": "edit" if len(prompt.image_lengths_I) else "draw"}.get(mode, "chat")
        image = image_settings(config, stored.get(task, {}), given if mode != "text" else {})
        text = text_settings(model.generation_config, stored.get(f"{task}_text", {}), given if mode == "text" else {})
        if mode != "text" and image.guidance > 1 and negative is None:
            raise ValueError(
                f"guidance {image.guidance} needs negative_prompt_ids: found none; pass generation_mode={mode!r} to "
                "the processor, or guidance_scale=1"
            )
        for _ in range(request.num_copies):
            row = Row(
                prompt=prompt,
                unconditional=negative,
                mode=mode,
                grid=choose_grid(prompt, request.size, config),
                seed=next(seeds),
                max_new_tokens=token_budget(config, mode) if mode == "image" else budget(request, config),
                text=text,
                image=image,
                outline=outline_settings(stored.get("outline", {}), given if mode != "text" else {}),
                text_processors=tuple(request.logits_processor or ()),
            )
            rows.append(row)
    return rows


def budget(request: GenerateRequest, config: MLLMConfig) -> int | None:
    """New places of a text or mixed answer (an image alone takes what it takes)."""
    stored = getattr(request.generation_config, "max_new_tokens", None)
    return request.max_new_tokens or stored or token_budget(config, request.generation_mode)


def read_prompts(
    ids_BT: Tensor, mask_BT: Tensor | None, request: GenerateRequest, config: MLLMConfig
) -> Iterator[TokenSequence]:
    """The prompts of padded rows, each with its own images."""
    codes = np.zeros((0, config.num_codebooks)) if request.codes is None else request.codes.cpu().numpy()
    lengths = np.zeros(0) if request.image_lengths is None else request.image_lengths.cpu().numpy()
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    is_image_BT = (ids_BT == config.image_token_id) & mask_BT.bool()
    if int(is_image_BT.sum()) != len(codes):
        raise ValueError(
            f"image placeholders and codes do not match: found {int(is_image_BT.sum())} placeholders and {len(codes)} "
            "code rows; pass all that the processor returns"
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


def stored_settings(model: MLLMForConditionalGeneration) -> dict[str, dict[str, Any]]:
    """Sampling settings per task of this checkpoint."""
    known = getattr(model.generation_config, "task_settings", None)
    return known if known is not None else read_task_settings(Path(model.config.name_or_path))


def to_tensor(results: list[Generated], request: GenerateRequest, *, config: MLLMConfig) -> Tensor:
    """Prompts and answers (S, T), padded on the right; in mode "image" the codes alone (S, N * K), position by
    position and in each codebook by codebook, as they were drawn."""
    device = request.input_ids.device
    if request.generation_mode == "image":
        codes = [torch.from_numpy(result.images[0].codes_KN.astype(np.int64).T.copy()).flatten() for result in results]
        if len({len(row) for row in codes}) > 1:
            raise ValueError("the pictures differ in size, so their codes are no tensor; use return_dict_in_generate")
        return torch.stack(codes).to(device)
    longest = max(len(result.token_ids) for result in results)
    added = [[*r.token_ids, *[config.pad_token_id] * (longest - len(r.token_ids))] for r in results]
    prompts_ST = request.input_ids.repeat_interleave(request.num_copies, dim=0)
    return torch.cat((prompts_ST, torch.tensor(added, dtype=prompts_ST.dtype, device=device)), dim=1)
