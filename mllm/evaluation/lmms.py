"""The class that lmms-eval loads (mllm/evaluation/harness.py `manifest`): images and text in, text out.

With `mode=image` or `mode=interleaved` it answers with images too. lmms-eval's protocols differ from the official ones
on POPE, TextVQA, MM-Vet and MMMU; docs/evaluation.md says how.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

from mllm.conversation import Mode, check_mode
from mllm.evaluation.harness import as_answer, cut_at, read_messages, read_settings
from mllm.evaluation.tokenizer import in_batches
from mllm.pipeline import Pipeline

ARGUMENTS = slice(-5, None)
"""Of a request: doc_to_messages, settings, index of the document, task, split; older versions put a context before."""


def group_of(request: Any) -> tuple[str, str, str]:
    """Task, split and settings of a request."""
    _, settings, _, task, split = request.args[ARGUMENTS]
    return task, split, repr(settings)


class MLLMToolkit(lmms):
    """One process, one model."""

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        mode: Mode = "text",
        output: str = "lmms_eval_images",
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if unknown := {name: value for name, value in unknown.items() if value is not None}:
            raise ValueError(f"model_args must be pretrained, mode, output and seed, got {', '.join(unknown)}")
        self.pipeline = Pipeline.load(pretrained, **({} if device is None else {"device": device}))
        self.mode, self.folder, self.seed, self.batch_size = mode, Path(output), int(seed), int(batch_size)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One answer per request, in batches within a task; document i has seed + i, so no answer depends on others."""
        answers: list[str] = []
        for (task, split, _), group in groupby(requests, key=group_of):
            for batch in in_batches(group, self.batch_size):
                answers += self.answer_batch(batch, task=task, split=split)
        return answers

    def answer_batch(self, requests: list[Any], *, task: str, split: str) -> list[str]:
        """Answers to requests of one task, which share their settings; images go to a folder of the task."""
        calls = [request.args[ARGUMENTS] for request in requests]
        given, seeds = calls[0][1], [self.seed + doc_id for _, _, doc_id, *_ in calls]
        docs = self.task_dict[task][split]
        chats = [read_messages(to_messages(docs[doc_id])) for to_messages, _, doc_id, *_ in calls]
        answers = self.pipeline.answer(chats, self.mode, seeds, **read_settings(given, self.mode))
        found = [
            as_answer(parts, mode=self.mode, stem=f"{seed:08d}", folder=self.folder / task / split)
            for parts, seed in zip(answers, seeds, strict=True)
        ]
        return [cut_at(text, given.get("until")) for text in found] if self.mode == "text" else found

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks must be of output_type generate_until, got loglikelihood")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("tasks must be of output_type generate_until, got generate_until_multi_round")
