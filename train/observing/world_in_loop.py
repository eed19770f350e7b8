"""The synthetic world's scores in the middle of training: a few items of each job, judged by the exact checker.

In: the model as it would be saved now. Out: numbers for the log: `world_JOB`, pass rates from 0 to 1, and `world`,
their mean. The same items every time, so that steps can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mllm.conversation import Message
from mllm.evaluation.world import choose_groups, evaluate_world
from mllm.evaluation.world_items import Group
from mllm.modes import Mode
from mllm.pipeline import Pipeline
from mllm.world.checker import MIN_SIDE
from train.mllm_recipe import WorldInLoop

OVERALL = "world"
MAX_ANSWER = 64
"""Tokens of an answer in words, more than any right one: a model that still rambles must not outgrow its context."""


class WorldScores:
    """Called with a pipeline on the first process.

    Raises:
        ValueError: a job that the world does not score, or pictures too small for its checker.
    """

    def __init__(self, wanted: WorldInLoop, *, image_size: int) -> None:
        if image_size < MIN_SIDE:
            raise ValueError(
                f"validation.world reads pictures of {MIN_SIDE} pixels or more: found an image tokenizer of "
                f"{image_size}; leave it out, or use a larger one"
            )
        self.wanted, self.groups = wanted, choose_groups(wanted.jobs)
        self.names = [OVERALL, *map(name_of, self.groups)]

    def __call__(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        def answer(
            dialogues: Sequence[Sequence[Message]], mode: Mode, seeds: Sequence[int]
        ) -> list[list[str | Image.Image]]:
            if mode == "text":
                return pipeline.answer(dialogues, mode, seeds, max_new_tokens=MAX_ANSWER)
            return pipeline.answer(dialogues, mode, seeds)

        scores = evaluate_world(
            answer,
            count=self.wanted.count,
            seed=0,
            batch_size=self.wanted.batch_size,
            size=pipeline.config.image_size,
            groups=self.groups,
        )
        rates = {name_of(group): scores[group.name]["rate"] for group in self.groups}
        return {OVERALL: sum(rates.values()) / len(rates), **rates}


def name_of(group: Group) -> str:
    """A group in one word."""
    return f"{OVERALL}_{group.job}" + ("_held_out" if group.pairs == "held_out" else "")
