"""A YAML recipe and command line overrides in, one frozen dataclass out.

A recipe names its `kind`; the kind decides which dataclass the other keys must fit. Unknown keys and wrong types are
errors that name the key. The resolved recipe can be written beside a checkpoint and fed back. This file knows nothing
of training.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from mllm.world.language import DRAWING_WEIGHTS
from mllm.world.plan import LEVELS
from mllm.world.questions import QUESTION_WEIGHTS
from mllm.world.scene import MAX_OBJECTS
from train.optimizers import OptimizerRecipe

R = TypeVar("R")

RENAMED = {"lanes": "packing_buffers", "lookahead": "buffer_size"}
"""Keys of older recipes, which are still read."""
ROOT = "recipe"
"""The one argument that the parser knows; `--key` of a user is `--recipe.key` to it."""

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name: str | Path) -> Path:
    """A path as given, or the name of a recipe that comes with the package (`tiny` or `tiny.yaml`)."""
    candidates = [Path(name), RECIPES / name, (RECIPES / name).with_suffix(".yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"there is no recipe {str(name)!r}; give the path of a YAML file or one of: {shipped}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}; mend the file") from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of keys to values, found {type(values).__name__}")
    return values


def resolve(recipe_type: type[R], values: dict[str, Any], overrides: Sequence[str] = ()) -> R:
    """Check `values` against the dataclass, apply `--key value` overrides and build it.

    Raises:
        ValueError: an unknown key, a missing key or a value of the wrong type, named in the message.
    """
    values, overrides = override_sections(recipe_type, _with_new_names(values), overrides)
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_argument(f"--{ROOT}", type=recipe_type)
    try:
        parsed = parser.parse_object({ROOT: values})
        parsed = parser.parse_args([_under_root(word) for word in overrides], namespace=parsed)
        return parser.instantiate(parsed)[ROOT]
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        sentence = " ".join(str(error).split()).replace(f"{ROOT}.", "")
        raise ValueError(f"the recipe does not fit {recipe_type.__name__}: {sentence}") from None


def override_sections(
    recipe_type: type, values: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Put overrides of sections that a recipe may have or not (`adapter`, `validation`) into its values.

    The parser takes them for such a section only while it is absent. Returns the values and the other words.
    """
    hints = get_type_hints(recipe_type)
    others, words = [], list(overrides)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        section = name.partition(".")[0]
        if not word.startswith("--") or not _is_optional_section(hints.get(section)) or not (equals or words):
            others.append(word)
            continue
        text = value if equals else words.pop(0)
        try:
            read = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--{name} is not valid YAML: found {text!r}; mend the value") from None
        values = _with(values, name.split("."), read)
    return values, others


