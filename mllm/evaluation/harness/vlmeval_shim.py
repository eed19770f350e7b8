"""Our models in VLMEvalKit, which has no plug-ins: `register` adds one to its table of models.

from mllm.evaluation.harness.vlmeval_shim import register
register("my-model", "runs/mllm/final")       # then vlmeval's run.py finds --model my-model in this process
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from mllm.conversation import Message
from mllm.evaluation.harness.harness_answers import answer_chats, read_item
from mllm.generation.row_builder import Overrides
from mllm.pipeline import Pipeline

MAX_NEW_TOKENS = 512


def register(name: str, model: str | None = None, **options: Any) -> None:
    """Add a model to VLMEvalKit's table; it is loaded when it is asked for."""
    try:
        import vlmeval.config
        import vlmeval.vlm
    except ImportError as error:
        raise ImportError(
            f"the shim is for VLMEvalKit: found none ({error}); `git clone https://github.com/open-compass/VLMEvalKit "
            "&& pip install -e VLMEvalKit` in an environment of its own"
        ) from error
    kind = model_class()
    vlmeval.vlm.MLLMToolkit = kind  # where run.py --config looks classes up
    vlmeval.config.supported_VLM[name] = partial(kind, model=model, **options)


@cache
def model_class() -> type:
    """The class, made when VLMEvalKit is there to inherit from."""
    from vlmeval.vlm.base import BaseModel

    class MLLMToolkit(BaseModel):
        """A model of this toolkit."""

        INTERLEAVE = True

        def __init__(self, model: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS, **options: Any) -> None:
            super().__init__()
            self.pipeline, self.max_new_tokens = Pipeline.load(model, **options), max_new_tokens

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
            """The answer to parts of text and pictures."""
            return answer_message(self.pipeline, message, max_new_tokens=self.max_new_tokens)

    return MLLMToolkit


def answer_message(pipeline: Pipeline, message: Sequence[Mapping[str, str]], *, max_new_tokens: int) -> str:
    """The greedy answer to VLMEvalKit's list of parts, `value` in each."""
    parts = tuple(
        read_item({"type": "text", "text": part["value"]} if part["type"] == "text" else part) for part in message
    )
    settings = Overrides(greedy=True, max_new_tokens=max_new_tokens)
    chat = [Message("user", parts)]
    return answer_chats(pipeline, [chat], mode="text", settings=settings, seeds=[0], folder=Path())[0]
