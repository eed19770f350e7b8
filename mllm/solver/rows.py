"""A call of the solver, checked and turned into a row for the decoding loop.

In: what the caller of `generate` passed. Out: a `Row`, or a ValueError. What a question asks for is found in
mllm/solver/tasks.py, what placeholders mean in mllm/solver/messages.py, how to sample in
mllm/generation/sampling_plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mllm.conversation import AnswerKind, Message, UnconditionalPart
from mllm.generation.request import Row, TextProcessor
from mllm.generation.row_builder import NUM_SEEDS, Overrides, check_task
from mllm.generation.sampling_plan import SamplingPlan
from mllm.generation.settings import text_settings
from mllm.modes import check_mode
from mllm.pipeline import Pipeline
from mllm.sequence import TokenSequence
from mllm.sizes import Size
from mllm.solver.messages import SolverImage, Turns, build_messages, check_turns
from mllm.solver.tasks import Question, understand

LogitsProcessors = SamplingPlan | TextProcessor | Sequence[SamplingPlan | TextProcessor]


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverRequest:
    """One call."""

    images: SolverImage | list[SolverImage] | tuple[SolverImage, ...] | None
    qas: Turns
    max_gen_len: int | None
    temperature: float
    logits_processor: LogitsProcessors | None = None
    seed: int | None = None
    size: Size | None = None
    generation_mode: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.temperature, bool) or not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature has no meaning: found {self.temperature!r}; use a number above 0, or image_top_k=1 and "
                "text_top_k=1 for the most probable choice"
            )
        if self.generation_mode != "auto":
            check_mode(self.generation_mode)
        check_turns(self.qas)

    @property
    def listed_images(self) -> list[SolverImage]:
        """The images, however they were passed."""
        if self.images is None:
            return []
        return list(self.images) if isinstance(self.images, list | tuple) else [self.images]

    @property
    def processors(self) -> list[SamplingPlan | TextProcessor]:
        """Plans and text processors, however they were passed."""
        given = self.logits_processor
        listed = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
        for item in listed:
            if not callable(item) and not isinstance(item, SamplingPlan):
                raise ValueError(
                    f"logits_processor holds what is none: found {type(item).__name__}; pass what "
                    "create_logits_processor returns, or logits processors of transformers"
                )
        return listed

    def understand(self) -> Question:
        """What the last question asks for, with the size of this call."""
        mode: Any = None if self.generation_mode == "auto" else self.generation_mode
        question = understand(self.qas[-1][0], mode)
        if self.size is not None and question.size not in (None, tuple(self.size)):
            raise ValueError(
                f"two sizes are asked for: found {question.size[0]}x{question.size[1]} in the question and "
                f"{self.size[0]}x{self.size[1]} as size; give one"
            )
        return question if self.size is None else replace(question, size=tuple(self.size))


def build_row(pipeline: Pipeline, request: SolverRequest) -> Row:
    """The row that answers the call."""
    question = request.understand()
    task = check_task(pipeline.tasks, *question.capabilities)
    messages = build_messages(request.listed_images, request.qas, last_words=question.words)
    messages = pipeline.processor.encode_pictures(messages)
    plans = [item for item in request.processors if isinstance(item, SamplingPlan)]
    overrides: Overrides = {"seed": int(torch.randint(NUM_SEEDS, ())) if request.seed is None else request.seed}
    if request.max_gen_len is not None:
        overrides["max_new_tokens"] = request.max_gen_len
    if plans and question.mode != "text":
        overrides["guidance"] = float(plans[-1].cfg)
    row = pipeline.build_row(messages, question.mode, task=task, size=question.size, overrides=overrides)
    row = sample_as_planned(row, plans[-1] if plans else None, temperature=request.temperature, task=task, of=pipeline)
    if plans and plans[-1].uncond == "all" and row.is_guided:
        row = replace(row, unconditional=nothing_but_the_answer(row, pipeline))
    processors = tuple(item for item in request.processors if not isinstance(item, SamplingPlan))
    return replace(row, text_processors=processors)


def sample_as_planned(row: Row, plan: SamplingPlan | None, *, temperature: float, task: str, of: Pipeline) -> Row:
    """The row with the settings of a plan; without one they are the checkpoint's, at the temperature of the call."""
    if plan is not None:
        return replace(
            row, image=plan.image(row.image, temperature=temperature), text=plan.text(temperature=temperature)
        )
    stored, given = of.rows.stored_settings, {"temperature": temperature}
    text = text_settings(of.rows.generation_config, stored.get(f"{task}_text", {}), given)
    return replace(row, image=replace(row.image, temperature=temperature, greedy=False), text=text)


def nothing_but_the_answer(row: Row, pipeline: Pipeline) -> TokenSequence:
    """The prompt of guidance without the dialogue: no history, no input image, no words."""
    answer: AnswerKind | None = "image" if row.mode == "image" else None
    nothing = [Message("user", (UnconditionalPart(),))]
    return pipeline.processor.build(nothing, add_generation_prompt=True, answer=answer)
