"""How well an image shows a text: one interface, three scorers, chosen by name.

    self              a model of this toolkit, by its own P("yes"); no second model is needed
    hf:NAME           any image-text model of transformers, by its P("Yes")
    clip-flant5-xxl   the model of published numbers, in an environment of its own

Letters: V text vocabulary.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from mllm.checkpoint import choose_device
from mllm.evaluation.answerer import model_fingerprint
from mllm.pipeline import MAX_REQUESTS, VQA_SCORE_QUESTION, Pipeline
from tokenizer.images import read_image

HUB_PREFIX = "hf:"
ANSWER = "Yes"
T2V_MODELS = ("clip-flant5-xxl", "clip-flant5-xl")
WORKER = Path(__file__).with_name("t2v_worker.py")
PYTHON_VARIABLE = "T2V_PYTHON"
INSTALL = "python3.10 -m venv t2v && t2v/bin/pip install -r scripts/requirements-t2v.txt"


class ImageTextScorer(Protocol):
    """Scores pairs of an image and a text."""

    @property
    def description(self) -> Mapping[str, Any]: ...  # `name`, versions and question: what decides the scores

    @property
    def batch_size(self) -> int: ...  # pairs per call

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]: ...  # 0 to 1 for each pair


def find_scorer(name: str, *, model: str | None, device: str | None, python: Path | None) -> ImageTextScorer:
    """The scorer of this name; `model` (default: the bundled one) is for "self", `python` has t2v-metrics installed."""
    if name == "self":
        return SelfScorer(Pipeline.load(model, device=device))
    if name.startswith(HUB_PREFIX):
        return HubScorer.load(name.removeprefix(HUB_PREFIX), device=device)
    if name in T2V_MODELS:
        return T2VScorer(name, python=python)
    raise ValueError(f"scorer must be self, {HUB_PREFIX}NAME, {' or '.join(T2V_MODELS)}, got {name!r}")


@dataclass(frozen=True, slots=True)
class SelfScorer:
    """A model of this toolkit, by its own P("yes")."""

    pipeline: Pipeline
    batch_size: int = MAX_REQUESTS

    @property
    def description(self) -> Mapping[str, Any]:
        model = self.pipeline.model
        about = {"fingerprint": model_fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}
        return {"name": "self", **about, "question": self.pipeline.question_form}

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        return self.pipeline.score([read_image(path) for path in images], texts)


@dataclass(frozen=True, slots=True)
class HubScorer:
    """Any image-text model of transformers, by its P("Yes") as the first word of its answer to VQAScore's question.

    The chat template of the model's processor frames the question (Lin et al. 2024).
    """

    name: str
    model: PreTrainedModel
    processor: Any
    batch_size: int = 1  # models differ in how they pad images, so each pair goes alone

    @classmethod
    def load(cls, name: str, *, device: str | None) -> Self:
        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"scorer hf:NAME must be an image-text model of transformers, got {name} ({type(error).__name__})"
            ) from error
        return cls(name, model.eval().to(choose_device(device)), processor)

    @property
    def description(self) -> Mapping[str, Any]:
        about = {"transformers": transformers.__version__, "dtype": str(self.model.dtype).removeprefix("torch.")}
        return {"name": f"{HUB_PREFIX}{self.name}", **about, "question": VQA_SCORE_QUESTION, "answer": ANSWER}

    @torch.inference_mode()
    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        """If the tokenizer splits the word, P of its first piece."""
        first_id, scores = self.processor.tokenizer.encode(ANSWER, add_special_tokens=False)[0], []
        how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        for path, text in zip(images, texts, strict=True):
            question = {"type": "text", "text": VQA_SCORE_QUESTION.format(text=text)}
            chat = [{"role": "user", "content": [{"type": "image", "image": read_image(path)}, question]}]
            inputs = self.processor.apply_chat_template(chat, **how).to(self.model.device)
            logits_V = self.model(**inputs).logits[0, -1].float()
            scores.append(logits_V.softmax(dim=-1)[first_id].item())
        return scores


class T2VScorer:
    """CLIP-FlanT5, the model of published VQAScores, through t2v-metrics.

    t2v-metrics pins old versions of torch and transformers, so it runs as a worker process (t2v_worker.py) in an
    environment of its own, started for the first scores and then kept.
    """

    batch_size = 16  # as in the reference script

    def __init__(self, model: str, *, python: Path | None = None) -> None:
        self.model = model
        self.python = python or Path(os.environ.get(PYTHON_VARIABLE, "t2v/bin/python"))

    @cached_property
    def description(self) -> Mapping[str, Any]:
        query = "from importlib.metadata import version; print(version('t2v-metrics'))"
        try:
            asked = subprocess.run([self.python, "-c", query], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FileNotFoundError(
                f"{self.model} needs t2v-metrics, got none at {self.python}; `{INSTALL}` and give --scorer-python "
                f"t2v/bin/python (or set {PYTHON_VARIABLE})"
            ) from error
        return {"name": self.model, "t2v-metrics": asked.stdout.strip()}

    @cached_property
    def process(self) -> subprocess.Popen[str]:
        assert self.description, "asked first, because it names what is missing"
        command = [str(self.python), str(WORKER), self.model]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, images: Sequence[Path], texts: Sequence[str]) -> list[float]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None, "both are pipes"
        request = {"images": [str(path.resolve()) for path in images], "texts": list(texts)}
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ValueError(
                f"t2v-metrics at {self.python} must run, got exit code {self.process.wait()}; see its messages above"
            )
        return [float(score) for score in json.loads(answer)]
