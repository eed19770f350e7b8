"""Plug-ins for other evaluation harnesses: lmms-eval (an entry point) and VLMEvalKit (`register`).

In: chats of dicts ({"type": "text", "text"} and {"type": "image", "url": image or file}), generation settings by the
names of transformers. Out: texts, or, if images were asked for (lmms-eval's `mode=image` or `mode=interleaved`), JSON
with `text` and `images` (file names). Protocols of lmms-eval differ from the official ones on POPE, TextVQA, MM-Vet and
MMMU; docs/evaluation.md says how.

    python -m lmms_eval --model mllm_toolkit --model_args pretrained=FOLDER --tasks mme

    from mllm.evaluation.harness import register
    register("my-model", "runs/mllm/final")   # VLMEvalKit's run.py then finds --model my-model in this process
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from PIL import Image

from mllm.conversation import ImagePart, Message, Mode, TextPart, check_mode
from mllm.engine.settings import Overrides
from mllm.files import write_image
from mllm.pipeline import Pipeline
from tokenizer.images import read_image

SETTINGS = ("temperature", "top_p", "top_k", "max_new_tokens")
MAX_NEW_TOKENS = 512
ARGUMENTS = slice(-5, None)
"""Of lmms-eval's request: doc_to_messages, settings, index of the document, task, split; older versions put a context
before."""


def manifest() -> Any:
    """The entry point of the group `lmms_eval.models`: the name of our model and where its class is."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError(
            f"the plug-in needs lmms-eval ({error}); `pip install 'mllm-toolkit[eval-harness]'` in an environment of "
            "its own"
        ) from error
    return ModelManifest(model_id="mllm_toolkit", chat_class_path=f"{__name__}.MLLMToolkit")


def __getattr__(name: str) -> type:
    """The class that lmms-eval loads, made when its base class is there."""
    if name != "MLLMToolkit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lmms_class()


@cache
def lmms_class() -> type:
    from lmms_eval.api.model import lmms

    class MLLMToolkit(lmms):
        """One process, one model; document i has seed + i, so no answer depends on others."""

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
            """One answer per request; images go to a folder of their task."""
            found: list[str] = []
            calls = [request.args[ARGUMENTS] for request in requests]
            for (task, split, _), group in groupby(calls, key=lambda call: (*call[3:], repr(call[1]))):
                docs, same = self.task_dict[task][split], list(group)
                given, seeds = same[0][1], [self.seed + call[2] for call in same]
                chats = (read_messages(to_messages(docs[doc_id])) for to_messages, _, doc_id, *_ in same)
                settings = read_settings(given, self.mode)
                answers = self.pipeline.answer_each(chats, self.mode, seeds, at_once=self.batch_size, **settings)
                ended = {}
                for place, parts in answers:
                    stem, folder = f"{seeds[place]:08d}", self.folder / task / split
                    answer = as_answer(parts, mode=self.mode, stem=stem, folder=folder)
                    ended[place] = cut_at(answer, given.get("until")) if self.mode == "text" else answer
                found += [ended[place] for place in sorted(ended)]
            return found

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError("tasks must be of output_type generate_until, got loglikelihood")

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("tasks must be of output_type generate_until, got generate_until_multi_round")

    return MLLMToolkit


def register(name: str, model: str | None = None, **options: Any) -> None:
    """Add a model to VLMEvalKit's table, since it has no plug-ins; it is loaded when it is asked for."""
    try:
        import vlmeval.config
        import vlmeval.vlm
    except ImportError as error:
        raise ImportError(
            f"register needs VLMEvalKit ({error}); `pip install ms-vlmeval` in an environment of its own"
        ) from error
    vlmeval.vlm.MLLMToolkit = vlmeval_class()  # where run.py --config looks classes up
    vlmeval.config.supported_VLM[name] = partial(vlmeval.vlm.MLLMToolkit, model=model, **options)


@cache
def vlmeval_class() -> type:
    from vlmeval.vlm.base import BaseModel

    class MLLMToolkit(BaseModel):
        """A model of this toolkit."""

        INTERLEAVE = True

        def __init__(self, model: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS, **options: Any) -> None:
            super().__init__()
            self.pipeline = Pipeline.load(model, **options)
            self.settings = Overrides(greedy=True, max_new_tokens=max_new_tokens)

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
            """The greedy answer to a list of {"type", "value"}."""
            parts = tuple(read_part({"text": part["value"], **part}) for part in message)
            (answer,) = self.pipeline.answer([[Message("user", parts)]], "text", [0], **self.settings)
            return as_answer(answer, mode="text", stem="", folder=Path())

    return MLLMToolkit


def read_messages(chat: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a chat; a system prompt is put before the first user message."""
    messages: list[Message] = []
    pending: tuple[TextPart | ImagePart, ...] = ()
    for turn in chat:
        content = turn["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = pending + tuple(read_part(item) for item in items)
        if turn["role"] == "system":
            pending = parts
        else:
            messages.append(Message(turn["role"], parts))
            pending = ()
    return messages


def read_part(item: Mapping[str, Any]) -> TextPart | ImagePart:
    """One part of a message; what this model cannot see is refused, never left out."""
    match item["type"]:
        case "text":
            return TextPart(item["text"])
        case "image":
            return ImagePart(read_image(next(item[name] for name in ("url", "image", "value") if name in item)))
        case kind:
            raise ValueError(f"message parts must be text or image, got {kind!r}; choose another task")


def read_settings(given: Mapping[str, Any], mode: Mode) -> Overrides:
    """Our settings: greedy unless the harness asks for sampling; images are sampled as the checkpoint says."""
    if mode != "text":
        return Overrides()
    settings = {name: given[name] for name in SETTINGS if given.get(name) is not None}
    samples = given.get("do_sample", settings.get("temperature", 0) > 0)
    if not samples or settings.get("temperature") == 0:
        kept = {name: value for name, value in settings.items() if name == "max_new_tokens"}
        return cast(Overrides, {"greedy": True, **kept})
    return cast(Overrides, settings)


def as_answer(parts: Sequence[str | Image.Image], *, mode: Mode, stem: str, folder: Path) -> str:
    """Text, or JSON of text and file names; images are saved to the folder."""
    text = " ".join(part for part in parts if isinstance(part, str))
    if mode == "text":
        return text
    paths: list[str] = []
    for image in (part for part in parts if isinstance(part, Image.Image)):
        paths.append(str((folder / f"{stem}-{len(paths)}.png").resolve()))
        write_image(Path(paths[-1]), image)
    return json.dumps({"text": text, "images": paths})


def cut_at(text: str, ends: Sequence[str] | str | None) -> str:
    """The text before the first of these stop strings."""
    for end in [ends] if isinstance(ends, str) else ends or []:
        text = text.split(end)[0] if end else text
    return text.strip()
