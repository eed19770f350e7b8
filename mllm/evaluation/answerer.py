"""Answer the items of a benchmark with a pipeline, and describe what decides the answers.

In: a pipeline, items and seeds. Out: one text or one image per item (an `AnswerItems` of mllm/evaluation/run.py), and
the plain values that go into run.json and from there into every result.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from mllm.conversation import ClassPart, ImagePart, Message, TextPart
from mllm.engine.settings import Overrides
from mllm.evaluation.protocol import AnswerMode, Benchmark, BenchmarkItem
from mllm.evaluation.run import Answer
from mllm.files import fingerprint_of, tool_versions
from mllm.pipeline import Pipeline, candidate_seeds, keep_best
from tokenizer.codes import fingerprint
from tokenizer.images import read_image


@dataclass(frozen=True, slots=True)
class PipelineAnswerer:
    pipeline: Pipeline
    mode: AnswerMode
    sampling: Overrides
    best_of: int = 1  # candidates for each image, from which the model chooses the best by its own score

    def __call__(
        self, items: Sequence[BenchmarkItem], seeds: Sequence[int], at_once: int
    ) -> Iterator[tuple[int, Answer]]:
        """Answers with their indices as they end; an error names the item that it is about."""
        taken: list[int] = []
        ended: set[int] = set()

        def dialogues() -> Iterator[list[Message]]:
            for index, item in enumerate(items):
                taken.append(index)
                yield [as_message(item)]

        try:
            if self.best_of > 1 and self.mode == "image":
                for start in range(0, len(items), at_once):
                    taken = [*range(start, min(start + at_once, len(items)))]
                    drawn = self.draw_best([items[n] for n in taken], [seeds[n] for n in taken])
                    yield from zip(taken, drawn, strict=True)
                return
            answers = self.pipeline.answer_each(dialogues(), self.mode, seeds, at_once=at_once, **self.sampling)
            for index, parts in answers:
                ended.add(index)
                yield index, " ".join(map(str, parts)) if self.mode == "text" else parts[0]
        except (ValueError, OSError):
            for index in taken:
                try:
                    if index not in ended:
                        self.pipeline.answer([[as_message(items[index])]], self.mode, [seeds[index]], **self.sampling)
                except (ValueError, OSError) as error:
                    raise ValueError(f"{items[index].where}: {error}") from error
            raise

    def draw_best(self, items: Sequence[BenchmarkItem], seeds: Sequence[int]) -> list[Image.Image]:
        jobs = [(item, s) for item, seed in zip(items, seeds, strict=True) for s in candidate_seeds(seed, self.best_of)]
        dialogues = [[as_message(item)] for item, _ in jobs]
        answers = self.pipeline.answer(dialogues, "image", [seed for _, seed in jobs], **self.sampling)
        images = [part for parts in answers for part in parts if isinstance(part, Image.Image)]
        scores = self.pipeline.score(images, [item.prompt for item, _ in jobs])
        return keep_best(images, scores, best_of=self.best_of)


def as_message(item: BenchmarkItem) -> Message:
    """The user's message: images, then the prompt; or the number of a class."""
    if "class" in item.fields:
        return Message("user", (ClassPart(item.fields["class"]),))
    images = [ImagePart(read_image(path)) for path in item.images]
    return Message("user", (*images, TextPart(item.prompt)))


def describe_run(
    pipeline: Pipeline,
    benchmark: Benchmark,
    questions: Path,
    *,
    counts: tuple[int, int],
    seed: int,
    sampling: Mapping[str, Any],
    prompts: str = "raw",
) -> dict[str, Any]:
    """What decides the answers, in plain values: two runs with equal descriptions give equal answers.

    Args:
        counts: items of this run, and items in the question file.
        sampling: settings that were given; the checkpoint decides the rest.
        prompts: "raw", or "rewritten" if the prompts of the benchmark were changed.
    """
    config = pipeline.config
    return {
        "benchmark": benchmark.name,
        "questions": {"file": questions.name, "fingerprint": fingerprint_of(questions)},
        "items": counts[0],
        "items_in_file": counts[1],
        "seed": seed,
        "model": {
            "fingerprint": model_fingerprint(pipeline.model),
            "image_tokenizer": pipeline.processor.need_image_tokenizer().fingerprint(),
            "dtype": str(pipeline.model.dtype).removeprefix("torch."),
        },
        "prompts": prompts,
        "prompt_style": config.prompt_style,
        "decoding": describe_decoding(pipeline, benchmark, sampling),
        "image_format": {
            "size": list(pipeline.sizes[0]),
            **({"preparation": pipeline.processor.preparation} if benchmark.mode == "text" else {"file": "png"}),
        },
        "versions": tool_versions(),
    }


def describe_decoding(pipeline: Pipeline, benchmark: Benchmark, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in effect; of greedy decoding only that it is."""
    chosen = {name: value for name, value in sampling.items() if name != "max_new_tokens"}
    if benchmark.mode == "image":
        return asdict(pipeline.requests.image_settings("draw", chosen))
    settings = pipeline.requests.text_settings("ask", chosen)
    named = {"greedy": True} if settings.greedy else asdict(settings)
    return {**named, "max_new_tokens": sampling.get("max_new_tokens")}


def describe_measurement(
    pipeline: Pipeline, sampling: Overrides, *, seed: int, count: int, image_size: Any, more: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the scores on generated items, in plain values; `more` are further settings."""
    own = {name: getattr(pipeline.config, f"image_{name}") for name in ("guidance", "temperature", "top_k", "top_p")}
    chosen = {name: value for name, value in sampling.items() if value is not None}
    return {
        "model": model_fingerprint(pipeline.model),
        "image_tokenizer": pipeline.processor.need_image_tokenizer().fingerprint(),
        "seed": seed,
        "count": count,
        "settings": {**more, **own, **chosen, "text": "greedy", "image_size": image_size},
        "versions": tool_versions(),
    }


def choose_groups(groups: Sequence[Any], jobs: Sequence[str] | None) -> list[Any]:
    """The groups whose `job` is one of these; all for None."""
    known = dict.fromkeys(group.job for group in groups)
    if jobs is not None and (not jobs or not set(jobs) <= set(known)):
        raise ValueError(f"jobs must be among {', '.join(known)}, got {', '.join(jobs) or 'none'}")
    return [group for group in groups if jobs is None or group.job in jobs]


def model_fingerprint(model: nn.Module) -> str:
    """A short name for exactly these weights, so that a score says which model it belongs to."""
    return fingerprint(content for item in sorted(model.state_dict().items()) for content in item)