def _with(values: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy with one value set, below as many keys as there are."""
    first, *below = keys
    inside = values.get(first)
    return {**values, first: _with(inside if isinstance(inside, dict) else {}, below, value) if below else value}


def _with_new_names(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {RENAMED.get(key, key): _with_new_names(inside) for key, inside in value.items()}


def _is_optional_section(hint: Any) -> bool:
    choices = get_args(hint)
    return NoneType in choices and any(dataclasses.is_dataclass(choice) for choice in choices)


def _under_root(word: str) -> str:
    return f"--{ROOT}.{word[2:]}" if word.startswith("--") else word


def as_yaml(recipe: Any) -> str:
    """The resolved recipe as YAML text that `resolve` reads back to an equal recipe."""
    return yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe), default=str)), sort_keys=False)


# The fields of low-rank adapters in a recipe (LoRA, arXiv:2106.09685; QLoRA, arXiv:2305.14314).


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    rank: int = 64
    """Columns of the two small matrices; 64, 16 and 0.05 are the defaults of UniTok's training code."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """Of the adapters' input."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers of the backbone that get an adapter."""
    new_tokens: bool = True
    """Train the embedding and output rows of the image tokens whole; the other rows stay frozen."""
    bits: int | None = None
    """4 or 8: hold the frozen backbone quantized (QLoRA; needs bitsandbytes). None: in its own precision."""

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise ValueError(f"adapter.bits is {self.bits}; use 4 or 8, or leave it out")
        if self.rank < 1:
            raise ValueError(f"adapter.rank is {self.rank}; use 1 or more")


# The fields of a recipe that trains a class-conditional model.


@dataclass(frozen=True, kw_only=True)
class ClassData:
    """Pictures by class as training data (train/data/classes.py)."""

    folders: list[Path] = field(default_factory=list)
    """Folders that `mllm prepare --format classes` made of the same images, for example at two enlargements; each time
    one folder and one view is picked. Empty: the synthetic world's classes, encoded into the output folder."""
    world_pictures: int = 0
    """How many pictures of the world's classes, where `folders` is empty."""
    class_dropout: float = 0.0
    """Share of the samples whose class is dropped. 0 is enough to draw without guidance; 0.1 allows guidance."""
    seed: int = 0

    @property
    def is_given(self) -> bool:
        """Whether the recipe trains on pictures by class at all."""
        return bool(self.folders) or self.world_pictures > 0

    def __post_init__(self) -> None:
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout is a share: found {self.class_dropout}; use 0 or more, below 1")


# What is done when a step goes wrong: a loss or gradient that is no number, or a loss far above the recent ones.
#
# In: the loss of a step over all ranks, then its gradient norm. Out: whether the step may change the weights. More bad
# steps than allowed end the run with one sentence, before anything of the bad step is written.


logger = logging.getLogger(__name__)

WINDOW = 50
"""Recent losses that a spike is judged against."""
MIN_SEEN = 10
"""Losses before a spike can be judged."""
FILE = "bad_steps.json"
"""In a checkpoint: what was seen so far."""


@dataclass(frozen=True, kw_only=True)
class BadSteps:
    allowed: int = 0
    """Steps of a run that may be skipped; one more ends it."""
    spike: float | None = None
    """A loss above this many times the median of the last 50 is bad; None: only what is no number is."""

    def __post_init__(self) -> None:
        if self.allowed < 0 or (self.spike is not None and self.spike <= 1):
            raise ValueError(f"bad_steps has allowed {self.allowed} and spike {self.spike}; use 0 or more, and above 1")


class BadStepsError(ValueError):
    """A run went wrong more often than its recipe allows."""


class StepJudge:
    """Counts the bad steps of a run, over all its stops: `save` and `load` carry the count and the recent losses."""

    def __init__(self, rule: BadSteps) -> None:
        self.rule = rule
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.num_bad = 0

    def fault_of_loss(self, loss: float) -> str | None:
        """What is wrong with the loss of a step, in words; a good loss is remembered."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.rule.spike is not None and len(self.recent) >= MIN_SEEN:
            median = statistics.median(self.recent)
            if loss > self.rule.spike * median:
                return f"the loss is {loss:.4g}, the median of the last {len(self.recent)} is {median:.4g}"
        self.recent.append(loss)
        return None

    def fault_of_gradient(self, norm: float) -> str | None:
        """What is wrong with the gradient of a step, in words."""
        return None if math.isfinite(norm) else f"the gradient norm is {norm}"

    def count(self, fault: str, *, step: int) -> None:
        """Count a bad step.

        Raises:
            BadStepsError: it was one too many.
        """
        self.num_bad += 1
        if self.num_bad > self.rule.allowed:
            raise BadStepsError(
                f"training went wrong at step {step}: {fault}, after {self.num_bad - 1} skipped steps; nothing of this "
                "step was saved, so lower the learning rate or look at the data, then run the recipe again to go on "
                "from the newest checkpoint (bad_steps.allowed skips a few such steps)"
            )
        logger.warning("step %d is skipped (%d of %d): %s", step, self.num_bad, self.rule.allowed, fault)

    def save(self, folder: Path) -> None:
        """Write what was seen so far into a checkpoint."""
        (folder / FILE).write_text(json.dumps({"num_bad": self.num_bad, "recent": list(self.recent)}) + "\n")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; older ones hold nothing of this."""
        if (folder / FILE).is_file():
            seen = json.loads((folder / FILE).read_text())
            self.num_bad, self.recent = seen["num_bad"], deque(seen["recent"], maxlen=WINDOW)


# The parts of the unified model by name: which of them a training stage trains, which it freezes.
#
# In: a model and names. Out: `requires_grad` of its parameters. Knows no data and no optimizer.


ALL = "all"
PARTS = {
    "backbone": ("backbone.layers.", "backbone.norm."),
    "text_embedding": ("backbone.embed_tokens.",),
    "lm_head": ("lm_head.",),
    "projection": ("code_embedding.projection.",),  # attention within an image
    "projector": ("code_embedding.projector.",),  # from its width to the backbone's
    "code_vectors": ("code_embedding.codebooks.",),  # learned ones, of the summed embedder
    "places": ("code_embedding.places.",),
    "code_head": ("code_head.",),
}
"""Beginnings of parameter names. The image tokenizer's codebooks are no parameters and never learn."""
BESIDE_ADAPTERS = {"projection", "projector", "places", "code_head"}
"""Parts that can be trained whole while the backbone has adapters."""


def check_parts(names: Sequence[str]) -> None:
    """Refuse names that are no part.

    Raises:
        ValueError: one is unknown.
    """
    unknown = sorted(set(names) - set(PARTS) - {ALL})
    if unknown:
        raise ValueError(f"trains names unknown parts: found {', '.join(unknown)}; use {ALL} or {', '.join(PARTS)}")


def part_of(parameter: str) -> str:
    """The part that a parameter belongs to."""
    for name, beginnings in PARTS.items():
        if parameter.startswith(beginnings):
            return name
    raise ValueError(f"the parameter {parameter!r} belongs to no part of train/recipe.py; add its beginning there")


def choose_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Freeze all but the named parts (changed in place)."""
    check_parts(names)
    for name, parameter in model.named_parameters():
        if ALL not in names and part_of(name) not in names:
            parameter.requires_grad_(False)


# The fields of a recipe of kind `mllm`.


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
    (mllm/world/plan.py)."""
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
    """How often the job "ask" asks what, by the kinds of mllm/world/language.py. The default is how often tests ask; a
    model may need more of what it finds hard. Where a scene has none of the kinds, its background is asked for."""
    drawing_weights: dict[str, float] = field(default_factory=lambda: {**DRAWING_WEIGHTS})
    """How often the job "draw" describes a scene in which way, by the kinds of mllm/world/language.py. The default
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
    buffer_size: int = 64
    """Sequences that wait, in each packing buffer, for a row they fit into; more leave less padding."""
    packing_buffers: int = 32
    """Independent buffers that batches are packed from in turn. Processes times loader workers should divide it: then
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
    """Parts that learn, by the names in train/recipe.py; the others are frozen."""
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


# The fields of a recipe of kind `text_tokenizer`.


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRecipe:
    output: Path
    """The SentencePiece model file to write."""
    kind: Literal["text_tokenizer"] = "text_tokenizer"
    vocab_size: int = 640
    """Pieces, the 256 bytes and 3 special tokens among them."""
    dialogues: int = 20_000
    """Dialogues of the synthetic world whose sentences are counted."""
    seed: int = 0


# The fields of a recipe of kind `image_tokenizer`.


DECODER_FIELDS = frozenset(
    {
        "decoder_depth",
        "decoder_depths",
        "decoder_expansion",
        "decoder_padding",
        "decoder_widths",
        "image_size",
        "shrink",
    }
)
"""Sizes that change no weight of the encoder."""


@dataclass(frozen=True, kw_only=True)
class TokenizerLossWeights:
    l1: float = 0.2
    """Mean absolute error of the reconstruction."""
    l2: float = 1.0
    """Mean squared error of the reconstruction."""
    detail: float = 0.0
    """How much more a pixel counts where the picture is busy (flat drawings profit, photographs need none)."""
    vq: float = 1.0
    """Commitment and codebook loss."""
    entropy: float = 0.0
    """Entropy loss: sure about each feature, even over the codebook."""
    perceptual: float = 0.0
    """LPIPS between picture and reconstruction; 0 leaves it out. Needs `lpips`."""
    contrastive: float = 0.0
    """Pictures against their captions; 0 leaves the text tower out of training. Needs `text_tokenizer`."""


@dataclass(frozen=True, kw_only=True)
class CodebookSchedule:
    initialise_at: int = 300
    """Steps without the quantizer's loss; then the codebooks are placed on the encoder's features (k-means).
    0 begins with the codebooks as they are."""
    every: int = 10
    """Steps between two revivals of dead codebook entries."""
    threshold: float = 0.05
    """An entry is dead when its usage is below this share of the mean."""
    until: float = 0.8
    """Share of the training after which no entry is revived, so that the decoder can settle."""


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe:
    """The discriminator and what it asks of the tokenizer; the defaults are UniTok's but for the weight."""

    weight: float = 0.0
    """Of the adversarial loss (UniTok: 0.4); 0 trains without a discriminator. Needs `dino`."""
    dino: Path | None = None
    """Weights of the frozen DINOv2 in the layout of dinov2_vits14_pretrain.pth."""
    blocks: tuple[int, ...] = (0, 2, 5, 8, 11)
    """Blocks of DINOv2 whose output is judged, one head each."""
    objective: Literal["hinge", "softplus", "linear"] = "hinge"
    start: float = 0.375
    """Share of the training after which the discriminator comes in."""
    warmup: float = 0.03
    """Share of the training in which its weight and its learning rate rise."""
    fade: float = 0.06
    """Share of the training in which the blur before it goes away."""
    adaptive: bool = True
    """Scale the adversarial loss to the gradient of the other losses on the pictures, at the last layer."""
    adaptive_range: tuple[float, float] = (0.015, 1e4)
    """Bounds of that scale."""
    consistency: float = 4.0
    """Weight of judging strongly changed pictures like lightly changed ones."""
    augment_probability: float = 1.0
    """Of each kind of change before the discriminator."""
    cutout: float = 0.2
    """Side of the square that is cut out, as a share of the picture's."""
    learning_rate: float = 2e-5
    final_learning_rate: float = 0.1
    """Share of the learning rate that the cosine ends at."""
    betas: tuple[float, float] = (0.5, 0.9)
    epsilon: float = 1e-6
    weight_decay: float = 0.2
    max_grad_norm: float = 10.0


@dataclass(frozen=True, kw_only=True)
class ShardsRecipe:
    """Pictures and captions in WebDataset tars."""

    urls: str | None = None
    """Brace pattern of files on disk, such as data/{00000..00099}.tar; several patterns are separated by `::`.
    Without it the training pictures are those of the synthetic world."""
    crop_area: tuple[float, float] = (0.9, 1.0)
    """Share of the picture's area that the random crop keeps."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of the random crop."""
    shuffle_shards: int = 4
    """Shards of one reader whose samples are mixed; only their index is held in memory."""
    skip_bad_records: bool = False
    """Leave out samples without a picture, without a needed caption or with a damaged one; each is logged."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """What is measured while training; nothing of it changes the training."""

    pictures: Path | None = None
    """Folder of pictures for the sheets; without it they show what is trained on."""
    every: int = 0
    """Steps between two measurements of zero-shot accuracy; 0 measures at the end only."""
    imagenet_val: Path | None = None
    """Folder with one folder of pictures per class; gives zero-shot top-1 and top-5 accuracy. Needs `classes`."""
    classes: Path | None = None
    """JSON: folder of a class to its name."""
    templates: Path | None = None
    """Text file, one template with {} per line; without it OpenAI's 80."""
    fid_reference: Path | None = None
    """Folder of PNG pictures that are reconstructed at the end, for rFID."""
    fid_output: Path | None = None
    """Where the reconstructions go, under the same names."""
    fid_score: bool = True
    """Compute rFID and IS with torch-fidelity; false only writes the pictures."""


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    output: Path
    """Folder for checkpoints, metrics and the finished tokenizer."""
    kind: Literal["image_tokenizer"] = "image_tokenizer"
    preset: Literal["tiny", "large"] = "tiny"
    """The UniTokConfig to start from."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of UniTokConfig that differ from the preset."""
    start_from: Path | None = None
    """Folder of a tokenizer to go on from, sizes included; `preset` is not used then, and `architecture` only for a
    decoder of other sizes."""
    trains: Literal["all", "decoder"] = "all"
    """"decoder" leaves everything that codes are made with as it is, so that a language model trained on these codes
    goes on drawing with a better decoder. With `shrink` in `architecture` the same codes are made of pictures at half
    the size and drawn at the full one. Needs `start_from`."""
    shards: ShardsRecipe = field(default_factory=ShardsRecipe)
    world_crop: int | None = None
    """Side of the windows on objects that are shown instead of the synthetic world's whole pictures, in pixels; None
    shows whole ones. Most of a picture is flat background: a window of half its side teaches as much about objects at a
    quarter of the cost. Pictures from shards are cropped by `shards.crop_area` instead."""
    text_tokenizer: Path | None = None
    """What turns captions into ids for the text tower: a SentencePiece model, OpenAI's list of merges
    (bpe_simple_vocab_16e6.txt.gz), or a folder of a CLIP tokenizer."""
    lpips: Path | None = None
    """Weights of LPIPS in the layout of lpips_with_vgg.pth."""
    steps: int = 4000
    batch_size: int = 64
    """Pictures per step and process."""
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    final_learning_rate: float = 0.02
    """Share of the learning rate that the cosine ends at."""
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    """Of AdamW."""
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    recompute_activations: bool = False
    """Save memory: compute the transformers' activations again going backward."""
    ema_decay: float = 0.998
    """Of the average of the weights that is shipped; 0 ships the last weights."""
    loss: TokenizerLossWeights = field(default_factory=TokenizerLossWeights)
    adversarial: AdversarialRecipe = field(default_factory=AdversarialRecipe)
    codebooks: CodebookSchedule = field(default_factory=CodebookSchedule)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of the matrix products (autocast); the quantizer is always float32. "auto": what is fastest on this machine."""
    num_workers: int = 1
    """Processes that render or read pictures, per training process."""
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    sheet_every: int = 500
    """Steps between two sheets of reconstructions, written as PNG."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        needs = (
            ("loss.perceptual", self.loss.perceptual, "lpips", self.lpips),
            ("adversarial.weight", self.adversarial.weight, "adversarial.dino", self.adversarial.dino),
            ("loss.contrastive", self.loss.contrastive, "text_tokenizer", self.text_tokenizer),
        )
        for name, weight, file_name, file in needs:
            if weight and file is None:
                raise ValueError(f"{name} is {weight} but {file_name} is not given; give the file or set {name} to 0")
        if self.world_crop is not None and self.loss.contrastive and self.shards.urls is None:
            raise ValueError(
                f"world_crop {self.world_crop} shows a part of a scene and captions describe all of it; leave it "
                "out, or set loss.contrastive to 0"
            )
        fixed = sorted(set(self.architecture) - (DECODER_FIELDS if self.trains == "decoder" else set()))
        if self.start_from is not None and fixed:
            raise ValueError(
                f"start_from brings the sizes of {self.start_from} but architecture sets {fixed}; leave one of them "
                f"out (with trains: decoder, {', '.join(sorted(DECODER_FIELDS))} may change)"
            )
        if self.trains == "decoder" and (self.start_from is None or self.loss.contrastive):
            raise ValueError(
                "training the decoder alone needs codes that are there and no captions; found start_from "
                f"{self.start_from} and loss.contrastive {self.loss.contrastive}; name a tokenizer in start_from and "
                "set loss.contrastive to 0"
            )
        self._check_evaluation(self.evaluation)

    def _check_evaluation(self, evaluation: EvaluationRecipe) -> None:
        if evaluation.imagenet_val and (evaluation.classes is None or not self.loss.contrastive):
            raise ValueError(
                f"zero-shot accuracy on {evaluation.imagenet_val} needs class names and training against captions; "
                f"found classes {evaluation.classes} and loss.contrastive {self.loss.contrastive}; give both or leave "
                "evaluation.imagenet_val out"
            )
        if (evaluation.fid_reference is None) != (evaluation.fid_output is None):
            raise ValueError(
                "rFID needs a folder to read and one to write; found "
                f"{evaluation.fid_reference} and {evaluation.fid_output}; give both or neither"
            )

    @property
    def files(self) -> dict[str, Path]:
        """What this recipe reads before it begins, by the name of the field."""
        named = {
            "start_from": self.start_from,
            "lpips": self.lpips if self.loss.perceptual else None,
            "adversarial.dino": self.adversarial.dino if self.adversarial.weight else None,
            "text_tokenizer": self.text_tokenizer if self.loss.contrastive else None,
        }
        return {name: file for name, file in named.items() if file is not None}

    @property
    def left_out(self) -> list[str]:
        """Losses that this recipe trains without, by name, so that nothing is missing silently."""
        weights = {
            "vq": self.loss.vq,
            "entropy": self.loss.entropy,
            "perceptual (LPIPS)": self.loss.perceptual,
            "adversarial (DINOv2)": self.adversarial.weight,
            "contrastive": self.loss.contrastive,
        }
        return [name for name, weight in weights.items() if not weight]
