"""Three jobs, one call: draw from text, describe an image, turn an image into another (Lumina-mGPT's interface).

`FlexARInferenceSolver(model_path, precision, target_size).generate(images, qas, max_gen_len, temperature)` returns
`(text, images)`, with `<|image|>` in the text where an image stands. The shape is that of the solver of
arXiv:2408.02657; what differs is listed in docs/inference_solver.md. It only translates calls for mllm/pipeline.py: it
decodes, samples and loads nothing itself.
"""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from PIL import Image
from transformers.generation.streamers import TextStreamer

from mllm.conversation import CodesPart, ImagePart, Message, Mode, Part, Role, TextPart, UnconditionalPart, check_mode
from mllm.engine.request import (
    Event,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    ImageProgress,
    LogitsProcessor,
    TextDelta,
)
from mllm.engine.settings import Overrides, check_keywords
from mllm.pipeline import NUM_RANDOM_SEEDS, Pipeline, check_count, check_task
from mllm.sampling import SamplingConfig
from mllm.sequence import Size, supported_sizes
from tokenizer.images import ImageSource, read_image

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PLACEHOLDER = "<|image|>"
ESCAPED = "\\" + PLACEHOLDER
"""How a user writes the placeholder itself."""

SolverImage: TypeAlias = ImageSource | CodesPart
"""An image in any form, or codes of an earlier answer."""
Turns: TypeAlias = Sequence[Sequence[Any]]
"""[[question, answer], ...]; the last answer is None."""


class Task(NamedTuple):
    """A kind of question, recognised by the fixed sentences of Lumina-mGPT's tasks; or one question, understood."""

    mode: Mode
    capabilities: tuple[str, ...]  # tasks of a checkpoint, any of which will do (see `MLLMConfig.tasks`)
    pattern: str = ""  # of the text without placeholders; the groups `width`, `height` and `text` mean what they say
    num_images: int = 1
    text: str | None = None  # in place of the text as typed, where models are trained on another one here
    size: Size | None = None


PROMPT = "according to the following prompt:"
CAPTION = "according to the provided image, and according to the following caption:"
TASKS = (
    Task("image", ("draw",), rf"Generate an image of (?P<width>\d+) ?x ?(?P<height>\d+) {PROMPT}\s*(?P<text>.*)", 0),
    Task("text", ("describe", "ask"), r"Describe the image in detail\.?"),
    Task("image", ("depth",), r"Depth estimation\.?"),
    # "Segmentic" is how the published task is spelled
    Task("image", ("segment",), r"(Segmentic|Semantic) segmentation\.?", text="Semantic segmentation."),
    Task("image", ("normal",), r"Surface normal estimation\.?"),
    Task("image", ("pose",), r"Human pose estimation\.?"),
    Task("image", ("detect",), r"Detect: .+"),
    Task("image", ("condition",), rf"Generate an image {CAPTION}\s*.+"),
)


@dataclass(frozen=True, slots=True)
class SolverSampling:
    """How a call samples, laid over the checkpoint's settings: a value without state, for any number of calls."""

    cfg: float = 3.0
    """Guidance of images; 1 computes no second branch."""
    image_top_k: int | None = 2000
    """Of each codebook; 0 or None is off. More than a codebook holds is off as well."""
    text_top_k: int | None = 10
    """0 or None is off."""
    image_top_p: float = 1.0
    image_temperature: float | None = None
    """None: that of the call."""
    uncond: Literal["all", "text"] = "text"
    """What guidance leaves out: the instruction (input images stay, as models are trained here), or everything."""

    def __post_init__(self) -> None:
        if self.uncond not in ("all", "text"):
            raise ValueError(f"uncond must be 'all' or 'text', got {self.uncond!r}")
        self.image(temperature=1.0), self.text(temperature=1.0)  # refuse the rest

    def image(self, *, temperature: float) -> SamplingConfig:
        chosen = {"top_k": self.image_top_k or None, "top_p": self.image_top_p}
        return SamplingConfig(guidance=float(self.cfg), temperature=self.image_temperature or temperature, **chosen)

    def text(self, *, temperature: float) -> SamplingConfig:
        return SamplingConfig(top_k=self.text_top_k or None, temperature=temperature)


