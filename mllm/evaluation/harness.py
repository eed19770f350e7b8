"""Plug-ins for other evaluation harnesses: lmms-eval (an entry point) and VLMEvalKit (`register`).

In: chats of dicts ({"type": "text", "text"} and {"type": "image", "url": image or file}), generation settings by the
names of transformers. Out: texts, or, if images were asked for (lmms-eval's `mode=image` or `mode=interleaved`), JSON
with `text` and `images` (file names). Protocols of lmms-eval differ from the official ones on POPE, TextVQA, MM-Vet and
MMMU; docs/evaluation.md says how.

    python -m lmms_eval --model mllm_toolkit --model_args pretrained=FOLDER --tasks mme

    from mllm.evaluation.harness import register
    register("my-model", "runs/mllm/final")   # VLMEvalKit's run.py then finds --model my-model in this process
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from PIL import Image

from mllm.conversation import Mode, check_mode, from_chat
from mllm.engine.settings import Overrides
from mllm.files import write_image
from mllm.pipeline import Pipeline

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
            self.pipeline = Pipeline.load(pretrained, device=device)
            self.mode, self.folder, self.seed, self.batch_size = mode, Path(output), int(seed), int(batch_size)

        def generate_until(self, requests: list[Any]) -> list[str]:
            """One answer per request; images go to a folder of their task."""
            found: list[str] = []
            calls = [request.args[ARGUMENTS] for request in requests]
            for (task, split, _), group in groupby(calls, key=lambda call: (*call[3:], repr(call[1]))):
                docs, same = self.task_dict[task][split], list(group)
                given, seeds = same[0][1], [self.seed + call[2] for call in same]
                chats = (from_chat(to_messages(docs[doc_id])) for to_messages, _, doc_id, *_ in same)
                settings = read_settings(given, self.mode)
                answers = self.pipeline.answer_each(chats, self.mode, seeds, at_once=self.batch_size, **settings)
                ended = {}
                for index, parts in answers:
                    if self.mode == "text":
                        ended[index] = cut_at(join_text(parts), given.get("until"))
                    else:
                        ended[index] = save_answer(parts, self.folder / task / split / f"{seeds[index]:08d}")
                found += [ended[index] for index in sorted(ended)]
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
        INTERLEAVE = True

        def __init__(self, model: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS, **options: Any) -> None:
            super().__init__()
            self.pipeline = Pipeline.load(model, **options)
            self.settings = Overrides(greedy=True, max_new_tokens=max_new_tokens)

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
            items = [{"type": part["type"], part["type"]: part["value"]} for part in message]
            chat = from_chat([{"role": "user", "content": items}])
            (answer,) = self.pipeline.answer([chat], "text", [0], **self.settings)
            return join_text(answer)

    return MLLMToolkit


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


def join_text(parts: Sequence[str | Image.Image]) -> str:
    return " ".join(part for part in parts if isinstance(part, str))


def save_answer(parts: Sequence[str | Image.Image], stem: Path) -> str:
    """JSON of the text and of the names of the files that the images are saved to."""
    images = [part for part in parts if isinstance(part, Image.Image)]
    paths = [stem.with_name(f"{stem.name}-{number}.png").resolve() for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_image(path, image)
    return json.dumps({"text": join_text(parts), "images": [str(path) for path in paths]})


def cut_at(text: str, ends: Sequence[str] | str | None) -> str:
    for end in [ends] if isinstance(ends, str) else ends or []:
        text = text.split(end)[0] if end else text
    return text.strip()
