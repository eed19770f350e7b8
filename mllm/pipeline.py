"""The toolkit in five calls: load a model, draw, ask, edit, chat. Pictures are PIL images, everything else is text.

The command line, the demo and the evaluation talk to this facade only. It answers one request at a time (a lock), is
deterministic for a given seed, and raises ValueError or FileNotFoundError with a sentence that a person understands.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Unpack

from PIL import Image

from mllm.best_of import candidate_seeds, check_best_of, keep_best
from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, Message, TextPart, has_image
from mllm.generation.answer_stream import AnswerStream, Done, Event, ImageDone, ImageProgress, TextDelta
from mllm.generation.loop import DecodingEvent, generate, stream
from mllm.generation.request import Generated, Row
from mllm.generation.row_builder import Overrides, RowBuilder, check_task, check_words, read_pictures
from mllm.generation.settings import image_settings, read_task_settings
from mllm.loading.model_folder import BUNDLED, find_model_folder
from mllm.loading.model_loading import LoadOptions, load_model
from mllm.looking import look
from mllm.model import MLLMForConditionalGeneration
from mllm.modes import Mode
from mllm.pictures import Picture
from mllm.processor import MLLMProcessor
from mllm.redrawing import redraw, stream_redrawn
from mllm.rehearsal import Rehearsal
from mllm.sampling import SamplingConfig
from mllm.self_judge import QuestionForm, judge_pictures
from mllm.sizes import Size, supported_sizes

__all__ = ("Done", "Event", "ImageDone", "ImageProgress", "Pipeline", "TextDelta")

MAX_ROWS = 32
"""Rows decoded together; more are done in several batches."""


OnEvent = Callable[[Event], None]


class Pipeline:
    """A loaded model. Make one with `Pipeline.load`."""

    def __init__(
        self,
        model: MLLMForConditionalGeneration,
        processor: MLLMProcessor,
        task_settings: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.rows = RowBuilder(processor, model.config, model.generation_config, task_settings or {})
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        folder: str | Path | None = None,
        **options: Any,
    ) -> Pipeline:
        """Load a model folder (or hub id); None is the bundled model.

        `options` are those of `LoadOptions` (mllm/loading/model_loading.py): device, dtype, quantization, device_map,
        embedding_context.
        """
        load = LoadOptions(**options)
        path = find_model_folder(folder)
        processor = MLLMProcessor.from_pretrained(path, device=load.place)
        settings = read_task_settings(path)
        if path == BUNDLED:
            settings.setdefault("judge", {"form": "world"})
        return cls(load_model(path, load), processor, settings)

    @property
    def config(self) -> MLLMConfig:
        return self.model.config

    @property
    def tasks(self) -> list[str] | None:
        """What this model was trained to do; None: nobody said."""
        return self.config.tasks

    @property
    def sizes(self) -> list[Size]:
        """(width, height) of the pictures it draws, the default first."""
        return supported_sizes(self.config)

    def image_settings(self, task: str) -> SamplingConfig:
        """How the checkpoint samples the codes of images in a task."""
        return image_settings(self.config, self.rows.stored_settings.get(task, {}), {})

    # ---- one request ----

    def draw(
        self,
        prompt: str,
        *,
        n: int = 1,
        best_of: int = 1,
        size: Size | None = None,
        outline: str | None = None,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[Image.Image]:
        """Pictures of what the prompt says; picture i has seed + i, kept in its `info`.

        Args:
            outline: what is where, in place of the model's own (docs/outlines.md).
            best_of: draw each picture that many times and keep the one that the model itself finds right most probably
                (mllm/best_of.py says with which seeds).
        """
        task = check_task(self.tasks, "draw")
        check_words(prompt, name="prompt", hint="say what to draw")
        messages = [Message("user", (TextPart(prompt),))]
        row = self.rows.build(messages, "image", task=task, size=size, outline=outline, overrides=overrides)
        check_best_of(best_of)
        if best_of == 1:
            return self.draw_row(row, n, on_event)
        check_task(self.tasks, "ask")
        check_count(n)
        seeds = [seed for index in range(n) for seed in candidate_seeds(row.seed + index, best_of)]
        candidates = self.draw_seeds(row, seeds, on_event)
        return keep_best(candidates, self.judge(candidates, [prompt] * len(candidates)), best_of=best_of)

    def draw_class(
        self, index: int, *, n: int = 1, on_event: OnEvent | None = None, **overrides: Unpack[Overrides]
    ) -> list[Image.Image]:
        """Pictures of a class by its number; picture i has seed + i, kept in its `info`."""
        task = check_task(self.tasks, "draw_class")
        self.config.class_token_id(index)  # refuses a number that the model does not have
        row = self.rows.build([Message("user", (ClassPart(index),))], "image", task=task, overrides=overrides)
        return self.draw_row(row, n, on_event)

    def draw_row(self, row: Row, n: int, on_event: OnEvent | None) -> list[Image.Image]:
        """`n` pictures of a row, with following seeds."""
        check_count(n)
        return self.draw_seeds(row, [row.seed + index for index in range(n)], on_event)

    def draw_seeds(self, row: Row, seeds: Sequence[int], on_event: OnEvent | None) -> list[Image.Image]:
        """A picture of a row for each seed."""
        results = self.run([replace(row, seed=seed) for seed in seeds], on_event)
        pictures = self.processor.decode_images([self.processor.images_of(result)[0] for result in results])
        for picture, result in zip(pictures, results, strict=True):
            picture.info["seed"] = result.seed
        return pictures

    def judge(
        self, pictures: Sequence[Image.Image], texts: Sequence[str], *, form: QuestionForm | None = None
    ) -> list[float]:
        """How probable the model finds it, 0 to 1, that each picture shows its text (mllm/self_judge.py).

        Args:
            form: of the question; default: the checkpoint's (`judge` in its task settings), else "genai".
        """
        check_task(self.tasks, "ask")
        with self._lock:
            return judge_pictures(self.model, self.processor, pictures, texts, form=form or self.question_form)

    @property
    def question_form(self) -> QuestionForm:
        """How this checkpoint is asked whether a picture is right."""
        return self.rows.stored_settings.get("judge", {}).get("form", "genai")

    def ask(
        self,
        images: Picture | Sequence[Picture],
        question: str,
        *,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> str:
        """The answer to a question about one or more pictures, and nothing else."""
        task = check_task(self.tasks, "ask", "describe")
        check_words(question, name="question", hint="say what you want to know")
        pictures = read_pictures(images)
        if not pictures:
            raise ValueError("no picture to look at: found none; give one or more")
        messages = [Message("user", (*pictures, TextPart(question)))]
        row = self.build_row(messages, "text", task=task, overrides=overrides)
        return self.processor.to_text(self.run([row], on_event)[0].text_ids)

    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        size: Size | None = None,
        outline: str | None = None,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> Image.Image:
        """The picture changed as told; also dense tasks, such as "Depth estimation."."""
        task = check_task(self.tasks, "edit", "depth", "segment")
        check_words(instruction, name="instruction", hint="say what to change")
        messages = [Message("user", (*read_pictures(image), TextPart(instruction)))]
        row = self.build_row(messages, "image", task=task, size=size, outline=outline, overrides=overrides)
        return self.processor.pictures_of(self.run([row], on_event)[0])[0]

    def chat(self, messages: Sequence[Any], **overrides: Unpack[Overrides]) -> Generator[Event, None, None]:
        """Answer a dialogue (messages or Hugging Face chat dicts) in text and pictures, as they come.

        The whole history goes in, pictures included; `Done.message` is the answer to append to it. Temperature, top-k
        and top-p are those of pictures. Wrong input is refused at once, not when the first event is asked for.
        """
        task = check_task(self.tasks, "chat")
        row = self.build_row(self.processor.read_chat(messages), "interleaved", task=task, overrides=overrides)
        return self.events(row)

    def answer(
        self,
        dialogues: Sequence[Sequence[Message]],
        mode: Mode,
        seeds: Sequence[int],
        *,
        size: Size | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[list[str | Image.Image]]:
        """Answer many dialogues together, for evaluation: the texts and pictures of each answer, in order.

        Args:
            size: of the pictures drawn where no picture was shown or drawn before; those that follow have its size.
        """
        task = {"text": "ask", "image": "draw", "interleaved": "chat"}[mode]
        rows = []
        for messages, seed in zip(look(dialogues, self.processor, self.run), seeds, strict=True):
            is_edit = mode == "image" and has_image(messages[-1])
            settings: Overrides = {**overrides, "seed": seed}
            first_size = None if any(map(has_image, messages)) else size
            rows.append(
                self.rows.build(messages, mode, task="edit" if is_edit else task, size=first_size, overrides=settings)
            )
        return [self.processor.to_parts(result) for result in self.run(rows)]

    # ---- decoding ----

    def build_row(self, messages: Sequence[Message], mode: Mode, **options: Any) -> Row:
        """The row that answers a dialogue (`RowBuilder.build`), its pictures looked at first."""
        (looked,) = look([messages], self.processor, self.run)
        return self.rows.build(looked, mode, **options)

    def run(
        self,
        rows: list[Row],
        on_event: OnEvent | None = None,
        *,
        on_progress: Callable[[DecodingEvent], None] | None = None,
    ) -> list[Generated]:
        """Decode rows in batches; one request at a time. `on_progress` gets events as of the decoding loop."""
        results: list[Generated] = []
        with self._lock:
            for start in range(0, len(rows), MAX_ROWS):
                batch = rows[start : start + MAX_ROWS]
                tell = on_progress or self.listener(batch, on_event)
                rehearsal = tell and Rehearsal(batch, tell)
                first = generate(self.model, batch, on_progress=rehearsal and rehearsal.hear)
                settled = redraw(batch, first, processor=self.processor, run=self.decode)
                if rehearsal is not None:
                    rehearsal.settle(settled)
                results += settled
        return results

    def decode(self, rows: list[Row]) -> list[Generated]:
        """Decode rows to their end, unheard; the caller holds the lock."""
        return generate(self.model, rows)

    def events(self, row: Row) -> Generator[Event, None, None]:
        """Decode one row, telling what happens; holds the lock until the end, or until the iterator is dropped."""
        answer = AnswerStream(self.processor)
        with self._lock:
            for event in stream_redrawn(
                row, processor=self.processor, run=self.decode, stream=partial(stream, self.model)
            ):
                yield from answer.translate(event)

    def listener(self, rows: list[Row], on_event: OnEvent | None) -> Callable[[DecodingEvent], None] | None:
        """Passes the events of all rows on, as a person sees them."""
        if on_event is None:
            return None
        answers = [AnswerStream(self.processor) for _ in rows]

        def listen(event: DecodingEvent) -> None:
            for translated in answers[event.row].translate(event):
                on_event(translated)

        return listen


def check_count(n: int) -> None:
    """Refuse what is no number of pictures."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n is no number of pictures: found {n!r}; use a whole number, 1 or more")
