"""Three jobs, one call: draw from words, describe an image, turn an image into another (Lumina-mGPT's interface).

`FlexARInferenceSolver(model_path, precision, target_size).generate(images, qas, max_gen_len, temperature)` returns
`(text, images)`, with `<|image|>` in the text where an image stands. The shape is that of the solver of
arXiv:2408.02657; what differs is listed in docs/inference_solver.md. A thin face of mllm/pipeline.py: it decodes,
samples and loads nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers.generation.streamers import TextStreamer

from mllm.conversation import CodesPart
from mllm.generation.loop import DecodingEvent, ImageEvent, TextEvent
from mllm.generation.request import FinishReason, Generated, Row
from mllm.generation.sampling_plan import SamplingPlan
from mllm.modes import Mode
from mllm.pipeline import Pipeline
from mllm.sizes import Size, supported_sizes
from mllm.solver.messages import SolverImage, Turns
from mllm.solver.rows import LogitsProcessors, SolverRequest, build_row
from mllm.solver.tasks import ESCAPED, PLACEHOLDER

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

        `options` are `image_top_p`, `image_temperature` and `uncond` of mllm/generation/sampling_plan.py.
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
        pictures = self.pipeline.processor.pictures_of(generated)
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