LogitsProcessors = SolverSampling | LogitsProcessor | Sequence[SolverSampling | LogitsProcessor]


class SolverAnswer(tuple[str, list[Image.Image]]):
    """`(text, images)`, which also knows how it came about."""

    finish_reason: FinishReason
    truncated: bool  # cut off by the budget, or an image for which no room was left
    tokens: list[int]  # all that was generated; image positions hold the model's image token
    codes: list[CodesPart]  # of the images; may be passed back as images without loss
    seed: int
    seconds: float  # of the complete call

    @property
    def text(self) -> str:
        return self[0]

    @property
    def images(self) -> list[Image.Image]:
        return self[1]


class FlexARInferenceSolver:
    def __init__(
        self,
        model_path: str | Path | None = None,
        precision: str = "bf16",
        target_size: int | None = None,
        **load_options: Any,
    ) -> None:
        """
        Args:
            model_path: a model folder or hub id, with everything in it; None is the bundled model.
            target_size: side of the images in pixels, one that the checkpoint has; None is its default.
            load_options: of `Pipeline.load`, such as `device` and `quantization`.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.pipeline = Pipeline.load(model_path, **{"dtype": PRECISIONS[precision], **load_options})
        sides = [width for width, height in supported_sizes(self.pipeline.config) if width == height]
        if target_size is not None and target_size not in sides:
            raise ValueError(f"target_size must be {' or '.join(map(str, sides))} for this model, got {target_size}")
        self.target_size = target_size or self.pipeline.config.image_size

    def create_logits_processor(self, *settings: Any, **named: Any) -> SolverSampling:
        """How to sample: the fields of `SolverSampling`, of which guidance and the two top-k come first."""
        return SolverSampling(*settings, **named)

    def get_streamer(self) -> TextStreamer:
        """Prints text as it comes."""
        return TextStreamer(self.pipeline.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def generate(
        self,
        images: SolverImage | list[SolverImage] | tuple[SolverImage, ...] | None,
        qas: Turns,
        max_gen_len: int | None,
        temperature: float,
        logits_processor: LogitsProcessors | None = None,
        streamer: Any = None,
        *,
        n: int = 1,
        **options: Any,
    ) -> Any:
        """Answer the last question: a `SolverAnswer`, which is `(text, images)`; for `n` above 1 a list of them.

        Args:
            images: as many as there are `<|image|>` in the dialogue, in reading order; without one, they go first.
            max_gen_len: most new tokens, image positions included; None: as many as the answer takes.
            logits_processor: from `create_logits_processor`, and logits processors of transformers, for text only.
            streamer: gets text tokens; its `on_image_progress(done, total)`, if it has one, the positions of an image.
            options: `seed` of the first answer, the others follow; `size` and `generation_mode` (`build_request`).
        """
        check_count(n, name="n")
        check_keywords("generate", options, ("n", "seed", "size", "generation_mode"))
        if n > 1 and streamer is not None:
            raise ValueError(f"n must be 1 with a streamer, got {n}; leave the streamer out")
        started = time.monotonic()
        request = self.build_request(images, qas, max_gen_len, temperature, logits_processor, **options)
        results = self._run([replace(request, seed=request.seed + index) for index in range(n)], streamer)
        answers = [self._read(result, seconds=time.monotonic() - started) for result in results]
        return answers[0] if n == 1 else answers

    def build_request(
        self,
        images: SolverImage | list[SolverImage] | tuple[SolverImage, ...] | None,
        qas: Turns,
        max_gen_len: int | None,
        temperature: float,
        logits_processor: LogitsProcessors | None = None,
        *,
        seed: int | None = None,
        size: Size | None = None,
        generation_mode: Literal["auto"] | Mode = "auto",
    ) -> GenerationRequest:
        """The request that answers a call of `generate`.

        Args:
            seed: None: from torch's state.
            size: (width, height) in pixels; None: read from "Generate an image of {W}x{H} according to ...", if there.
            generation_mode: "auto": what the question asks for.
        """
        if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature must be > 0, got {temperature!r}; use image_top_k=1 and text_top_k=1 for the most "
                "probable choice"
            )
        check_turns(qas)
        asked = understand(qas[-1][0], generation_mode, size)
        task = check_task(self.pipeline.tasks, *asked.capabilities)
        listed = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
        sampling, processors = split_processors(logits_processor)
        (messages,) = self.pipeline.describe([build_messages(listed, qas, last_text=asked.text)])
        seed = int(torch.randint(NUM_RANDOM_SEEDS, ())) if seed is None else seed
        overrides: Overrides = {"seed": seed, "max_new_tokens": max_gen_len}
        if sampling and asked.mode != "text":
            overrides["guidance"] = float(sampling.cfg)
        request = self.pipeline.build_request(messages, asked.mode, task=task, size=asked.size, overrides=overrides)
        if sampling is None:  # the checkpoint's settings, at the temperature of the call
            image = replace(request.image, temperature=temperature, greedy=False)
            text = self.pipeline.requests.text_settings(task, {"temperature": temperature})
            return replace(request, image=image, text=text, logits_processors=processors)
        prompt = request.unconditional
        if sampling.uncond == "all" and request.is_guided:
            nothing, answer = [Message("user", (UnconditionalPart(),))], "image" if request.mode == "image" else None
            prompt = self.pipeline.processor.build(nothing, add_generation_prompt=True, answer=answer)
        image, text = sampling.image(temperature=temperature), sampling.text(temperature=temperature)
        return replace(request, image=image, text=text, unconditional=prompt, logits_processors=processors)

    def _run(self, requests: list[GenerationRequest], streamer: Any) -> list[GenerationResult]:
        """Decode, and pass text tokens and the progress of images to a streamer."""
        if streamer is None:
            return self.pipeline.run(requests)

        def show(event: Event) -> None:
            match event:
                case TextDelta(token_id=int(token_id)):
                    streamer.put(torch.tensor([token_id]))
                case ImageProgress(done=done, total=total) if hasattr(streamer, "on_image_progress"):
                    streamer.on_image_progress(done, total)

        prompt_T = torch.from_numpy(requests[0].prompt.token_ids_T)
        is_text_T = prompt_T != self.pipeline.config.image_token_id
        streamer.put(prompt_T[is_text_T][None])  # as transformers does; TextStreamer can skip it
        results = self.pipeline.run(requests, show)
        streamer.end()
        return results

    def _read(self, result: GenerationResult, *, seconds: float) -> SolverAnswer:
        processor = self.pipeline.processor
        pieces = [
            PLACEHOLDER if isinstance(part, CodesPart) else processor.to_text(part).replace(PLACEHOLDER, ESCAPED)
            for part in result.parts
        ]
        answer = SolverAnswer((" ".join(piece for piece in pieces if piece), processor.images_of(result)))
        answer.finish_reason, answer.seed, answer.seconds = result.finish_reason, result.seed, seconds
        answer.truncated = result.finish_reason == "length" or result.image_refused
        answer.tokens, answer.codes = result.token_ids, result.images
        return answer

    def decode_image(self, codes: CodesPart) -> Image.Image:
        return self.pipeline.processor.decode_images([codes])[0]

    @staticmethod
    def create_image_grid(images: Sequence[Image.Image], rows: int, cols: int) -> Image.Image:
        """One image of many; every cell has the size of the first."""
        if not 0 < len(images) <= rows * cols:
            raise ValueError(f"the grid must hold 1 to {rows} x {cols} images, got {len(images)}")
        width, height = images[0].size
        grid = Image.new("RGB", (cols * width, rows * height))
        for index, image in enumerate(images):
            grid.paste(image, (index % cols * width, index // cols * height))
        return grid


# ---- what is asked for ----


def understand(text: str, generation_mode: Literal["auto"] | Mode, size: Size | None = None) -> Task:
    """What a question asks for; a mode that is given goes before what its text suggests."""
    if generation_mode != "auto":
        check_mode(generation_mode)
    pieces, num_images = split_placeholders(text)
    bare = " ".join(piece.strip() for piece in pieces if piece.strip())
    for task in TASKS:
        found = re.fullmatch(task.pattern, bare, re.DOTALL)
        if not found or task.num_images != num_images or generation_mode not in ("auto", task.mode):
            continue
        groups = found.groupdict()
        asked = (int(groups["width"]), int(groups["height"])) if groups.get("width") else None
        if size is not None and asked not in (None, tuple(size)):
            raise ValueError(f"the size must be given once, got {asked} in the question and {tuple(size)} as size")
        return task._replace(size=size or asked, text=groups.get("text") or task.text)
    mode: Mode = "interleaved" if generation_mode == "auto" else generation_mode
    drawing = "edit" if num_images else "draw"
    return Task(mode, {"text": ("ask", "describe"), "image": (drawing,)}.get(mode, ("chat",)), size=size)


def split_processors(given: LogitsProcessors | None) -> tuple[SolverSampling | None, tuple[LogitsProcessor, ...]]:
    """Sampling settings (the last ones) and logits processors for text, however they were passed."""
    listed = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
    samplings = [item for item in listed if isinstance(item, SolverSampling)]
    others = tuple(item for item in listed if not isinstance(item, SolverSampling))
    if wrong := [type(item).__name__ for item in others if not callable(item)]:
        raise ValueError(
            "logits_processor must hold what create_logits_processor returns, or logits processors of transformers, "
            f"got {wrong[0]}"
        )
    return samplings[-1] if samplings else None, others


# ---- questions and answers with placeholders to messages with images in their places ----


def build_messages(images: Sequence[SolverImage], qas: Turns, *, last_text: str | None = None) -> list[Message]:
    """The dialogue, ending with the open question: as many placeholders as images, filled in reading order; without any
    placeholder the images go in front of the first question. `last_text`: in place of the text of the last question;
    its placeholders stay."""
    check_turns(qas)
    counts = [split_placeholders(text)[1] for turn in qas for text in turn if text is not None]
    if not sum(counts):
        (question, answer), *later = qas
        qas = [[PLACEHOLDER * len(images) + question, answer], *later]
    elif sum(counts) != len(images):
        raise ValueError(
            f"placeholders {PLACEHOLDER} must be as many as images, got {sum(counts)} (per question and answer: "
            f"{', '.join(map(str, counts))}) for {len(images)}; use one per image, or {ESCAPED} for the text"
        )
    parts = iter([image if isinstance(image, CodesPart) else ImagePart(read_image(image)) for image in images])
    messages: list[Message] = []
    for index, (question, answer) in enumerate(qas):
        text = last_text if index == len(qas) - 1 else None
        messages.append(Message("user", tuple(fill(question, parts, role="user", text=text))))
        if answer is not None:
            messages.append(Message("assistant", tuple(fill(answer, parts, role="assistant"))))
    return messages


def check_turns(qas: Turns) -> None:
    """Pairs of a question and an answer, of which only the last is open."""
    if isinstance(qas, str) or not isinstance(qas, Sequence) or not qas:
        raise ValueError(f"qas must be a list of [question, answer], got {qas!r}; pass [[question, None]]")
    for number, turn in enumerate(qas, start=1):
        is_pair = not isinstance(turn, str) and len(turn) == 2 and isinstance(turn[0], str)
        if not is_pair or not isinstance(turn[1], str | None) or (turn[1] is None) != (number == len(qas)):
            raise ValueError(
                f"turns must be [question, answer] and the last one [question, None], got {turn!r} as turn {number} of "
                f"{len(qas)}; correct it"
            )


def split_placeholders(text: str) -> tuple[list[str], int]:
    """The text around the placeholders (one more piece than there are placeholders), escapes resolved."""
    pieces = re.split(r"(?<!\\)" + re.escape(PLACEHOLDER), text)
    return [piece.replace(ESCAPED, PLACEHOLDER) for piece in pieces], len(pieces) - 1


def fill(question: str, images: Iterator[Part], *, role: Role, text: str | None = None) -> list[Part]:
    """Parts of one text. Images that end a question stand before its text, where models are trained to see them."""
    pieces, num_images = split_placeholders(question)
    if text is not None:
        pieces = [text, *[""] * num_images]
    texts = [[TextPart(piece.strip())] if piece.strip() else [] for piece in pieces]
    shown = [next(images) for _ in range(num_images)]
    if role == "user" and not any(texts[1:]):
        return [*shown, *texts[0]]
    parts: list[Part] = [*texts[0]]
    for image, piece in zip(shown, texts[1:], strict=True):
        parts += [image, *piece]
    return parts or [TextPart("")]
