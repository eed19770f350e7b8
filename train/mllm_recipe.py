"""The fields of a recipe of kind `mllm`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mllm.world.ask_language import QUESTION_WEIGHTS
from mllm.world.draw_language import DRAWING_WEIGHTS
from mllm.world.outline import LEVELS
from mllm.world.scene import MAX_OBJECTS
from train.adapter_recipe import AdapterRecipe
from train.bad_steps import BadSteps
from train.class_recipe import ClassData
from train.optimizers import OptimizerRecipe
from train.parts import ALL, BESIDE_ADAPTERS, check_parts


@dataclass(frozen=True, kw_only=True)
class WorldData:
    """The synthetic world as training data: every episode's pictures are encoded once, wordings are always new."""

    episodes: int = 60_000
    """Scenes (each with an edited scene) that pictures are made of."""
    dense_every: int = 4
    """One episode in so many also has its depth and segmentation pictures encoded."""
    jobs: dict[str, float] = field(default_factory=lambda: {"draw": 1.0})
    """Weight of each job in the mixture."""
    prompt_dropout: float = 0.1
    """Share of the drawing and editing samples whose instruction is dropped, so that guidance has its other branch."""
    outlines: bool = False
    """Whether scenes are drawn after an outline of them, and outlined where they are looked at
    (mllm/world/outline.py)."""
    outline_digits: int = 1
    """Digits of a row or a column in an outline: 1 for squares of an eighth of the shorter side, 2 for eighths of
    these."""
    centred: bool = False
    """Whether every other episode has its objects in the middle of their squares; drawings from words are of those. One
    outline then means one picture, and little is left to chance when codes are drawn."""
    questions: int | None = None
    """Questions that the job "ask" puts about one picture; None for one to five, as in tests. Answers are short: only
    many of them make a picture worth its positions."""
    question_weights: dict[str, float] = field(default_factory=lambda: {**QUESTION_WEIGHTS})
    """How often the job "ask" asks what, by the kinds of mllm/world/questions.py. The default is how often tests ask; a
    model may need more of what it finds hard. Where a scene has none of the kinds, its background is asked for."""
    drawing_weights: dict[str, float] = field(default_factory=lambda: {**DRAWING_WEIGHTS})
    """How often the job "draw" describes a scene in which way, by the kinds of mllm/world/draw_language.py. The default
    is as in tests. A scene that gives no occasion for a kind is described fully."""
    mixture_seed: int = 0
    """Of which jobs and wordings come when; `seed` also names the episodes. A stage that goes on with the codes of the
    one before it needs another one, or it begins with the same batches."""
    min_objects: int = 1
    max_objects: int = MAX_OBJECTS
    """Episodes whose scenes have fewer or more objects are passed over. A first stage of one object, then two, learns
    to draw what the words say many times sooner than the whole world at once."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS:
            raise ValueError(
                f"data.min_objects is {self.min_objects} and data.max_objects {self.max_objects}; scenes have 1 to "
                f"{MAX_OBJECTS} objects"
            )
        if self.outline_digits not in LEVELS:
            raise ValueError(f"data.outline_digits is {self.outline_digits}; give {' or '.join(map(str, LEVELS))}")
        if not self.outlines and (self.centred or self.outline_digits != WorldData.outline_digits):
            raise ValueError(
                f"data.outlines is false, but data.centred is {self.centred} and data.outline_digits "
                f"{self.outline_digits}; set it to true, or leave them out"
            )
        if self.centred and self.outline_digits < 2:
            raise ValueError(
                "data.centred moves objects to where outlines say, which with data.outline_digits 1 is up to half a "
                "position away, over each other and out of the picture; give 2"
            )
        _check_weights("question_weights", self.question_weights, QUESTION_WEIGHTS)
        _check_weights("drawing_weights", self.drawing_weights, DRAWING_WEIGHTS)
        if self.questions is not None and self.questions < 1:
            raise ValueError(f"data.questions is {self.questions}; give 1 or more")


def _check_weights(name: str, weights: dict[str, float], known: dict[str, int]) -> None:
    if unknown := sorted(set(weights) - set(known)):
        raise ValueError(f"data.{name} names {unknown}; the kinds are {', '.join(known)}")
    if not weights or min(weights.values()) <= 0:
        raise ValueError(f"data.{name} is {weights}; give weights above 0, one at least")


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """One folder that `mllm prepare` made."""

    path: str
    """The folder, or its URL (hf://datasets/NAME/PROJECT/FOLDER)."""
    weight: float = 1.0
    """How often its samples come, relative to the other folders'."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkInLoop:
    """A benchmark of `mllm evaluate` that is run whenever the model is validated."""

    name: str
    """Such as pope; benchmarks of words, which need no judge."""
    questions: Path
    """Its question file."""
    annotations: Path
    """What it is scored with."""
    images: Path
    """Folder of its pictures."""
    limit: int | None = None
    """Only the first items; the result then says PARTIAL."""
    batch_size: int = 16
    """Items at once."""


@dataclass(frozen=True, kw_only=True)
class WorldInLoop:
    """The synthetic world's scores, by its exact checker, whenever the model is validated."""

    count: int = 20
    """Items of each job; `mllm evaluate world` takes 500."""
    jobs: list[str] = field(default_factory=lambda: ["draw", "ask"])
    """Such as draw, ask, describe, edit."""
    batch_size: int = 32
    """Items at once."""

    def __post_init__(self) -> None:
        if min(self.count, self.batch_size) < 1:
            raise ValueError(
                f"validation.world needs items: found count {self.count} and batch_size {self.batch_size}; "
                "use 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Held-out losses in the loop: of each task alone, on batches that training never sees."""

    batches: int = 4
    """Packed batches of each task."""
    shards: list[ShardSource] = field(default_factory=list)
    """Prepared folders, each measured alone, where `data` names shards too; the world needs none."""
    prompts: list[str] = field(default_factory=list)
    """Sentences that are drawn by the model that would be saved now, on one sheet `samples/step-N.png`."""
    benchmarks: list[BenchmarkInLoop] = field(default_factory=list)
    """Answered and scored by the model that would be saved now, in `benchmarks/step-N/`."""
    world: WorldInLoop | None = None
    """Pass rates on a few items of the synthetic world, in the log."""


@dataclass(frozen=True, kw_only=True)
class MLLMData(WorldData):
    """What the model is trained on: prepared folders if `shards` names some, else the synthetic world."""

    shards: list[ShardSource] = field(default_factory=list)
    describe_share: float = 0.0
    """Share of the captioned pictures that are learned the other way round: the caption from the picture."""
    lookahead: int = 64
    """Samples that wait, in each lane, for a row they fit into; more leave less padding."""
    lanes: int = 32
    """Independent streams that batches are packed from in turn. Processes times loader workers should divide it: then
    no sample is read twice. Changing it changes the batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        world = WorldData()
        names = [item.name for item in fields(WorldData) if item.name not in ("prompt_dropout", "seed")]
        of_world = [name for name in names if getattr(self, name) != getattr(world, name)]
        if self.shards and of_world:
            raise ValueError(f"data names shards and also the world's {', '.join(of_world)}; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class MLLMRecipe:
    output: Path
    """Folder for checkpoints, metrics and the finished model."""
    kind: Literal["mllm"] = "mllm"
    image_tokenizer: Path
    """Folder of the image tokenizer."""
    text_tokenizer: Path
    """SentencePiece model of the text tokenizer."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of MLLMConfig, for a model that starts from nothing."""
    start_from: Path | None = None
    """Folder of a model to go on from. `model` then holds what changes in its config; see train/build_model.py."""
    backbone: Path | None = None
    """Folder of a language model (Llama-2 in the Hugging Face layout) that a new model is built around. Its vocabulary
    is extended; what it does not have (code embedding, code head) starts new, or from the image tokenizer. Also one of
    our own models, of which only the language model is taken, for another image tokenizer or another head."""
    trains: list[str] = field(default_factory=lambda: [ALL])
    """Parts that learn, by the names in train/parts.py; the others are frozen."""
    adapter: AdapterRecipe | None = None
    """Low-rank adapters on the backbone instead of its own weights (LoRA); `trains` then names what is trained whole
    beside them."""
    data: MLLMData = field(default_factory=MLLMData)
    classes: ClassData = field(default_factory=ClassData)
    """Pictures by class as training data, instead of `data`, where it names any."""
    length: int = 512
    """Positions of a packed row."""
    rows: int = 16
    """Packed rows of a batch on one process."""
    batches_per_step: int | None = None
    """Batches of one optimizer step, over all processes and accumulation steps: set, the number of processes changes
    nothing but time. None: as many as processes times `trainer.gradient_accumulation_steps`."""
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    compile_backbone: bool = False
    """Compile the backbone (a minute at the start, a quarter faster afterwards on a CPU)."""
    max_logits_mib: int | None = None
    """Compute the loss in slices whose logits take no more MiB than this (float32), and again in the backward pass.
    None: all logits of a batch at once."""
    ema_decay: float = 0.0
    """Of the average of the weights that is shipped; 0 ships the last weights."""
    bad_steps: BadSteps = field(default_factory=BadSteps)
    """What is done when the loss or the gradient goes wrong."""
    validation: Validation | None = None
    """What is measured every `trainer.eval_steps` steps; None measures nothing."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers.TrainingArguments: max_steps, lr_scheduler_type, save_steps, bf16, ..."""

    def __post_init__(self) -> None:
        check_parts(self.trains)
        if self.start_from is not None and self.backbone is not None:
            raise ValueError(
                f"a model goes on from one place: found start_from {self.start_from} and backbone {self.backbone}; "
                "give one of them"
            )
        if self.adapter is not None and (self.start_from is None or set(self.trains) - BESIDE_ADAPTERS):
            raise ValueError(
                "an adapter needs a model to go on from, and trains may then name "
                f"{', '.join(sorted(BESIDE_ADAPTERS))} "
                f"only: found start_from {self.start_from} and trains {self.trains}; mend the recipe"
            )
