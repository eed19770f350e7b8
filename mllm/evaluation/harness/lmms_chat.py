"""Our models in lmms-eval, chat form: pictures in, words out, or with `mode=image` and `mode=interleaved` pictures too.

Loaded by lmms-eval alone (see lmms_manifest.py). lmms-eval's protocols differ from the official ones on POPE, TextVQA,
MM-Vet and MMMU; docs/evaluation.md says how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

from mllm.evaluation.harness.harness_answers import answer_chats, read_messages, read_settings, until
from mllm.modes import Mode, check_mode
from mllm.pipeline import Pipeline


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
        """One answer per request; request i has seed + i, so a picture does not depend on its batch."""
        answers = []
        for number, request in enumerate(requests):
            # older versions put the context in front
            doc_to_messages, given, doc_id, task, split = request.args[-5:]
            chat = read_messages(doc_to_messages(self.task_dict[task][split][doc_id]))
            settings = read_settings(given, self.mode)
            found = answer_chats(
                self.pipeline, [chat], mode=self.mode, settings=settings, seeds=[self.seed + number], folder=self.folder
            )[0]
            answers.append(until(found, given.get("until")) if self.mode == "text" else found)
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("this model answers in words: use tasks of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported: use tasks of output_type generate_until")
