"""Our models in lmms-eval, chat form: pictures in, words out, or with `mode=image` and `mode=interleaved` pictures too.

Loaded by lmms-eval alone (see lmms_manifest.py). lmms-eval's protocols differ from the official ones on POPE, TextVQA,
MM-Vet and MMMU; docs/evaluation.md says how.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

from mllm.conversation import Mode, check_mode
from mllm.evaluation.harness import answer_chats, read_messages, read_settings, until
from mllm.evaluation.tokenizer import in_batches
from mllm.pipeline import Pipeline

ARGUMENTS = slice(-5, None)
"""Of a request: doc_to_messages, settings, number of the document, task, split; older versions put a context before."""


def task_of(request: Any) -> tuple[str, str, str]:
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
        output: str = "lmms_eval_pictures",
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if unknown := {name: value for name, value in unknown.items() if value is not None}:
            raise ValueError(f"unknown model_args: found {', '.join(unknown)}; use pretrained, mode, output and seed")
        options = {} if device is None else {"device": device}
        self.pipeline = Pipeline.load(pretrained, **options)
        self.mode, self.folder, self.seed, self.batch_size = mode, Path(output), int(seed), int(batch_size)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One answer per request, in batches within a task; document i has seed + i, so no answer depends on others."""
        answers: list[str] = []
        for (task, split, _), group in groupby(requests, key=task_of):
            for batch in in_batches(group, self.batch_size):
                answers += self.answer_batch(batch, task=task, split=split)
        return answers

    def answer_batch(self, requests: list[Any], *, task: str, split: str) -> list[str]:
        """Answers to requests of one task, which share their settings; pictures go to a folder of the task."""
        calls = [request.args[ARGUMENTS] for request in requests]
        given = calls[0][1]
        found = answer_chats(
            self.pipeline,
            [read_messages(to_messages(self.task_dict[task][split][doc_id])) for to_messages, _, doc_id, *_ in calls],
            mode=self.mode,
            settings=read_settings(given, self.mode),
            seeds=[self.seed + doc_id for _, _, doc_id, *_ in calls],
            folder=self.folder / task / split,
        )
        return [until(text, given.get("until")) for text in found] if self.mode == "text" else found

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("this model answers in words: use tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported: use tasks of output_type generate_until")
