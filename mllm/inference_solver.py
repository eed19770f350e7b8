"""Three jobs, one call: draw from words, describe an image, turn an image into another (Lumina-mGPT's interface).

`FlexARInferenceSolver(model_path, precision, target_size).generate(images, qas, max_gen_len, temperature)` returns
`(text, images)`, with `<|image|>` in the text where an image stands. The shape is that of the solver of
arXiv:2408.02657; what differs is listed in docs/inference_solver.md. A thin face of mllm/pipeline.py: it decodes,
samples and loads nothing itself.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers.generation.streamers import TextStreamer

from mllm.conversation import (
    AnswerKind,
    CodesPart,
    ImagePart,
    Message,
    Mode,
    Part,
    Role,
    TextPart,
    UnconditionalPart,
    check_mode,
)
from mllm.engine.loop import DecodingEvent, ImageEvent, TextEvent
from mllm.engine.request import FinishReason, Generated, Row, TextProcessor, text_settings
from mllm.pipeline import Pipeline
from mllm.processor import NUM_SEEDS, ImageSource, Overrides, check_task, load_image
from mllm.sampling import SamplingConfig
from mllm.sequence import Size, TokenSequence, supported_sizes

# How the solver samples: guidance and filters for images and for text, as one value without state.
#
# In: the arguments of `create_logits_processor`. Out: sampling settings laid over a checkpoint's own. A plan is frozen,
# cheap to build, and serves any number of calls and threads; everything that changes lives in the run.


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingPlan:
    """What a call of the solver does to probabilities."""

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
        for name in ("image_top_k", "text_top_k"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 0):
                raise ValueError(f"{name} is no number of choices: found {value!r}; use a whole number, 0 for off")
        if self.uncond not in ("all", "text"):
            raise ValueError(f"unknown uncond: found {self.uncond!r}; use 'all' or 'text'")
        self.image(SamplingConfig(), temperature=1.0)  # refuses the rest

    def image(self, base: SamplingConfig, *, temperature: float) -> SamplingConfig:
        """Settings for the codes of images."""
        return replace(
            base,
            guidance=float(self.cfg),
            top_k=int(self.image_top_k) if self.image_top_k else None,
            top_p=self.image_top_p,
            temperature=self.image_temperature or temperature,
            greedy=False,
        )

    def text(self, *, temperature: float) -> SamplingConfig:
        """Settings for text tokens."""
        return SamplingConfig(top_k=int(self.text_top_k) if self.text_top_k else None, temperature=temperature)


# What a question of the solver asks for: its words, recognised by the fixed sentences of Lumina-mGPT's tasks.
#
# In: the last question as typed, with its placeholders. Out: a task, the kind of answer, the words that go to the model
# and the size that they name. Every other question is one for the model to answer as it likes. Knows no model.


PLACEHOLDER = "<|image|>"
ESCAPED = "\\" + PLACEHOLDER
"""How a user writes the placeholder itself."""


@dataclass(frozen=True, slots=True)
class SolverTask:
    """A kind of question."""

    name: str
    pattern: re.Pattern[str]
    """Of the words without placeholders; the groups `width`, `height` and `words` mean what they say."""
    mode: Mode
    capabilities: tuple[str, ...]
    """Tasks of a checkpoint, any of which will do (see `MLLMConfig.tasks`)."""
    num_images: int


@dataclass(frozen=True, slots=True)
class Question:
    """The last question, understood."""

    mode: Mode
    capabilities: tuple[str, ...]
    size: Size | None = None
    words: str | None = None  # in place of the whole text; None: as typed


def _task(name: str, pattern: str, mode: Mode, *capabilities: str, num_images: int = 1) -> SolverTask:
    return SolverTask(name, re.compile(pattern, re.DOTALL), mode, capabilities, num_images)


TASKS = (
    _task(
        "text to image",
        r"Generate an image of (?P<width>\d+) ?x ?(?P<height>\d+) according to the following prompt:\s*(?P<words>.*)",
        "image",
        "draw",
        num_images=0,
    ),
    _task("description", r"Describe the image in detail\.?", "text", "describe", "ask"),
    _task("depth", r"Depth estimation\.?", "image", "depth"),
    # "Segmentic" is how the published task is spelled
    _task("segmentation", r"(Segmentic|Semantic) segmentation\.?", "image", "segment"),
    _task("surface normals", r"Surface normal estimation\.?", "image", "normal"),
    _task("pose", r"Human pose estimation\.?", "image", "pose"),
    _task("detection", r"Detect: .+", "image", "detect"),
    _task(
        "condition to image",
        r"Generate an image according to the provided image, and according to the following caption:\s*.+",
        "image",
        "condition",
    ),
)
REWORDED = {"segmentation": "Semantic segmentation."}
"""Words of a task as models are trained on them here, where the published ones differ."""
DEFAULT_TASKS: dict[Mode, tuple[str, ...]] = {
    "text": ("ask", "describe"),
    "image": ("draw", "edit"),
    "interleaved": ("chat",),
}


def understand(text: str, mode: Mode | None) -> Question:
    """What a question asks for; a mode that is given goes before what its words suggest."""
    words, num_images = split_placeholders(text)
    bare = " ".join(word.strip() for word in words if word.strip())
    for task in TASKS:
        found = task.pattern.fullmatch(bare)
        if not found or task.num_images != num_images or mode not in (None, task.mode):
            continue
        groups = found.groupdict()
        size = (int(groups["width"]), int(groups["height"])) if groups.get("width") else None
        return Question(task.mode, task.capabilities, size, groups.get("words") or REWORDED.get(task.name))
    mode = mode or "interleaved"
    if mode == "image":
        return Question(mode, ("edit",) if num_images else ("draw",))
    return Question(mode, DEFAULT_TASKS[mode])


def split_placeholders(text: str) -> tuple[list[str], int]:
    """The words around the placeholders (one more piece than there are placeholders), escapes resolved."""
    pieces = re.split(r"(?<!\\)" + re.escape(PLACEHOLDER), text)
    return [piece.replace(ESCAPED, PLACEHOLDER) for piece in pieces], len(pieces) - 1


# Questions and answers of the solver, with placeholders, to messages with pictures in their places.
#
# In: images in any form and `qas`, a list of [question, answer]. Out: messages. The rules of `<|image|>` are here, as
# ValueErrors: as many placeholders as images, filled in reading order; without any placeholder the images go in front
# of
# the first question; only the last answer is open. Knows no model.


SolverImage: TypeAlias = ImageSource | bytes | Tensor | CodesPart
"""A picture, its file, the bytes of the file, pixels (3, H, W) as uint8 or in [0, 1], or codes of an earlier answer."""
Turns: TypeAlias = Sequence[Sequence[Any]]
"""[[question, answer], ...]; the last answer is None."""


def build_messages(images: Sequence[SolverImage], qas: Turns, *, last_words: str | None = None) -> list[Message]:
    """The dialogue, ending with the open question.

    Args:
        last_words: in place of the words of the last question; its placeholders stay.
    """
    check_turns(qas)
    numbers = [split_placeholders(text)[1] for turn in qas for text in turn if text is not None]
    lead = len(images) if not sum(numbers) else 0
    if not lead and sum(numbers) != len(images):
        raise ValueError(
            f"placeholders and images do not match: found {sum(numbers)} of {PLACEHOLDER} (per question and answer: "
            f"{', '.join(map(str, numbers))}) and {len(images)} images; use one per image, or {ESCAPED} for the text"
        )
    parts = iter([read_image(image) for image in images])
    messages: list[Message] = []
    for index, (question, answer) in enumerate(qas):
        words = last_words if index == len(qas) - 1 else None
        front = [next(parts) for _ in range(lead)] if index == 0 else []
        messages.append(Message("user", (*front, *fill(question, parts, role="user", words=words))))
        if answer is not None:
            messages.append(Message("assistant", tuple(fill(answer, parts, role="assistant"))))
    return messages


def check_turns(qas: Turns) -> None:
    """Pairs of a question and an answer, of which only the last is open."""
    if isinstance(qas, str) or not qas:
        raise ValueError(f"qas is no dialogue: found {qas!r}; pass [[question, None]]")
    for number, turn in enumerate(qas, start=1):
        is_pair = not isinstance(turn, str) and len(turn) == 2 and isinstance(turn[0], str)
        if not is_pair or not isinstance(turn[1], str | None):
            raise ValueError(f"turn {number} is no question with its answer: found {turn!r}; pass [question, answer]")
        if (turn[1] is None) != (number == len(qas)):
            found = "no answer" if turn[1] is None else "a finished answer"
            raise ValueError(
                f"only the last answer is open: found {found} in turn {number} of {len(qas)}; "
                "give every earlier answer, and None as the last one"
            )


def fill(text: str, images: Iterator[Part], *, role: Role, words: str | None = None) -> list[Part]:
    """Parts of one text. Pictures that end a question stand before its words, where models are trained to see them."""
    pieces, num_images = split_placeholders(text)
    pictures = [next(images) for _ in range(num_images)]
    if words is not None:
        pieces = [words, *[""] * num_images]
    pieces = [piece.strip() for piece in pieces]
    if role == "user" and not any(pieces[1:]):
        return [*pictures, *([TextPart(pieces[0])] if pieces[0] else [])]
    parts: list[Part] = [TextPart(pieces[0])] if pieces[0] else []
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        parts += [picture, *([TextPart(piece)] if piece else [])]
    return parts or [TextPart("")]


def read_image(image: Any) -> Part:
    """A picture in any form."""
    match image:
        case CodesPart():
            return image
        case bytes():
            try:
                return ImagePart(Image.open(io.BytesIO(image)))
            except UnidentifiedImageError as error:
                raise ValueError(
                    f"cannot read a picture: {len(image)} bytes in no known format; pass those of a PNG or JPEG file"
                ) from error
        case Tensor():
            return ImagePart(from_pixels(image))
        case Image.Image() | str() | Path():
            return ImagePart(load_image(image))
        case _:
            raise ValueError(
                f"an image is in no known form: found {type(image).__name__}; pass a PIL image, a path, bytes, "
                "a tensor (3, H, W), or codes"
            )


def from_pixels(pixels_3HW: Tensor) -> Image.Image:
    """A picture from pixels, uint8 or floating point in [0, 1]."""
    if pixels_3HW.ndim != 3 or pixels_3HW.shape[0] != 3:
        raise ValueError(f"pixels have the wrong shape: found {tuple(pixels_3HW.shape)}; pass (3, height, width)")
    if pixels_3HW.is_floating_point():
        pixels_3HW = (pixels_3HW.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels_3HW.permute(1, 2, 0).to("cpu", torch.uint8).numpy())


# A call of the solver, checked and turned into a row for the decoding loop.
#
# In: what the caller of `generate` passed. Out: a `Row`, or a ValueError. What a question asks for is found in
# mllm/inference_solver.py, what placeholders mean in mllm/inference_solver.py, how to sample in
# mllm/inference_solver.py.


LogitsProcessors = SamplingPlan | TextProcessor | Sequence[SamplingPlan | TextProcessor]


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverRequest:
    """One call."""

    images: SolverImage | list[SolverImage] | tuple[SolverImage, ...] | None
    qas: Turns
    max_gen_len: int | None
    temperature: float
    logits_processor: LogitsProcessors | None = None
    seed: int | None = None
    size: Size | None = None
    generation_mode: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.temperature, bool) or not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature has no meaning: found {self.temperature!r}; use a number above 0, or image_top_k=1 and "
                "text_top_k=1 for the most probable choice"
            )
        if self.generation_mode != "auto":
            check_mode(self.generation_mode)
        check_turns(self.qas)

    @property
    def listed_images(self) -> list[SolverImage]:
        """The images, however they were passed."""
        if self.images is None:
            return []
        return list(self.images) if isinstance(self.images, list | tuple) else [self.images]

    @property
    def processors(self) -> list[SamplingPlan | TextProcessor]:
        """Plans and text processors, however they were passed."""
        given = self.logits_processor
        listed = [] if given is None else list(given) if isinstance(given, Sequence) else [given]
        for item in listed:
            if not callable(item) and not isinstance(item, SamplingPlan):
                raise ValueError(
                    f"logits_processor holds what is none: found {type(item).__name__}; pass what "
                    "create_logits_processor returns, or logits processors of transformers"
                )
        return listed

    def understand(self) -> Question:
        """What the last question asks for, with the size of this call."""
        mode: Any = None if self.generation_mode == "auto" else self.generation_mode
        question = understand(self.qas[-1][0], mode)
        if self.size is not None and question.size not in (None, tuple(self.size)):
            raise ValueError(
                f"two sizes are asked for: found {question.size[0]}x{question.size[1]} in the question and "
                f"{self.size[0]}x{self.size[1]} as size; give one"
            )
        return question if self.size is None else replace(question, size=tuple(self.size))


def build_row(pipeline: Pipeline, request: SolverRequest) -> Row:
    """The row that answers the call."""
    question = request.understand()
    task = check_task(pipeline.tasks, *question.capabilities)
    messages = build_messages(request.listed_images, request.qas, last_words=question.words)
    messages = pipeline.processor.encode_chat(messages)
    plans = [item for item in request.processors if isinstance(item, SamplingPlan)]
    overrides: Overrides = {"seed": int(torch.randint(NUM_SEEDS, ())) if request.seed is None else request.seed}
    if request.max_gen_len is not None:
        overrides["max_new_tokens"] = request.max_gen_len
    if plans and question.mode != "text":
        overrides["guidance"] = float(plans[-1].cfg)
    row = pipeline.build_row(messages, question.mode, task=task, size=question.size, overrides=overrides)
    row = sample_as_planned(row, plans[-1] if plans else None, temperature=request.temperature, task=task, of=pipeline)
    if plans and plans[-1].uncond == "all" and row.is_guided:
        row = replace(row, unconditional=nothing_but_the_answer(row, pipeline))
    processors = tuple(item for item in request.processors if not isinstance(item, SamplingPlan))
    return replace(row, text_processors=processors)


def sample_as_planned(row: Row, plan: SamplingPlan | None, *, temperature: float, task: str, of: Pipeline) -> Row:
    """The row with the settings of a plan; without one they are the checkpoint's, at the temperature of the call."""
    if plan is not None:
        return replace(
            row, image=plan.image(row.image, temperature=temperature), text=plan.text(temperature=temperature)
        )
    stored, given = of.rows.stored_settings, {"temperature": temperature}
    text = text_settings(of.rows.generation_config, stored.get(f"{task}_text", {}), given)
    return replace(row, image=replace(row.image, temperature=temperature, greedy=False), text=text)


