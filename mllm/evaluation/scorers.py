"""What says how well a picture shows a text. One interface, three kinds, chosen by a word:

    self              the model that is measured, by its own P("yes"); or another model of this toolkit
    hf:NAME           any image-text model of transformers, by its P("Yes") (mllm/evaluation/scorers.py)
    clip-flant5-xxl   the one of published numbers, in its own environment (mllm/evaluation/scorers.py)

Knows no benchmark.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.checkpoint import choose_device
from mllm.evaluation.protocol import Answered, model_fingerprint
from mllm.files import as_line, drop_torn_line, read_lines
from mllm.pipeline import BATCH_SIZE, GENAI_QUESTION, Pipeline
from tokenizer.images import open_image, to_rgb

T2V_MODELS = ("clip-flant5-xxl", "clip-flant5-xl")
HUB_PREFIX = "hf:"


class ImageTextScorer(Protocol):
    """Scores pairs of a picture and a text."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Name, version and question: what decides the scores, for the result. Has `name`."""
        ...

    @property
    def batch_size(self) -> int:
        """How many pairs it likes at once."""
        ...

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        """A score from 0 to 1 for each pair."""
        ...


def find_scorer(name: str, *, model: str | None, device: str | None, python: Path | None) -> ImageTextScorer:
    """The scorer that a person named.

    Args:
        model: folder of the model for "self"; None is the bundled one.
        python: interpreter of the environment that t2v-metrics is installed in.
    """
    if name == "self":
        pass  # MERGED

        return SelfScorer.load(model, device=device)
    if name.startswith(HUB_PREFIX):
        pass  # MERGED

        return HubScorer.load(name.removeprefix(HUB_PREFIX), device=device)
    if name in T2V_MODELS:
        pass  # MERGED

        return T2VScorer(name, python=python)
    raise ValueError(f"there is no scorer {name!r}; use self, {HUB_PREFIX}NAME, {' or '.join(T2V_MODELS)}")


# Any image-text model of transformers as scorer of pictures: P("Yes") as the first word of its answer to VQAScore's
# question (Lin et al. 2024). Knows no model by name; the chat template of the model's processor frames the question.
#
# Letters: V text vocabulary.


ANSWER = "Yes"


@dataclass(frozen=True, slots=True)
class HubScorer:
    """An `ImageTextScorer`."""

    name: str
    model: nn.Module
    processor: Any
    batch_size: int = 1  # models differ in how they pad pictures, so each pair goes alone

    @classmethod
    def load(cls, name: str, *, device: str | None) -> HubScorer:
        """A model from a folder or the hub."""
        place = choose_device(device)
        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} is no image-text model that transformers can load: found {type(error).__name__}; give a "
                "folder or a hub id of one, as hf:NAME"
            ) from error
        return cls(name, model.eval().to(place), processor)

    @property
    def description(self) -> Mapping[str, Any]:
        return {
            "name": f"hf:{self.name}",
            "transformers": transformers.__version__,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "question": GENAI_QUESTION,
            "answer": ANSWER,
        }

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        return [self.score(path, text) for path, text in zip(pictures, texts, strict=True)]

    @torch.inference_mode()
    def score(self, picture: Path, text: str) -> float:
        """P("Yes") of one pair; of a word in pieces, that of its first piece."""
        image, question = to_rgb(open_image(picture)), GENAI_QUESTION.format(text=text)
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        logits_V = self.model(**inputs).logits[0, -1].float()
        first_id = self.processor.tokenizer.encode(ANSWER, add_special_tokens=False)[0]
        return logits_V.softmax(dim=-1)[first_id].item()


# A model of this toolkit as scorer of pictures: its own P("yes"), no second model.


@dataclass(frozen=True, slots=True)
class SelfScorer:
    """An `ImageTextScorer`."""

    pipeline: Pipeline
    batch_size: int = BATCH_SIZE

    @classmethod
    def load(cls, folder: str | None, *, device: str | None) -> SelfScorer:
        return cls(Pipeline.load(folder, **({} if device is None else {"device": device})))

    @property
    def description(self) -> Mapping[str, Any]:
        return {
            "name": "self",
            "fingerprint": model_fingerprint(self.pipeline.model),
            "dtype": str(self.pipeline.model.dtype).removeprefix("torch."),
            "question": self.pipeline.question_form,
        }

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        return self.pipeline.judge([open_image(path) for path in pictures], texts)


