"""What a harness asks, as our messages; what the model answers, as a harness takes it. Knows no harness's classes.

In: chats of dicts ({"type": "text", "text"} and {"type": "image", "url": picture or file}), generation settings by the
names of transformers. Out: texts, or where pictures were asked for JSON with `text` and `images` (file names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from PIL import Image

from mllm.conversation import ImagePart, Message, Mode, TextPart
from mllm.pipeline import Pipeline
from mllm.processor import Overrides, load_image

SETTINGS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "max_new_tokens"}


def read_messages(chat: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a chat; words of a system stand before those of the first user."""
    messages: list[Message] = []
    pending: tuple[TextPart | ImagePart, ...] = ()
    for turn in chat:
        content = turn["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = pending + tuple(read_item(item) for item in items)
        if turn["role"] == "system":
            pending = parts
        else:
            messages.append(Message(turn["role"], parts))
            pending = ()
    return messages


def read_item(item: Mapping[str, Any]) -> TextPart | ImagePart:
    """One part; what this model cannot see is refused, never left out."""
    match item["type"]:
        case "text":
            return TextPart(item["text"])
        case "image":
            source = next(item[name] for name in ("url", "image", "value") if name in item)
            return ImagePart(load_image(source))
        case kind:
            raise ValueError(f"this model reads text and pictures: found {kind!r}; choose another task")


def read_settings(given: Mapping[str, Any], mode: Mode) -> Overrides:
    """Our settings; greedy where the harness does not ask for variety."""
    settings: dict[str, Any] = {ours: given[name] for name, ours in SETTINGS.items() if given.get(name) is not None}
    samples = given.get("do_sample", settings.get("temperature", 0) > 0)
    if mode == "text" and (not samples or settings.get("temperature") == 0):
        kept = {name: value for name, value in settings.items() if name == "max_new_tokens"}
        return cast(Overrides, {"greedy": True, **kept})
    if mode != "text":
        return Overrides()  # a harness's settings are for words; pictures are sampled as the checkpoint says
    return cast(Overrides, settings)


def answer_chats(
    pipeline: Pipeline,
    chats: Sequence[Sequence[Message]],
    *,
    mode: Mode,
    settings: Overrides,
    seeds: Sequence[int],
    folder: Path,
) -> list[str]:
    """One answer for each chat; pictures go to the folder, named by their seed."""
    return [
        as_answer(parts, mode=mode, stem=f"{seed:08d}", folder=folder)
        for parts, seed in zip(pipeline.answer(chats, mode, seeds, **settings), seeds, strict=True)
    ]


def as_answer(parts: Sequence[str | Image.Image], *, mode: Mode, stem: str, folder: Path) -> str:
    """Words, or JSON of words and file names."""
    words = " ".join(part for part in parts if isinstance(part, str))
    if mode == "text":
        return words
    names = []
    for number, picture in enumerate(part for part in parts if not isinstance(part, str)):
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / f"{stem}-{number}.png").resolve()
        picture.save(path)
        names.append(str(path))
    return json.dumps({"text": words, "images": names})


def until(text: str, ends: Sequence[str] | str | None) -> str:
    """The text before the first of these ends."""
    for end in [ends] if isinstance(ends, str) else ends or []:
        text = text.split(end)[0] if end else text
    return text.strip()


# What lmms-eval finds in its entry-point group `lmms_eval.models`: the name of our model and where its class is.
#
# `python -m lmms_eval --model mllm_toolkit --model_args pretrained=FOLDER --tasks mme`; no fork needed.


MODEL_ID = "mllm_toolkit"
CHAT_CLASS = "mllm.evaluation.lmms.MLLMToolkit"


def manifest() -> Any:
    """Called by lmms-eval, with its own class."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise ImportError(
            f"the plug-in is for lmms-eval: found none ({error}); `pip install 'mllm-toolkit[eval-harness]'` in an "
            "environment of its own"
        ) from error
    return ModelManifest(model_id=MODEL_ID, chat_class_path=CHAT_CLASS)


# Our models in VLMEvalKit, which has no plug-ins: `register` adds one to its table of models.
#
# from mllm.evaluation.harness import register
# register("my-model", "runs/mllm/final")       # then vlmeval's run.py finds --model my-model in this process


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