def nothing_but_the_answer(row: Row, pipeline: Pipeline) -> TokenSequence:
    """The prompt of guidance without the dialogue: no history, no input image, no words."""
    answer: AnswerKind | None = "image" if row.mode == "image" else None
    nothing = [Message("user", (UnconditionalPart(),))]
    return pipeline.processor.build(nothing, add_generation_prompt=True, answer=answer)


PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class SolverAnswer(tuple[str, list[Image.Image]]):
    """`(text, images)`, which also knows how it came about."""

    finish_reason: FinishReason
    truncated: bool  # cut off by the budget, or an image for which no room was left
    tokens: list[int]  # all that was generated; image positions hold the model's image token
    codes: list[CodesPart]  # of the images; may be passed back as images without loss
    seed: int
    seconds: float  # of the whole call

    @classmethod
    def build(cls, text: str, images: list[Image.Image], *, generated: Generated, seconds: float) -> SolverAnswer:
        answer = cls((text, images))
        answer.finish_reason, answer.seed, answer.seconds = generated.finish_reason, generated.seed, seconds
        answer.truncated = generated.finish_reason == "length" or generated.image_refused
        answer.tokens, answer.codes = generated.token_ids, generated.images
        return answer

    @property
    def text(self) -> str:
        return self[0]

    @property
    def images(self) -> list[Image.Image]:
        return self[1]