# CLIP-FlanT5 as scorer of pictures, the one of published VQAScores, through t2v-metrics in an environment of its own.
#
# t2v-metrics pins old versions of torch and transformers, so it runs as another process (t2v_worker.py) whose
# interpreter is given by a person. In: file names and texts, as lines to that process. Out: its scores.


WORKER = Path(__file__).with_name("t2v_worker.py")
PYTHON_VARIABLE = "T2V_PYTHON"
INSTALL = "python3.10 -m venv t2v && t2v/bin/pip install -r scripts/requirements-t2v.txt"
T2V_BATCH_SIZE = 16  # of the reference script


class T2VScorer:
    """An `ImageTextScorer`. The other process is started when the first scores are wanted and then kept."""

    batch_size = T2V_BATCH_SIZE

    def __init__(self, model: str, *, python: Path | None = None) -> None:
        self.model = model
        self.python = python or Path(os.environ.get(PYTHON_VARIABLE, "t2v/bin/python"))
        self.process: subprocess.Popen[str] | None = None

    @cached_property
    def version(self) -> str:
        """The version of t2v-metrics that is installed there."""
        query = "from importlib.metadata import version; print(version('t2v-metrics'))"
        try:
            asked = subprocess.run([self.python, "-c", query], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FileNotFoundError(
                f"{self.model} needs t2v-metrics in its own environment: found none at {self.python}; install it with "
                f"`{INSTALL}` and give --scorer-python t2v/bin/python (or set {PYTHON_VARIABLE})"
            ) from error
        return asked.stdout.strip()

    @property
    def description(self) -> Mapping[str, Any]:
        return {"name": self.model, "t2v-metrics": self.version}

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        process = self.process or self.start()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        request = {"images": [str(path.resolve()) for path in pictures], "texts": list(texts)}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ValueError(
                f"t2v-metrics stopped: found no answer from {self.python} (exit code {process.wait()}); its messages "
                "are above, mend that environment and score again to go on"
            )
        return [float(score) for score in json.loads(answer)]

    def start(self) -> subprocess.Popen[str]:
        """The other process; its messages go to our error output."""
        assert self.version, "asked first, because it says clearly what is missing"
        words = [str(self.python), str(WORKER), self.model]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self.process

    def close(self) -> None:
        """End the other process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


# Score the pictures of a run, batch by batch, so that a stopped scoring goes on where it was.
#
# In: answered items with pictures, a scorer, a folder. Out: one score per item; they are kept in a file of the scorer's
# name, each with the hash of the picture it is about, so a picture that was drawn anew is scored anew.


def score_pictures(answered: Sequence[Answered], scorer: ImageTextScorer, folder: Path | None) -> list[float]:
    """How well each picture shows its prompt."""
    about = json.dumps(dict(scorer.description), sort_keys=True)
    file = None if folder is None else folder / f"scores-{hashlib.sha256(about.encode()).hexdigest()[:12]}.jsonl"
    names = [name_of(item) for item in answered]
    known = read_scores(file)
    missing = [n for n, name in enumerate(names) if name not in known]
    for start in tqdm(range(0, len(missing), scorer.batch_size), desc="scores", disable=not missing):
        batch = missing[start : start + scorer.batch_size]
        found = scorer([picture_of(answered[n]) for n in batch], [answered[n].item.prompt for n in batch])
        for n, score in zip(batch, found, strict=True):
            known[names[n]] = score
        if file is not None:
            with file.open("a", encoding="utf-8") as lines:
                lines.writelines(as_line({"picture": names[n], "score": known[names[n]]}) for n in batch)
    return [known[name] for name in names]


def read_scores(file: Path | None) -> dict[str, float]:
    """Scores so far, by picture and prompt."""
    if file is None or not file.is_file():
        return {}
    drop_torn_line(file)
    return {line.record["picture"]: line.record["score"] for line in read_lines(file)}


def picture_of(answered: Answered) -> Path:
    """The file of the picture."""
    assert answered.image is not None, f"{answered.where} has no picture, but its benchmark draws"
    return answered.image


def name_of(answered: Answered) -> str:
    """A hash of the picture's content and its prompt."""
    digest = hashlib.sha256(picture_of(answered).read_bytes())
    digest.update(answered.item.prompt.encode())
    return digest.hexdigest()[:16]
