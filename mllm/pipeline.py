"""The toolkit in five calls: load a model, draw, ask, edit, chat. Images are PIL images, everything else is text.

The command line, the demo and the evaluation talk to this facade only. Threads may share a pipeline: their requests are
decoded together. It is deterministic for a given seed, and raises ValueError or FileNotFoundError with a sentence that
a person understands.
Decoding is in mllm/engine; here requests are built from dialogues, events are decoded to text and images, and a model
that plans its images has them described: before it answers about an image, and to check one that it drew.
"""

import logging
import math
import re
import secrets
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeVar, Unpack, get_args

import numpy as np
import torch
from PIL import Image

from mllm.checkpoint import LoadOptions, find_model_folder, load_model
from mllm.config import MLLMConfig
from mllm.conversation import (
    AnswerKind,
    ClassPart,
    CodesPart,
    ImagePart,
    Message,
    Mode,
    Part,
    TextPart,
    from_chat,
    has_image,
    neutralise,
    possible_mode,
    unconditional,
)
from mllm.engine.loop import Engine
from mllm.engine.rejection import Verdict, stream_accepted
from mllm.engine.request import (
    NUM_SEEDS,
    PLAN_BUDGET,
    Done,
    Event,
    Failed,
    ForcedCodes,
    GenerationRequest,
    GenerationResult,
    ImageDone,
    ImagePreview,
    ImageProgress,
    TextDelta,
)
from mllm.engine.settings import (
    SAMPLING_NAMES,
    Overrides,
    RequestBuilder,
    as_integer,
    check_keywords,
    given_settings,
    read_task_settings,
    takes_overrides,
)
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor, collate
from mllm.sampling import SamplingConfig
from mllm.sequence import (
    IGNORED,
    MOST_NAMED_SIZES,
    Grid,
    ImageLayout,
    Size,
    TokenSequence,
    extend_sequence,
    grid_of,
    supported_sizes,
    take,
)
from mllm.vocabulary import decode_text, encode_text
from tokenizer.images import ImageProcessor, ImageSource, read_image

__all__ = ("Done", "Event", "ImageDone", "ImagePreview", "ImageProgress", "Pipeline", "Planner", "TextDelta")

logger = logging.getLogger(__name__)

MAX_REQUESTS = 32
"""Images that are scored together."""
NUM_RANDOM_SEEDS = 2**31
"""A seed that nobody gave is 0 to one less."""
STRIDE = 1_000_003
"""Between the seeds of best-of candidates: larger than the images of any benchmark, and prime, so that seeds stay apart
where 32 bits of them count."""
VQA_SCORE_QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
"""VQAScore's (Lin et al. 2024)."""