class FlexARInferenceSolver:
    """One model, ready to answer."""

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
            target_size: side of the pictures in pixels, one that the checkpoint has; None is its default.
            load_options: of `Pipeline.load`, such as `device` and `quantization`.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision: found {precision!r}; use one of {', '.join(PRECISIONS)}")
        self.pipeline = Pipeline.load(model_path, **{"dtype": PRECISIONS[precision], **load_options})
        sides = [width for width, height in supported_sizes(self.pipeline.config) if width == height]
        if target_size is not None and target_size not in sides:
            raise ValueError(
                f"this model has no pictures of {target_size}x{target_size}; use target_size "
                f"{' or '.join(map(str, sides))}"
            )
        self.target_size = target_size or self.pipeline.config.image_size

    def create_logits_processor(
        self, cfg: float = 3.0, image_top_k: int | None = 2000, text_top_k: int | None = 10, **options: Any
    ) -> SamplingPlan:
        """How to sample: guidance, and how many choices of an image code and of a text token; 0 is all of them.

        `options` are `image_top_p`, `image_temperature` and `uncond` of mllm/inference_solver.py.
        """
        return SamplingPlan(cfg=cfg, image_top_k=image_top_k, text_top_k=text_top_k, **options)

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
        seed: int | None = None,
        size: Size | None = None,
        generation_mode: Literal["auto"] | Mode = "auto",
        n: int = 1,
    ) -> Any:
        """Answer the last question: a `SolverAnswer`, which is `(text, images)`; for `n` above 1 a list of them.

        Args:
            images: as many as there are `<|image|>` in the dialogue, in reading order; without one, they go first.
            qas: [[question, answer], ...], the last answer None.
            max_gen_len: most new tokens, image positions included; None: as many as the answer takes.
            logits_processor: from `create_logits_processor`, and logits processors of transformers, for text only.
            streamer: gets text tokens; its `on_image_progress(done, total)`, if it has one, the positions of an image.
            seed: of the first answer, the others follow; None: from torch's random state.
            size: (width, height); also read from "Generate an image of {W}x{H} according to ...".
            generation_mode: "auto": what the question asks for, else what the model likes.
        """
        if n < 1 or (n > 1 and streamer is not None):
            raise ValueError(f"n is no number of answers: found {n}; use 1 or more, and 1 with a streamer")
        started = time.monotonic()
        request = SolverRequest(
            images=images,
            qas=qas,
            max_gen_len=max_gen_len,
            temperature=temperature,
            logits_processor=logits_processor,
            seed=seed,
            size=size,
            generation_mode=generation_mode,
        )
        row = build_row(self.pipeline, request)
        results = self.run([replace(row, seed=row.seed + index) for index in range(n)], streamer)
        answers = [self.answer(generated, seconds=time.monotonic() - started) for generated in results]
        return answers[0] if n == 1 else answers

    def run(self, rows: list[Row], streamer: Any) -> list[Generated]:
        """Decode, telling a streamer."""
        if streamer is None:
            return self.pipeline.run(rows)
        image_token = self.pipeline.config.image_token_id
        prompt = [token_id for token_id in rows[0].prompt.token_ids_T.tolist() if token_id != image_token]
        streamer.put(torch.tensor([prompt]))  # as transformers does; TextStreamer can skip it
        results = self.pipeline.run(rows, on_progress=lambda event: show(event, streamer))
        streamer.end()
        return results

    def answer(self, generated: Generated, *, seconds: float) -> SolverAnswer:
        """What a person sees of a result."""
        pictures = self.pipeline.processor.images_of(generated)
        pieces = [
            PLACEHOLDER
            if isinstance(part, CodesPart)
            else self.pipeline.processor.to_text(part).replace(PLACEHOLDER, ESCAPED)
            for part in generated.parts
        ]
        text = " ".join(piece for piece in pieces if piece)
        return SolverAnswer.build(text, pictures, generated=generated, seconds=seconds)

    def decode_image(self, codes: CodesPart) -> Image.Image:
        """The picture of the codes of an answer."""
        return self.pipeline.processor.decode_images([codes])[0]

    @staticmethod
    def create_image_grid(images: Sequence[Image.Image], rows: int, cols: int) -> Image.Image:
        """One picture of many; every cell has the size of the first."""
        if not 0 < len(images) <= rows * cols:
            raise ValueError(f"the grid does not hold the images: found {len(images)} for {rows} x {cols} cells")
        width, height = images[0].size
        grid = Image.new("RGB", (cols * width, rows * height))
        for index, image in enumerate(images):
            grid.paste(image, (index % cols * width, index // cols * height))
        return grid


def show(event: DecodingEvent, streamer: Any) -> None:
    """Hand a text token or the progress of an image to a streamer."""
    match event:
        case TextEvent(token_id=token_id):
            streamer.put(torch.tensor([token_id]))
        case ImageEvent(done=done, total=total) if hasattr(streamer, "on_image_progress"):
            streamer.on_image_progress(done, total)
