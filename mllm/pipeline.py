"""The toolkit in five calls: load a model, draw, ask, edit, chat. Pictures are PIL images, everything else is text.

The command line, the demo and the evaluation talk to this facade only. It answers one request at a time (a lock), is
deterministic for a given seed, and raises ValueError or FileNotFoundError with a sentence that a person understands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Unpack, get_args

import torch
from PIL import Image

from mllm.checkpoint import BUNDLED, LoadOptions, find_model_folder, load_model
from mllm.config import MLLMConfig
from mllm.conversation import (
    ClassPart,
    CodesPart,
    ImagePart,
    Marker,
    Message,
    Mode,
    Segment,
    TextPart,
    has_image,
    render,
)
from mllm.engine.loop import (
    AnswerStream,
    DecodingEvent,
    Done,
    Event,
    ImageDone,
    ImageEvent,
    ImageProgress,
    RowEvent,
    TextDelta,
    TextEvent,
    generate,
    stream,
)
from mllm.engine.request import NUM_SEEDS, OUTLINE_BUDGET, Generated, Row, add_text, image_settings, read_task_settings
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import ImageSource, MLLMProcessor, Overrides, RowBuilder, check_task, check_words, image_parts
from mllm.sampling import SamplingConfig
from mllm.sequence import IGNORED, ImageLayout, Size, TokenSequence, encode_segments, extend_sequence, supported_sizes
from mllm.world.outline import are_alike, read_outline
from mllm.world.reader import Demand, demands_of

# Looking: before a model with outlines answers, it writes what it sees in every picture that the user shows.
#
# In: dialogues, and what decodes rows. Out: the same dialogues, their pictures encoded and the user's outlined. What is
# seen depends on the picture and on what was said before it, never on the question, so every answer about a picture
# rests
# on the same words. A model without outlines looks at nothing.


Place = tuple[int, int]
"""Number of a message, number of a part."""


def look(
    dialogues: Sequence[Sequence[Message]], processor: MLLMProcessor, run: Callable[[list[Row]], list[Generated]]
) -> list[list[Message]]:
    """Outline the pictures that were not looked at yet, in order, all dialogues together."""
    looked = [processor.encode_chat(dialogue) for dialogue in dialogues]
    marker = processor.need_config().begin_plan_id
    while marker is not None:
        waiting = [(n, place) for n, dialogue in enumerate(looked) if (place := first_unseen(dialogue)) is not None]
        if not waiting:
            break
        rows = [
            Row(
                prompt=look_prompt(up_to(looked[n], place), processor),
                mode="text",
                end_id=marker,
                max_new_tokens=OUTLINE_BUDGET,
                text=SamplingConfig(greedy=True),
            )
            for n, place in waiting
        ]
        for (n, place), result in zip(waiting, run(rows), strict=True):
            looked[n] = outlined(looked[n], place, processor.to_text(result.text_ids))
    return looked


def look_prompt(dialogue: Sequence[Message], processor: MLLMProcessor) -> TokenSequence:
    """The prompt for the outline of the picture with which a dialogue ends: all up to it, and the marker."""
    config = processor.need_config()
    segments = render(dialogue, config.prompt_style)
    last = max(n for n, segment in enumerate(segments) if isinstance(segment.content, CodesPart))
    asked = [*segments[: last + 1], Segment(Marker.PLAN)]
    return encode_segments(asked, tokenizer=processor.tokenizer, config=config)


def first_unseen(dialogue: Sequence[Message]) -> Place | None:
    """Where the first picture of the user without an outline stands."""
    for m, message in enumerate(dialogue):
        for p, part in enumerate(message.parts if message.role == "user" else ()):
            if isinstance(part, CodesPart) and part.plan is None:
                return m, p
    return None


def up_to(dialogue: Sequence[Message], place: Place) -> list[Message]:
    """The dialogue as far as the picture at this place."""
    m, p = place
    return [*dialogue[:m], replace(dialogue[m], parts=dialogue[m].parts[: p + 1])]


def outlined(dialogue: Sequence[Message], place: Place, outline: str) -> list[Message]:
    """The dialogue with an outline for the picture at this place."""
    m, p = place
    parts = list(dialogue[m].parts)
    parts[p] = replace(parts[p], plan=outline)
    return [replace(message, parts=tuple(parts)) if n == m else message for n, message in enumerate(dialogue)]


# Drawing again: a picture that does not show what its own outline says is drawn anew, with other random numbers.
#
# In: rows and what became of them. Out: the same, each picture looked at (mllm/pipeline.py) and compared with the
# outline
# it was drawn from. Where the two differ, what came before the picture stays and the rest of the answer is written
# again,
# `Row.redraws` times for each picture at most; then it stands as it is. A result still depends on its row alone.


REDRAW_STRIDE = 100_000_007
"""Between the seeds of tries; prime, and far from that of best-of (mllm/pipeline.py), so that no two meet."""

Run = Callable[[list[Row]], list[Generated]]


@dataclass(slots=True)
class Draft:
    """An answer whose pictures are being judged, in order."""

    row: Row
    result: Generated
    """What the last try became, without what stood when it began."""
    begun: list[list[int] | CodesPart] = field(default_factory=list)
    """What stood when the last try began."""
    begun_outlines: list[list[int]] = field(default_factory=list)
    accepted: int = 0
    """Pictures that stand."""
    tries: int = 0
    """Of the picture after them, beyond the first."""
    redrawn: int = 0
    """Tries of all pictures."""

    @property
    def parts(self) -> list[list[int] | CodesPart]:
        """Text and pictures of the whole answer."""
        first = self.result.parts[:1]
        if self.begun and first and isinstance(self.begun[-1], list) and isinstance(first[0], list):
            return [*self.begun[:-1], [*self.begun[-1], *first[0]], *self.result.parts[1:]]
        return [*self.begun, *self.result.parts]

    @property
    def outlines(self) -> list[list[int]]:
        """The outlines of its pictures."""
        return [*self.begun_outlines, *self.result.outlines]

    @property
    def unjudged(self) -> list[tuple[CodesPart, list[int]]]:
        """Pictures and outlines that were not looked at yet; none where nothing is drawn again."""
        pictures = [part for part in self.parts if isinstance(part, CodesPart)]
        return list(zip(pictures, self.outlines, strict=True))[self.accepted :] if self.row.redraws else []

    def must_draw_again(self, verdicts: Iterable[bool]) -> bool:
        """Accept pictures up to the first one that must be drawn again; whether there is one."""
        for is_right in verdicts:
            if not is_right and self.tries < self.row.redraws:
                self.tries, self.redrawn = self.tries + 1, self.redrawn + 1
                return True
            self.accepted, self.tries = self.accepted + 1, 0
        return False

    def next_row(self, layout: ImageLayout) -> Row:
        """The row of the next try: it goes on after what stands."""
        parts, outlines = self.parts, self.outlines
        pictures = [place for place, part in enumerate(parts) if isinstance(part, CodesPart)]
        self.begun, self.begun_outlines = parts[: pictures[self.accepted]], outlines[: self.accepted]
        images = [part for part in self.begun if isinstance(part, CodesPart)]
        token_ids = answer_ids(self.begun, self.begun_outlines, layout)
        unguided_ids = answer_ids(self.begun, [[]] * len(images), layout)
        budget, unconditional = self.row.max_new_tokens, self.row.unconditional
        return replace(
            self.row,
            prompt=extend_sequence(self.row.prompt, token_ids, images),
            unconditional=unconditional and extend_sequence(unconditional, unguided_ids, images),
            max_new_tokens=budget and budget - len(token_ids),
            seed=(self.row.seed + self.redrawn * REDRAW_STRIDE) % NUM_SEEDS,
        )

    def whole(self, layout: ImageLayout) -> Generated:
        """The answer, as if it had been written in one go."""
        token_ids = answer_ids(self.begun, self.begun_outlines, layout)
        return replace(
            self.result,
            token_ids=[*token_ids, *self.result.token_ids],
            parts=self.parts,
            outlines=self.outlines,
            seed=self.row.seed,
        )


def redraw(rows: Sequence[Row], results: Sequence[Generated], *, processor: MLLMProcessor, run: Run) -> list[Generated]:
    """Draw again what is unlike its outline, all rows together."""
    layout = ImageLayout.from_config(processor.need_config())
    drafts = [Draft(row, result) for row, result in zip(rows, results, strict=True)]
    while waiting := [draft for draft in drafts if draft.unjudged]:
        verdicts = iter(are_as_outlined([pair for draft in waiting for pair in draft.unjudged], processor, run))
        wrong = [draft for draft in waiting if draft.must_draw_again(list(islice(verdicts, len(draft.unjudged))))]
        for draft, result in zip(wrong, run([draft.next_row(layout) for draft in wrong]), strict=True):
            draft.result = result
    return [draft.whole(layout) for draft in drafts]


def stream_redrawn(
    row: Row, *, processor: MLLMProcessor, run: Run, stream: Callable[[list[Row]], Iterator[DecodingEvent]]
) -> Iterator[DecodingEvent]:
    """The events of one row, with the answer of `redraw`. Of a picture that is drawn again only progress is told."""
    layout = ImageLayout.from_config(processor.need_config())
    draft = Draft(row, empty_result())
    next_row: Row | None = row
    while next_row is not None:
        events, next_row = stream([next_row]), None
        for event in events:
            match event:
                case TextEvent(token_id=token_id):
                    add_text(draft.result.parts, token_id)
                case ImageEvent(image=CodesPart() as image, outline=outline):
                    draft.result.parts.append(image)
                    draft.result.outlines.append(outline)
                    if draft.must_draw_again(are_as_outlined(draft.unjudged, processor, run)):
                        next_row = draft.next_row(layout)
                        draft.result = empty_result()
                        break
                case RowEvent(generated=generated):
                    draft.result = generated
                    event = replace(event, generated=draft.whole(layout))
            yield event


def empty_result() -> Generated:
    """A row before its first token."""
    return Generated(token_ids=[], parts=[], finish_reason="eos", seed=0, image_refused=False, outlines=[])


def are_as_outlined(pictures: Sequence[tuple[CodesPart, list[int]]], processor: MLLMProcessor, run: Run) -> list[bool]:
    """Whether each picture, looked at, shows what its outline says. One without an outline, or with free words of a
    person that cannot be compared, says nothing wrong.
    """
    images = [processor.with_plan(image, outline) for image, outline in pictures]
    are_comparable = [image.plan is not None and read_outline(image.plan) is not None for image in images]
    drawn = processor.decode_images([image for image, is_one in zip(images, are_comparable, strict=True) if is_one])
    looked = iter(look([[Message("user", (ImagePart(picture),))] for picture in drawn], processor, run))
    return [
        not is_one or are_alike(image.plan, next(looked)[0].parts[0].plan)
        for image, is_one in zip(images, are_comparable, strict=True)
    ]


def answer_ids(parts: Sequence[list[int] | CodesPart], outlines: Sequence[list[int]], layout: ImageLayout) -> list[int]:
    """The tokens of an answer, those of its pictures and their outlines included."""
    ids: list[int] = []
    written = iter(outlines)
    for part in parts:
        if isinstance(part, list):
            ids += part
            continue
        if outline := next(written):
            ids += [*layout.plan_opening(part.grid), *outline]
        ids += layout.token_ids(part.grid)
    return ids


# What a listener hears of answers whose pictures may be drawn again: only what stands in the end.
#
# In: the events of first tries, then the settled answers. Out: text up to the first picture and the progress of drawing
# as they come; pictures, what follows them and the end once nothing changes any more.


class Rehearsal:
    """Stands between a decoding loop and who listens to it."""

    def __init__(self, rows: Sequence[Row], tell: Callable[[DecodingEvent], None]) -> None:
        self.rows, self.tell = rows, tell
        self.has_drawn = [False] * len(rows)

    def hear(self, event: DecodingEvent) -> None:
        """An event of a first try."""
        if not self.rows[event.row].redraws:
            self.tell(event)
            return
        match event:
            case ImageEvent() if not self.has_drawn[event.row]:
                self.has_drawn[event.row] = event.image is not None
                self.tell(replace(event, image=None))
            case TextEvent() if not self.has_drawn[event.row]:
                self.tell(event)
            case _:
                pass

    def settle(self, results: Sequence[Generated]) -> None:
        """Tell the rest of the answers that were held back."""
        for number, (row, result) in enumerate(zip(self.rows, results, strict=True)):
            if row.redraws:
                for event in self._rest(number, result):
                    self.tell(event)

    def _rest(self, number: int, result: Generated) -> Iterator[DecodingEvent]:
        outlines, has_drawn = iter(result.outlines), False
        for part in result.parts:
            if isinstance(part, CodesPart):
                total = part.codes_KN.shape[1]
                yield ImageEvent(number, total, total, part, next(outlines))
                has_drawn = True
            elif has_drawn:
                yield from (TextEvent(number, token_id) for token_id in part)
        yield RowEvent(number, result)


# Best of N: draw every picture several times and keep the one with the highest score. Knows no model.
#
# Candidate j of a picture with seed s has seed s + j * STRIDE. So candidate 0 is the picture without best-of, the
# candidates for a smaller N are the first of those for a larger N, and neighbouring seeds share none.


STRIDE = 1_000_003
"""Larger than the pictures of any benchmark, and prime, so that seeds stay apart where 32 bits of them count."""

Score = Callable[[Sequence[Image.Image]], list[float]]


def check_best_of(best_of: int) -> None:
    """Refuse what is no number of candidates."""
    if not isinstance(best_of, int) or best_of < 1:
        raise ValueError(f"best_of is no number of candidates: found {best_of!r}; use a whole number, 1 or more")


def candidate_seeds(seed: int, best_of: int) -> list[int]:
    """The seeds of the candidates for one picture."""
    return [seed + index * STRIDE for index in range(best_of)]


def index_of_best(scores: Sequence[float]) -> int:
    """Where the highest score is; of equal ones the first."""
    return max(range(len(scores)), key=scores.__getitem__)


def keep_best(candidates: Sequence[Image.Image], scores: Sequence[float], *, best_of: int) -> list[Image.Image]:
    """One picture of every `best_of` candidates; its `info` holds its score and how many it was chosen from."""
    kept = []
    for start in range(0, len(candidates), best_of):
        index = start + index_of_best(scores[start : start + best_of])
        picture = candidates[index]
        picture.info.update(score=scores[index], best_of=best_of)
        kept.append(picture)
    return kept


# The model's own opinion whether a picture shows what a text says: its probability of "yes".
#
# In: pictures and texts. Out: a number from 0 to 1 for each pair; no second model is needed. Two forms of the question:
#
#     genai   VQAScore's (Lin et al. 2024): Does this figure show "..."? Please answer yes or no.
#     world   the short questions of the synthetic world, one for each demand ("Is there a star?" yes, "How many hearts
#             are there?" 2; mllm/world/reader.py); the product of the probabilities of the right answers
#
# The probability of an answer is that of its words, all choices of the vocabulary included, without the end mark.
#
# Letters: B dialogues, T places, V text vocabulary.


QuestionForm = Literal["genai", "world"]
GENAI_QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
BATCH_SIZE = 32


def questions_about(text: str, form: QuestionForm) -> list[Demand]:
    """What to ask about a picture that should show this text."""
    match form:
        case "genai":
            return [Demand(GENAI_QUESTION.format(text=text), "yes")]
        case "world":
            return demands_of(text)
        case _:
            raise ValueError(f"unknown form of question: found {form!r}; use {' or '.join(get_args(QuestionForm))}")


def judge_pictures(
    model: MLLMForConditionalGeneration,
    processor: MLLMProcessor,
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    *,
    form: QuestionForm,
    batch_size: int = BATCH_SIZE,
) -> list[float]:
    """How probable the model finds it that each picture shows its text."""
    asked = [(n, demand) for n, text in enumerate(texts) for demand in questions_about(text, form)]
    shown = [[Message("user", (ImagePart(picture),))] for picture in pictures]
    parts = []
    for start in range(0, len(shown), batch_size):
        looked = look(shown[start : start + batch_size], processor, partial(generate, model))
        parts += [dialogue[0].parts for dialogue in looked]
    dialogues = [
        [Message("user", (*parts[n], TextPart(demand.question))), Message("assistant", (TextPart(demand.expected),))]
        for n, demand in asked
    ]
    totals = [0.0] * len(texts)
    for start in range(0, len(dialogues), batch_size):
        found = answer_log_probabilities(model, processor, dialogues[start : start + batch_size])
        for (n, _), log_probability in zip(asked[start : start + batch_size], found, strict=True):
            totals[n] += log_probability
    return [math.exp(total) for total in totals]


@torch.inference_mode()
def answer_log_probabilities(
    model: MLLMForConditionalGeneration, processor: MLLMProcessor, dialogues: Sequence[Sequence[Message]]
) -> list[float]:
    """The log probability of the last answer of each dialogue, its end mark left out."""
    sequences = [processor.build(messages) for messages in dialogues]
    inputs = processor.collate(sequences).to(model.device)
    mask_BT = inputs["attention_mask"]
    places_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    logits_BTV = model(**inputs, position_ids=places_BT).logits
    longest = mask_BT.shape[1]
    totals = []
    for logits_TV, sequence in zip(logits_BTV, sequences, strict=True):
        labels = sequence.labels_T
        spoken = [t for t in range(len(labels)) if labels[t] not in (IGNORED, model.config.eos_token_id)]
        if not spoken:
            raise ValueError("an answer has no words: found none to weigh; this prompt style does not answer in words")
        offset = longest - len(sequence)
        log_probabilities_SV = logits_TV[[offset + t - 1 for t in spoken]].float().log_softmax(dim=-1)
        words_S = torch.tensor([int(labels[t]) for t in spoken], device=log_probabilities_SV.device)
        totals.append(log_probabilities_SV.gather(1, words_S[:, None]).sum().item())
    return totals


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

        `options` are those of `LoadOptions` (mllm/checkpoint.py): device, dtype, quantization, device_map,
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
            outline: what is where, in place of the model's own (docs/plans.md).
            best_of: draw each picture that many times and keep the one that the model itself finds right most probably
                (mllm/pipeline.py says with which seeds).
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
        pictures = self.processor.decode_images([self.processor.codes_of(result)[0] for result in results])
        for picture, result in zip(pictures, results, strict=True):
            picture.info["seed"] = result.seed
        return pictures

    def judge(
        self, pictures: Sequence[Image.Image], texts: Sequence[str], *, form: QuestionForm | None = None
    ) -> list[float]:
        """How probable the model finds it, 0 to 1, that each picture shows its text (mllm/pipeline.py).

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
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        on_event: OnEvent | None = None,
        **overrides: Unpack[Overrides],
    ) -> str:
        """The answer to a question about one or more pictures, and nothing else."""
        task = check_task(self.tasks, "ask", "describe")
        check_words(question, name="question", hint="say what you want to know")
        pictures = image_parts(images)
        if not pictures:
            raise ValueError("no picture to look at: found none; give one or more")
        messages = [Message("user", (*pictures, TextPart(question)))]
        row = self.build_row(messages, "text", task=task, overrides=overrides)
        return self.processor.to_text(self.run([row], on_event)[0].text_ids)

    def edit(
        self,
        image: ImageSource,
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
        messages = [Message("user", (*image_parts(image), TextPart(instruction)))]
        row = self.build_row(messages, "image", task=task, size=size, outline=outline, overrides=overrides)
        return self.processor.images_of(self.run([row], on_event)[0])[0]

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