DECLINE_BUDGET = 64
"""Tokens of an answer that is only asked for to see whether it is an image, for which this leaves no room."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

Side = Literal["left", "right", "top", "bottom", "all"]
SIDES: tuple[Side, ...] = get_args(Side)
"""Edges that an image can be extended beyond."""
OnEvent = Callable[[Event], None]
Result = TypeVar("Result")
Task = Generator[GenerationRequest, list[int], Result]
"""Yields what must be decoded before it can go on, and is sent the text ids of that."""
Questions = Callable[[str], Sequence[tuple[str, str]]]
"""A prompt to questions about an image of it, each with the answer that the image should get."""


class Planner(Protocol):
    """What a checkpoint's plans mean, and what its images are checked by; made of the config, which names its class as
    `planner`."""

    name: str
    sure: float
    unsure: float
    known: float
    unknown: float
    certain: float
    """Scores (`Pipeline.score`) of images without a plan: from `sure` on a changed image stands, from `unsure` on one
    that was drawn, and from `known` on a detour may begin with an image. Below `unknown` the model does not know what
    it was asked for, unless the name that it gives to the image has at least the probability `certain`."""
    temperature: float
    """Of the candidates for an image that does not stand."""
    describes: Sequence[str]
    """Questions about an image that is to be changed."""

    def __init__(self, config: MLLMConfig) -> None: ...

    def can_check(self, plan: str) -> bool:
        """Whether an image can be compared with this plan."""

    def agrees(self, plan: str, description: str | None) -> bool:
        """Whether what the model sees in an image is what its plan said."""

    def declines(self, words: str) -> bool:
        """Whether an answer in words says that something cannot be drawn."""

    def questions(self, prompt: str) -> Sequence[tuple[str, str]]:
        """What to ask about an image of a prompt, each with the answer that a right image gets; the first what it
        shows."""

    def draft(self, prompt: str) -> str:
        """A guess of the plan of a prompt, and of an image without one (empty); it decides how long the plan takes,
        never what it says."""

    def detours(self, prompt: str) -> Sequence[tuple[str, str]]:
        """Other ways to an image: a prompt of another image, and the change of that. Without any nothing is checked by
        its score."""

    def changed(self, words: str, seen: Sequence[str]) -> Sequence[str]:
        """Prompts of what a change makes of an image, by the answers to what `describes` asks; any of them is right.
        Without any the words ask for no change that can be checked."""


class Goal(NamedTuple):
    """What the last message of a dialogue asks for."""

    words: str
    image: CodesPart | None  # that is to be changed


class Pipeline:
    """A loaded model. Make one with `Pipeline.load`."""

    def __init__(
        self,
        model: MLLMForConditionalGeneration,
        processor: MLLMProcessor,
        task_settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        compile: bool = False,
    ) -> None:
        self.model, self.processor, self.compile = model.eval(), processor, compile
        self.requests = RequestBuilder(model.config, model.generation_config, task_settings or {})
        self.planner = load_planner(model.config)
        self._engine: Engine | None = None
        self._lock = Lock()

    @property
    def engine(self) -> Engine:
        """Decodes the requests of all threads, and remembers beginnings of prompts; the model's weights must not change
        meanwhile. It is made for the first request."""
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self.model, compile=self.compile)
            return self._engine

    @classmethod
    def load(cls, folder: str | Path | None = None, *, compile: bool = False, **options: Any) -> Self:
        """Load a model folder (or hub id); None is the bundled model.

        Args:
            compile: decode by compiled passes (CPU) or CUDA graphs: the first requests take minutes, all later ones
                less time (docs/performance.md).
            options: those of `LoadOptions` (mllm/checkpoint.py): device, dtype, quantization, device_map,
                embedding_context.
        """
        check_keywords("Pipeline.load", options, ["folder", "compile", *LoadOptions.__annotations__])
        load = LoadOptions(**options)
        path = find_model_folder(folder)
        processor = MLLMProcessor.from_pretrained(path, device=load.main_device)
        return cls(load_model(path, load), processor, read_task_settings(path), compile=compile)

    @property
    def config(self) -> MLLMConfig:
        return self.model.config

    @property
    def tasks(self) -> list[str] | None:
        return self.config.tasks

    @property
    def sizes(self) -> list[Size]:
        """(width, height) of the images it draws, the default first."""
        return supported_sizes(self.config)

    # ---- one request ----

    @takes_overrides
    def draw(
        self,
        prompt: str,
        *,
        n: int = 1,
        best_of: int = 1,
        size: Size | None = None,
        plan: str | None = None,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[Image.Image]:
        """Images of what the prompt says; image i has seed + i, kept in its `info`. `plan`: what is where, in place of
        the model's own plan (docs/plans.md). `best_of`: draw each image that many times and keep the one that the model
        itself scores highest."""
        check_text(prompt, name="prompt", hint="say what to draw")
        request = self._request(["draw"], [TextPart(prompt)], "image", overrides, size=size, plan=plan)
        n, best_of = check_count(n, name="n"), check_count(best_of, name="best_of")
        if best_of == 1:
            return self._draw_seeds(request, range(request.seed, request.seed + n), on_event)
        check_task(self.tasks, "ask")
        seeds = [seed for index in range(n) for seed in candidate_seeds(request.seed + index, best_of)]
        candidates = self._draw_seeds(request, seeds, on_event)
        return keep_best(candidates, self.score(candidates, [prompt] * len(candidates)), best_of=best_of)

    @takes_overrides
    def draw_class(
        self, index: int, *, n: int = 1, on_event: OnEvent | None = None, **overrides: Unpack[Overrides]
    ) -> list[Image.Image]:
        """Images of a class by its number; image i has seed + i, kept in its `info`."""
        request = self._request(["draw_class"], [ClassPart(as_integer(index, name="class"))], "image", overrides)
        return self._draw_seeds(request, range(request.seed, request.seed + check_count(n, name="n")), on_event)

    def _draw_seeds(
        self, request: GenerationRequest, seeds: Sequence[int], on_event: OnEvent | None
    ) -> list[Image.Image]:
        return self.processor.images_of(*self.run([replace(request, seed=seed) for seed in seeds], on_event))

    @takes_overrides
    def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> str:
        """The answer to a question about one or more images, and nothing else."""
        check_text(question, name="question", hint="say what you want to know")
        shown = [ImagePart(read_image(i)) for i in (images if isinstance(images, list | tuple) else [images])]
        if not shown:
            raise ValueError("there must be an image to ask about, got none; give one or more")
        request = self._request(["ask", "describe"], [*shown, TextPart(question)], "text", overrides)
        return self.processor.to_text(self.run([request], on_event)[0].text_ids)

    @takes_overrides
    def edit(
        self,
        image: ImageSource,
        instruction: str,
        *,
        mask: ImageSource | None = None,
        extend: Side | None = None,
        size: Size | None = None,
        plan: str | None = None,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> Image.Image:
        """The image changed following the instruction; also dense tasks, such as "Depth estimation.".

        Args:
            mask: an image that is white where the image may change; everywhere else its codes stay (inpainting).
            extend: draw on beyond this edge of the image, or "all", and keep its codes (outpainting).
            size: of the result, (width, height); default: that of the image, or the smallest that extends it.
        """
        check_text(instruction, name="instruction", hint="say what to change")
        if mask is not None and not (extend is size is plan is None):
            raise ValueError("a mask must come without extend, size and plan: the image keeps its own; leave them out")
        source, forced = read_image(image), None
        (shown,) = self.processor.encode_images([source])
        if mask is not None:
            forced = self._force_outside(read_image(mask), shown)
        elif extend is not None:
            size = larger_size(shown.grid, extend, size, self.config)
            forced, patch = place_codes(shown, extend, grid_of(size, self.config)), self.config.patch_size
            if source.size != (scaled := (shown.grid[1] * patch, shown.grid[0] * patch)):
                logger.warning(
                    "the image of %d x %d pixels is extended as one of %d x %d: codes are of patches of %d x %d pixels",
                    *(*source.size, *scaled, patch, patch),
                )
        request = self._request(
            ["edit", "depth", "segment"], [shown, TextPart(instruction)], "image", overrides, size=size, plan=plan
        )
        return self.processor.images_of(*self.run([replace(request, forced_codes=forced)], on_event))[0]

    def _request(
        self, tasks: Sequence[str], parts: Sequence[Part], mode: Mode, overrides: Mapping[str, Any], **options: Any
    ) -> GenerationRequest:
        """The request that answers one message, in the first of the tasks that the model was trained for."""
        task = check_task(self.tasks, *tasks)
        (messages,) = self.describe([[Message("user", tuple(parts))]])
        return self.build_request(messages, mode, task=task, overrides=overrides, **options)

    def shorten(self, messages: Sequence[Any]) -> list[Message]:
        """A dialogue, encoded, without its oldest turns where these leave no room for an answer with an image."""
        dialogue, config = self.processor.encode_chat(from_chat(messages)), self.config
        layout, plan = ImageLayout.from_config(config), PLAN_BUDGET if config.begin_plan_id is not None else 0
        room = config.text_config.max_position_embeddings - layout.num_tokens(layout.default_grid) - plan
        while len(dialogue) > 1:
            parts = [part for message in dialogue if message.role == "user" for part in message.parts]
            described = plan * sum(isinstance(part, CodesPart) and part.plan is None for part in parts)
            prompts = [self.processor.build(d, add_generation_prompt=True) for d in (dialogue, unconditional(dialogue))]
            starts = [n for n, message in enumerate(dialogue) if n and message.role == "user"]
            if max(map(len, prompts)) + described <= room or not starts:
                break
            dialogue = dialogue[starts[0] :]
        return dialogue

    @takes_overrides
    def chat(self, messages: Sequence[Any], **overrides: Unpack[Overrides]) -> Generator[Event, None, None]:
        """Answer a dialogue (messages or Hugging Face chat dicts) in text and images, as they come. The complete
        history goes in, images included; `Done.message` is the answer to append to it. Temperature, top-k and top-p are
        those of images. Wrong input is refused at once, not when the first event is asked for."""
        task = check_task(self.tasks, "chat")
        if isinstance(messages, str | Mapping):
            raise ValueError(f"messages must be a list, got {messages!r}; pass [{{'role': 'user', 'content': ...}}]")
        (described,) = self.describe([from_chat(messages)])
        return self.events(self.build_request(described, "interleaved", task=task, overrides=overrides))

    @takes_overrides
    def answer(
        self,
        dialogues: Sequence[Sequence[Message]],
        mode: Mode,
        seeds: Sequence[int],
        *,
        size: Size | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[list[str | Image.Image]]:
        """Answer many dialogues together, for evaluation: the texts and images of each answer, in order. `size`: of the
        images drawn where no image was shown or drawn before; those that follow have its size."""
        every = max(len(dialogues), 1)
        answers = dict(self.answer_each(dialogues, mode, seeds, at_once=every, together=every, size=size, **overrides))
        return [answers[index] for index in range(len(answers))]

    @takes_overrides
    def answer_each(
        self,
        dialogues: Iterable[Sequence[Message]],
        mode: Mode,
        seeds: Iterable[int],
        *,
        at_once: int,
        together: int | None = None,
        size: Size | None = None,
        **overrides: Unpack[Overrides],
    ) -> Iterator[tuple[int, list[str | Image.Image]]]:
        """The answers of `answer` as they end, each with its index; a dialogue is taken when there is room for it.
        `at_once`: how many are answered at the same time. `together`: how many are taken and have their images encoded
        together; by default a quarter of these."""
        pairs, together = enumerate(zip(dialogues, seeds, strict=True)), together or max(1, at_once // 4)
        ready: deque[GenerationRequest] = deque()
        asked: list[tuple[int, Task[GenerationRequest] | None]] = []  # of each request: for which dialogue, what waits
        num_open, failure = 0, None  # the failure is raised when what was taken before it is answered

        def begin(messages: Sequence[Message], seed: int) -> Task[GenerationRequest]:
            described = yield from describe_dialogue(messages, self.processor, expected=self._draft(""))
            task = {"text": "ask", "image": "edit" if has_image(described[-1]) else "draw"}.get(mode, "chat")
            sized = {"size": None if any(map(has_image, described)) else size}
            return self.build_request(described, mode, task=task, overrides={**overrides, "seed": seed}, **sized)

        def advance(index: int, waiting: Task[GenerationRequest] | None, words: list[int] | None = None) -> None:
            nonlocal num_open, failure
            try:
                ready.append(waiting.send(words))
            except StopIteration as end:
                ready.append(end.value)
                waiting = None
            except (ValueError, OSError) as error:
                failure, num_open = failure or error, num_open - 1
                return
            asked.append((index, waiting))

        def requests() -> Iterator[GenerationRequest | None]:
            nonlocal num_open, failure
            while True:
                try:
                    some = islice(pairs, together if num_open < at_once and failure is None else 0)
                    # copied: the caller may go on writing a dialogue
                    taken = [(index, tuple(messages), seed) for index, (messages, seed) in some]
                except (ValueError, OSError) as error:
                    failure, taken = error, []
                num_open += len(taken)
                for index, messages, seed in taken:
                    advance(index, begin(messages, seed))
                while ready:
                    yield ready.popleft()
                if not num_open:
                    return
                yield None

        for event in self._stream(requests()):
            if not isinstance(event, Done):
                continue
            index, waiting = asked[event.index]
            if waiting is not None:
                advance(index, waiting, event.result.text_ids)
            else:
                num_open -= 1
                yield index, self.processor.to_parts(event.result)
        if failure is not None:
            raise failure

    def decline(self, prompt: str, image: ImageSource | None = None) -> str | None:
        """What the model answers where it says that it cannot draw this, or change an image so; None where it can.

        Without a planner to judge the words, a model of chats that draws nothing and comes to an end has declined.
        """
        if self.planner is None and not (self.config.prompt_style == "native" and "chat" in (self.tasks or ())):
            return None
        text = TextPart(check_text(prompt, name="prompt", hint="say what to draw"))
        shown = [] if image is None else [ImagePart(read_image(image))]
        (messages,) = self.describe([[Message("user", (*shown, text))]])
        # mostly the first token says that it is an image; what the planner checks is declined after it is drawn
        is_checked = self._goal(messages) is not None
        for budget in [None] if is_checked else [1, DECLINE_BUDGET]:
            asked: Overrides = {"seed": 0, "max_new_tokens": budget}
            if is_checked:
                asked["resamples"] = min(self.config.image_resamples, 1)
            (result,) = self.run([self.build_request(messages, "interleaved", task="chat", overrides=asked)])
            if result.image_refused or result.images:
                return None
        words = self.processor.to_text(result.text_ids)
        has_declined = self.planner.declines(words) if self.planner else result.finish_reason == "eos"
        return words if has_declined else None

    def score(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, questions: Questions | None = None
    ) -> list[float]:
        """How probable the model finds it, 0 to 1, that each image shows its text: of all questions about the text the
        product of the probabilities of the wanted answers, word by word, without the end mark. `questions`: to ask
        about an image of a text; default: the checkpoint's planner's, else VQAScore's."""
        check_task(self.tasks, "ask")
        if not isinstance(images, list | tuple) or not isinstance(texts, list | tuple) or len(images) != len(texts):
            raise ValueError(f"images and texts must be lists of one length, got {images!r} and {texts!r}")
        texts = [check_text(text, name="text", hint="say what the image should show") for text in texts]
        images = [read_image(image) for image in images]
        questions = questions or (self.planner.questions if self.planner else vqa_score_question)
        asked = [(n, question, wanted) for n, text in enumerate(texts) for question, wanted in questions(text)]
        shown, totals = [], [0.0] * len(texts)
        for some in batched([Message("user", (ImagePart(image),))] for image in images):
            shown += [dialogue[0].parts for dialogue in self.describe(some)]
        for some in batched(asked):
            answered = [
                [Message("user", (*shown[n], TextPart(question))), Message("assistant", (TextPart(wanted),))]
                for n, question, wanted in some
            ]
            found = log_probabilities(self.model, self.processor, answered)
            for (n, *_), log_probability in zip(some, found, strict=True):
                totals[n] += log_probability
        return [math.exp(total) for total in totals]

    @property
    def question_form(self) -> str:
        """How this checkpoint is asked whether an image is right."""
        return self.planner.name if self.planner else "genai"

    # ---- requests ----

    def describe(
        self, dialogues: Sequence[Sequence[Message]], *, expected: Sequence[tuple[int, ...]] = ()
    ) -> list[list[Message]]:
        """The dialogues with encoded images; those of the user get a description, all dialogues together. `expected`:
        guesses of the descriptions, for speed alone; one for each dialogue."""
        guesses = expected or [self._draft("")] * len(dialogues)
        pairs = zip(dialogues, guesses, strict=True)
        tasks = [describe_dialogue(each, self.processor, expected=guess) for each, guess in pairs]
        return run_together(tasks, lambda requests: [found.text_ids for found in self.engine.generate(requests)])

    def build_request(
        self,
        messages: Sequence[Message],
        mode: Mode,
        *,
        task: str,
        size: Size | None = None,
        plan: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> GenerationRequest:
        given = given_settings(overrides or {})
        messages = self.processor.encode_chat(messages)
        mode = possible_mode(messages, mode, self.config)
        answer: AnswerKind | None = {"text": "text", "image": "image"}.get(mode)
        build_prompt = partial(self.processor.build, add_generation_prompt=True, answer=answer)
        is_guided = mode != "text" and self.requests.image_settings(task, given).guidance > 1
        # before an image is changed, its own plan is the better guess
        is_drawn_anew = mode != "text" and not any(map(has_image, messages))
        # the size asked for, else that of the last image of the dialogue, else the default
        grids = [part.grid for message in messages for part in message.parts if isinstance(part, CodesPart)]
        return self.requests.build(
            build_prompt(messages),
            mode,
            task=task,
            given=given,
            unconditional=build_prompt(unconditional(messages)) if is_guided else None,
            grid=grid_of(size, self.config) if size is not None else grids[-1] if grids else None,
            seed=given.get("seed", secrets.randbelow(NUM_RANDOM_SEEDS)),
            resamples=self.requests.resamples(task, given),
            goal=self._goal(messages),
            expected_text=self._draft(words_of(messages[-1])) if is_drawn_anew else (),
            given_plan=None if plan is None else self._encode_plan(plan),
            window=self.requests.window(given),
            preview_every=given.get("preview_every"),
        )

    def _goal(self, messages: Sequence[Message]) -> Goal | None:
        """What the last message asks to draw or to change, where the planner knows how to check it."""
        words = words_of(messages[-1])
        shown = [part for message in messages for part in message.parts if isinstance(part, CodesPart)]
        if self.planner is None or not words or "ask" not in (self.tasks or ["ask"]):
            return None
        if shown and self.planner.changed(words, [""] * len(self.planner.describes)):
            return Goal(words, shown[-1])
        return Goal(words, None) if self.planner.detours(words) and not has_image(messages[-1]) else None

    def _draft(self, prompt: str) -> tuple[int, ...]:
        """A guess of the plan of an image of this prompt; empty: of any image."""
        if self.planner is None or self.config.begin_plan_id is None:
            return ()
        return tuple(encode_text(self.processor.tokenizer, " " + self.planner.draft(prompt)))

    def _encode_plan(self, plan: str) -> tuple[int, ...]:
        text = neutralise(check_text(plan, name="plan", hint="say what is where, or leave it out"))
        if self.planner and not self.planner.can_check(text.strip()):
            raise ValueError(f"the plan must be in the words of this model's plans, got {plan!r}; see docs/plans.md")
        return tuple(encode_text(self.processor.tokenizer, " " + text.strip()))

    def _force_outside(self, mask: Image.Image, codes: CodesPart) -> ForcedCodes:
        """The codes of an image, forced wherever a mask, prepared as the image was, has no white."""
        (rows, columns), patch = codes.grid, self.config.patch_size
        prepare = ImageProcessor(width=columns * patch, height=rows * patch, preparation=self.processor.preparation)
        patches_RhCw = prepare([mask])[0].amax(dim=0).view(rows, patch, columns, patch)
        is_open_RC, is_cut_RC = patches_RhCw.amax(dim=(1, 3)) > 0, patches_RhCw.amin(dim=(1, 3)) <= 0
        if not is_open_RC.any():
            raise ValueError("a mask must be white where the image may change, got one without white; paint there")
        if num_cut := int((is_open_RC & is_cut_RC).sum()):
            logger.warning(
                "the edge of the mask cuts %d of %d patches of %d x %d pixels; they may change as a whole",
                *(num_cut, rows * columns, patch, patch),
            )
        return ForcedCodes(codes.codes_KN, np.logical_not(is_open_RC.flatten().numpy()))

    # ---- decoding ----

    def run(
        self, requests: Iterable[GenerationRequest | None], on_event: OnEvent | None = None
    ) -> list[GenerationResult]:
        """Decode requests, all in one stream. One that is None: there is none for now, and the others go on."""
        results: dict[int, GenerationResult] = {}
        decoders: dict[int, EventDecoder] = defaultdict(lambda: EventDecoder(self.processor))
        for event in self._stream(requests):
            if isinstance(event, Done):
                results[event.index] = event.result
            for decoded in decoders[event.index].decode(event) if on_event else ():
                on_event(decoded)
        return [results[index] for index in sorted(results)]

    def events(self, request: GenerationRequest) -> Generator[Event, None, None]:
        """Decode one request, yielding what happens; closing the iterator cancels it."""
        decoder = EventDecoder(self.processor)
        for event in self._stream([request]):
            yield from decoder.decode(event)

    def _stream(self, requests: Iterable[GenerationRequest | None]) -> Generator[Event, None, None]:
        """The events of answers whose images are decoded and checked. A request that is None: there is none for now."""
        layout = ImageLayout.from_config(self.config)
        for event in stream_accepted(requests, stream=self._decoded_stream, check=self._check, layout=layout):
            if isinstance(event, Failed):
                raise event.error
            yield event

    def _decoded_stream(self, requests: Iterable[GenerationRequest | None]) -> Iterator[Event]:
        """The events of the engine with images decoded, once for all that look at them."""
        for event in self.engine.stream(requests):
            if isinstance(event, ImageDone):
                (image,) = self.processor.decode_images([event.codes])
                event = replace(event, codes=replace(event.codes, image=image))
            yield event

    def _check(self, images: Sequence[ImageDone], requests: Sequence[GenerationRequest]) -> list[Verdict]:
        """Images with a plan are compared with it, those of something that the planner can ask about are scored."""
        verdicts: list[Verdict] = [*self._follow_plans(images)]
        scored = [
            n
            for n, request in enumerate(requests)
            if request.goal is not None and request.forced_codes is None and not images[n].plan
        ]
        if not scored:
            return verdicts
        found = self._recognize([images[n] for n in scored], [requests[n] for n in scored])
        for n, verdict in zip(scored, found, strict=True):
            verdicts[n] = verdict
        return verdicts

    def _follow_plans(self, images: Sequence[ImageDone]) -> list[bool]:
        """Whether each image, described, shows what its plan says; true where there is nothing to compare."""
        plans = [self.processor.to_text(list(image.plan)) for image in images]
        checked = [n for n, plan in enumerate(plans) if plan and self.planner and self.planner.can_check(plan)]
        shown = self.processor.decode_images([images[n].codes for n in checked])
        dialogues = [[Message("user", (ImagePart(image),))] for image in shown]
        marker = self.config.begin_plan_id
        expected = [(*images[n].plan, marker) for n in checked]
        described = self.describe(dialogues, expected=expected)
        found = {n: dialogue[0].parts[0].plan for n, dialogue in zip(checked, described, strict=True)}
        return [n not in found or self.planner.agrees(plan, found[n]) for n, plan in enumerate(plans)]

    def _recognize(self, images: Sequence[ImageDone], requests: Sequence[GenerationRequest]) -> list[Verdict]:
        """What becomes of images, by how probable the model finds it that each shows what was asked for.

        One that it does not recognize well competes with other candidates for the same request. Where a drawing is not
        recognized among those either, candidates of a detour take its place, if the first image of that is recognized
        better. In a chat the answer goes on in words if it recognizes neither, nor anything else in the drawing.
        """
        planner, goals = self.planner, [request.goal for request in requests]
        shown, wanted = self.processor.decode_images([image.codes for image in images]), self._wanted(goals)
        scores = self._best_scores(shown, wanted)
        verdicts: list[Verdict] = [True] * len(images)

        def compete(sources: dict[int, list[Part]], best: dict[int, float]) -> None:
            """Put the best candidate in the place of each image that it beats."""
            asked = [
                (n, replace(requests[n], seed=seed % NUM_SEEDS))
                for n in sources
                for seed in candidate_seeds(requests[n].seed, requests[n].resamples + 1)[1:]
            ]
            tried = self._draw_alone([(one, sources[n]) for n, one in asked], temperature=planner.temperature)
            pictures = self.processor.decode_images(tried)
            found = self._best_scores(pictures, [wanted[n] for n, _ in asked])
            for (n, _), codes, picture, score in zip(asked, tried, pictures, found, strict=True):
                if score > best[n]:
                    best[n], verdicts[n] = score, replace(codes, image=picture)

        least = [planner.unsure if goal.image is None else planner.sure for goal in goals]
        best = {n: score for n, score in enumerate(scores) if score < least[n]}
        compete({n: [part for part in (goals[n].image, TextPart(goals[n].words)) if part] for n in best}, best)
        unlike = [n for n, score in best.items() if goals[n].image is None and score < planner.unsure]
        ways = [(n, *way) for n in unlike for way in planner.detours(goals[n].words)]
        firsts = self._draw_alone([(requests[n], [TextPart(prompt)]) for n, prompt, _ in ways])
        first_scores = self.score(self.processor.decode_images(firsts), [prompt for _, prompt, _ in ways])
        sources: dict[int, list[Part]] = {}
        for (n, _, change), first, score in zip(ways, firsts, first_scores, strict=True):
            scores[n] = max(scores[n], score)
            if score > best[n]:
                best[n] = score
                if score >= planner.known:
                    sources[n] = [first, TextPart(change)]
        # not with the drawings: these are of things that it does not know in this style
        compete(sources, dict.fromkeys(sources, 0.0))
        unknown = [n for n in unlike if scores[n] < planner.unknown and requests[n].mode == "interleaved"]
        certainties = self._certainties([shown[n] for n in unknown], planner.describes[0])
        for n, certainty in zip(unknown, certainties, strict=True):
            verdicts[n] = "words" if certainty < planner.certain else verdicts[n]
        return verdicts

    def _wanted(self, goals: Sequence[Goal]) -> list[Sequence[str]]:
        """Prompts that each image should fit, one of them: that of a drawing, or what the change of an image makes."""
        changed = [goal for goal in goals if goal.image is not None]
        questions = self.planner.describes
        asked = [[Message("user", (goal.image, TextPart(words)))] for goal in changed for words in questions]
        answers = ["".join(map(str, parts)) for parts in self.answer(asked, "text", [0] * len(asked))]
        seen = iter(batched(answers, len(questions)))
        return [[goal.words] if goal.image is None else self.planner.changed(goal.words, next(seen)) for goal in goals]

    def _best_scores(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[float]:
        """The score of each image with the one of its texts that it fits best."""
        pairs = [(n, image, text) for n, image in enumerate(images) for text in texts[n]]
        found = self.score([image for _, image, _ in pairs], [text for *_, text in pairs])
        best = [0.0] * len(images)
        for (n, *_), score in zip(pairs, found, strict=True):
            best[n] = max(best[n], score)
        return best

    def _draw_alone(
        self, asked: Sequence[tuple[GenerationRequest, Sequence[Part]]], *, temperature: float | None = None
    ) -> list[CodesPart]:
        """Images that answer messages alone, sampled as those of a request; they are not checked."""
        requests = []
        for request, parts in asked:
            own = {name: getattr(request.image, name) for name in SAMPLING_NAMES}
            own |= {} if temperature is None else {"temperature": temperature}
            message = Message("user", tuple(parts))
            task = "edit" if has_image(message) else "draw"
            drawn = self.build_request([message], "image", task=task, overrides={**own, "seed": request.seed})
            requests.append(replace(drawn, grid=request.grid, window=request.window, resamples=0))
        return [result.images[0] for result in self.engine.generate(requests)]

    def _certainties(self, images: Sequence[Image.Image], question: str) -> list[float]:
        """How probable the model finds its own answers to a question about each image, 0 to 1."""
        asked = [[Message("user", (ImagePart(image), TextPart(question)))] for image in images]
        answers = ["".join(map(str, parts)) or "?" for parts in self.answer(asked, "text", [0] * len(asked))]
        return self.score(images, answers, questions=lambda text: [(question, text)])


def load_planner(config: MLLMConfig) -> Planner | None:
    """The planner that a config names, from inside this package only: a checkpoint brings no code."""
    if (name := config.planner) is None:
        return None
    module, _, attribute = name.rpartition(".")
    try:
        planner = getattr(import_module(module), attribute) if module.startswith("mllm.") else None
    except (ImportError, AttributeError):
        planner = None
    if not isinstance(planner, type):
        raise ValueError(f"planner must be the dotted name of a class inside mllm, got {name!r}; correct config.json")
    return planner(config)


def words_of(message: Message) -> str:
    return " ".join(part.text for part in message.parts if isinstance(part, TextPart))


# ---- work that waits for texts ----


def run_together(
    tasks: Sequence[Task[Result]], decode: Callable[[list[GenerationRequest]], list[list[int]]]
) -> list[Result]:
    """The results of tasks; what they wait for at the same time is decoded together."""
    results: list[Any] = [None] * len(tasks)
    found: dict[int, Any] = dict.fromkeys(range(len(tasks)))
    while found:
        asked = {}
        for n, words in found.items():
            try:
                asked[n] = tasks[n].send(words)
            except StopIteration as end:
                results[n] = end.value
        found = dict(zip(asked, decode([*asked.values()]), strict=True)) if asked else {}
    return results


# ---- the description of images that are shown ----
# A model that plans its images writes, before it answers, what it sees in every image of the user, in the form of a
# plan. This depends on the image and on what was said before it, never on the question, so every answer about an image
# rests on the same description. Models that do not plan describe nothing.


def describe_dialogue(
    messages: Sequence[Message], processor: MLLMProcessor, *, expected: tuple[int, ...] = ()
) -> Task[list[Message]]:
    """A dialogue with encoded images, those of the user described."""
    if not messages or not any(not isinstance(p, TextPart) or p.text.strip() for p in messages[-1].parts):
        raise ValueError("a chat must end with a text or an image, got neither; say something")
    dialogue, config = processor.encode_chat(messages), processor.need_config()
    if config.begin_plan_id is None:
        return dialogue
    plans = iter((yield from describe_prompt(processor.build(dialogue), config, expected=expected)))

    def described(part: Part) -> Part:
        ids = next(plans) if isinstance(part, CodesPart) else []
        return replace(part, plan=processor.to_text(ids[1:-1])) if ids else part

    return [replace(message, parts=tuple(map(described, message.parts))) for message in dialogue]


def describe_prompt(
    prompt: TokenSequence, config: MLLMConfig, *, expected: tuple[int, ...] = ()
) -> Task[list[list[int]]]:
    """What the model sees in each image of a prompt: tokens to `insert` behind it; [] behind those that the assistant
    drew, or that have a description."""
    found: list[list[int]] = [[] for _ in prompt.image_lengths_I]
    marker, greedy = config.begin_plan_id, SamplingConfig(greedy=True)
    for index in range(len(found)):
        if not needs_description(prompt, index, config):
            continue
        seen = take(prompt, 0, end_of_image(prompt, index, config), config=config)
        begun = extend_sequence(insert(seen, found[: index + 1], config), [marker], [])
        options = {"max_new_tokens": PLAN_BUDGET, "text": greedy, "end_id": marker, "expected_text": expected}
        words = yield GenerationRequest(prompt=begun, mode="text", **options)
        found[index] = [marker, *words, marker]
    return found


def end_of_image(prompt: TokenSequence, index: int, config: MLLMConfig) -> int:
    """Where an image ends, with what frames it."""
    (positions_P,) = (prompt.token_ids_T == config.image_token_id).nonzero()
    last = positions_P[prompt.image_lengths_I[: index + 1].sum() - 1]
    return int(last + 1 + (prompt.token_ids_T[last:] == config.end_image_id).argmax())


def needs_description(prompt: TokenSequence, index: int, config: MLLMConfig) -> bool:
    """Whether an image of the prompt is the user's, and not described yet."""
    is_drawn = prompt.code_targets_P[prompt.image_lengths_I[:index].sum()]
    end = end_of_image(prompt, index, config)
    return not is_drawn and (end >= len(prompt) or prompt.token_ids_T[end] != config.begin_plan_id)


def insert(prompt: TokenSequence, descriptions: Sequence[list[int]], config: MLLMConfig) -> TokenSequence:
    ids_T = prompt.token_ids_T
    for index, description in reversed(list(enumerate(descriptions))):
        ids_T = np.insert(ids_T, end_of_image(prompt, index, config), description) if description else ids_T
    return replace(prompt, token_ids_T=ids_T, labels_T=np.full_like(ids_T, IGNORED))


# ---- outpainting ----


def larger_size(grid: Grid, extend: Side, size: Size | None, config: MLLMConfig) -> Size:
    """The size of an image that is extended beyond an edge: the one asked for, else the smallest of the model."""
    if extend not in SIDES:
        raise ValueError(f"extend must be one of {', '.join(SIDES)}, got {extend!r}; name an edge, or all")
    if size is not None:
        grid_of(size, config)  # refuses what the model does not have
    width, height = grid[1] * config.patch_size, grid[0] * config.patch_size
    grows_wide, grows_high = extend in ("left", "right", "all"), extend in ("top", "bottom", "all")
    fits = [
        (w, h)
        for w, h in supported_sizes(config)
        if (w, h) != (width, height)
        and (w >= width if grows_wide else w == width)
        and (h >= height if grows_high else h == height)
    ]
    if fits and (size is None or tuple(size) in fits):
        return min(fits, key=math.prod) if size is None else tuple(size)
    found = "x".join(map(str, size)) if size is not None else "no such size in this model"
    advice = f"use {' or '.join(f'{w}x{h}' for w, h in fits[:MOST_NAMED_SIZES])}" if fits else "give a smaller image"
    raise ValueError(f"size must extend the image of {width}x{height} at {extend!r} only, got {found}; {advice}")


def place_codes(codes: CodesPart, extend: Side, grid: Grid) -> ForcedCodes:
    """The codes of an image, forced where it lies in a larger one: opposite the edge that is extended, or in the
    middle."""
    added_rows, added_columns = grid[0] - codes.grid[0], grid[1] - codes.grid[1]
    top = {"top": added_rows, "all": added_rows // 2}.get(extend, 0)
    left = {"left": added_columns, "all": added_columns // 2}.get(extend, 0)
    here = np.s_[top : top + codes.grid[0], left : left + codes.grid[1]]
    codes_KRC = np.zeros((len(codes.codes_KN), *grid), dtype=codes.codes_KN.dtype)
    is_forced_RC = np.zeros(grid, dtype=bool)
    codes_KRC[:, *here] = codes.codes_KN.reshape(-1, *codes.grid)
    is_forced_RC[here] = True
    return ForcedCodes(codes_KRC.reshape(len(codes_KRC), -1), is_forced_RC.flatten())


# ---- best of N, by the model's own score ----


def candidate_seeds(seed: int, best_of: int) -> list[int]:
    """The seeds of the candidates for one image: candidate 0 is the image without best-of, those for a smaller N are
    the first of those for a larger N, and neighbouring seeds share none."""
    return [seed + index * STRIDE for index in range(best_of)]


def keep_best(candidates: Sequence[Image.Image], scores: Sequence[float], *, best_of: int) -> list[Image.Image]:
    """One image of every `best_of` candidates, the first of equals; its `info` holds its score and `best_of`."""
    kept = []
    for start in range(0, len(candidates), best_of):
        index = max(range(start, start + best_of), key=scores.__getitem__)
        candidates[index].info.update(score=scores[index], best_of=best_of)
        kept.append(candidates[index])
    return kept


def vqa_score_question(prompt: str) -> list[tuple[str, str]]:
    return [(VQA_SCORE_QUESTION.format(text=prompt), "yes")]


def batched(items: Iterable[Any], size: int = MAX_REQUESTS) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


@torch.inference_mode()
def log_probabilities(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, dialogues: Sequence[Sequence[Message]]
) -> list[float]:
    """The log probability of the last answer of each dialogue, its end mark left out."""
    sequences = [processor.build(messages) for messages in dialogues]
    inputs = collate(sequences, model.config).to(model.device)
    mask_BT = inputs["attention_mask"]
    hidden_BTD = model.backbone(
        inputs_embeds=model.embed(inputs["input_ids"], inputs.get("codes"), inputs.get("image_lengths")),
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
    ).last_hidden_state
    totals = []
    for hidden_TD, sequence in zip(hidden_BTD, sequences, strict=True):
        labels_T = torch.from_numpy(sequence.labels_T)
        (positions_S,) = ((labels_T != IGNORED) & (labels_T != model.config.eos_token_id)).nonzero(as_tuple=True)
        if not len(positions_S):
            raise ValueError("the answer must have words to score, got none; this prompt style answers without words")
        logits_SV = model.text_logits(hidden_TD[positions_S - 1 - len(sequence)]).float()  # padded on the left
        words_S1 = labels_T[positions_S, None].to(logits_SV.device)
        totals.append(logits_SV.log_softmax(dim=-1).gather(1, words_S1).sum().item())
    return totals


# ---- events as a person sees them ----


class EventDecoder:
    """Decodes the events of one request: ids and codes in, text, images and the message of the answer out. Previews are
    decoded by a thread beside the decoding; one that is not ready when the next comes is left out."""

    def __init__(self, processor: MLLMProcessor) -> None:
        self.processor = processor
        self.text = TextStream(processor)
        self.previews = ThreadPoolExecutor(max_workers=1)  # starts its thread with the first preview
        self.preview: tuple[ImagePreview, Future[list[Image.Image]]] | None = None

    def decode(self, event: Event) -> Iterator[Event]:
        """The event with its text or image filled in; text that was held back comes before an image and the end."""
        if self.preview is not None and self.preview[1].done():
            (ready, images), self.preview = self.preview, None
            if isinstance(event, ImageProgress | ImagePreview):
                yield replace(ready, index=event.index, image=images.result()[0])
        match event:
            case ImagePreview(codes=codes):
                if self.preview is None:
                    self.preview = event, self.previews.submit(self.processor.decode_images, [codes])
                return
            case TextDelta(token_id=int(token_id)):
                yield replace(event, text=self.text.add(token_id))
                return
            case ImageDone(codes=codes, plan=plan):
                self.preview = None  # one that is still being decoded is not of the next image
                codes = self.processor.with_plan(codes, list(plan))
                event = replace(event, codes=codes, image=self.processor.decode_images([codes])[0])
            case Done(result=result):
                drawn, to_text = iter(self.processor.codes_of(result)), self.processor.to_text
                parts = [next(drawn) if isinstance(p, CodesPart) else TextPart(to_text(p)) for p in result.parts]
                event = replace(event, message=Message("assistant", tuple(parts) or (TextPart(""),)))
                self.previews.shutdown(wait=False)
        if rest := self.text.finish():
            yield TextDelta(index=event.index, text=rest)
        yield event


class TextStream:
    """The text of ids that come one by one: what is new and will not change any more. A character may take several byte
    tokens, which are decoded as one run, and outer spaces do not belong to an answer; both are held back. All deltas of
    a run together are its stripped text."""

    def __init__(self, processor: MLLMProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self.ids: list[int] = []
        self.num_shown = 0

    def add(self, token_id: int) -> str:
        """What can be shown now that this id has come; often nothing."""
        self.ids.append(token_id)
        if BYTE_TOKEN.fullmatch(self.tokenizer.convert_ids_to_tokens(token_id) or ""):
            return ""
        text = decode_text(self.tokenizer, self.ids)
        return "" if text.endswith("\ufffd") else self._advance(text)  # bytes that are no character yet

    def finish(self) -> str:
        """What was held back at the end of the run; a new run begins."""
        rest = self._advance(decode_text(self.tokenizer, self.ids)) if self.ids else ""
        self.ids, self.num_shown = [], 0
        return rest

    def _advance(self, text: str) -> str:
        new, self.num_shown = text[self.num_shown :], max(self.num_shown, len(text))
        return new


# ---- checks of what a person asks for ----


def check_text(text: str, *, name: str, hint: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"the {name} must be a text, got {type(text).__name__}; {hint}")
    if not text.strip():
        raise ValueError(f"the {name} must not be empty, got {text!r}; {hint}")
    if text.encode("utf-8", "ignore").decode() != text:
        raise ValueError(f"the {name} must be Unicode, got half of a surrogate pair in {text!r}; fix it")
    return text


def check_count(count: int, *, name: str) -> int:
    if (number := as_integer(count, name=name)) < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {count!r}; ask for one or more")
    return number


def check_task(tasks: Sequence[str] | None, *wanted: str) -> str:
    """The first of the wanted tasks that this checkpoint was trained for (its capabilities; None: all)."""
    for task in wanted:
        if tasks is None or task in tasks:
            return task
    trained = ", ".join(tasks or ()) or "nothing"
    raise ValueError(f"this model cannot {wanted[0]}, it was trained to {trained}; use a model that was trained for it")
