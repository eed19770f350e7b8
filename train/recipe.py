"""A YAML recipe and command line overrides in, one frozen dataclass out: every field that a training can set.

A recipe's `kind` decides which dataclass the other keys must fit. The resolved recipe is written next to the
checkpoints and can be fed back. Nothing here knows models or trainers.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import field, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mllm.files import TOO_DEEP, read_text, wrong_value
from mllm.world.dialogue import QUESTION_WEIGHTS
from mllm.world.language import DRAWING_WEIGHTS
from mllm.world.scene import MAX_OBJECTS


def _as_path(value: object) -> object:
    if value == "" or isinstance(value, bool) or not isinstance(value, str | Path | int):
        raise ValueError(f"must be a path, got {value!r}; give it")
    return str(value) if isinstance(value, int) else value


def _of_bundled_model(value: object, inside: str = "") -> object:
    """A path; the name of a bundled model stands for its folder, or for what is inside of it."""
    name = str(path := _as_path(value))
    if Path(name).name != name or any((Path(name) / file).is_file() for file in ("", "config.json", "tokenizer.model")):
        return path
    from mllm.checkpoint import BUNDLED_MODELS, find_model_folder  # takes seconds, which a wrong recipe should not

    return find_model_folder(name) / inside if name in BUNDLED_MODELS else path


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}; give one")
    return value


R = TypeVar("R")
Number = BeforeValidator(_no_boolean)
PositiveInt = Annotated[int, Number, Field(gt=0)]
NonNegativeInt = Annotated[int, Number, Field(ge=0)]
PositiveFloat = Annotated[float, Number, Field(gt=0)]
NonNegativeFloat = Annotated[float, Number, Field(ge=0)]
Integer = Annotated[int, Number]
Seed = Annotated[int, Number, Field(ge=0, lt=2**32)]  # of all generators; NumPy's takes no larger one
Real = Annotated[float, Number]
Share = Annotated[float, Number, Field(ge=0, le=1)]
File = Annotated[Path, BeforeValidator(_as_path)]  # a file or folder; its name may be a number
ModelFolder = Annotated[Path, BeforeValidator(_of_bundled_model)]
SentencePieceFile = Annotated[Path, BeforeValidator(partial(_of_bundled_model, inside="tokenizer.model"))]
ImageTokenizerFolder = Annotated[Path, BeforeValidator(partial(_of_bundled_model, inside="image_tokenizer"))]
STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True, validate_default=True)

RECIPES = Path(__file__).parent / "recipes"
RENAMED = {
    "trains": "trainable", "outlines": "plans", "outline_digits": "plan_digits", "lookahead": "buffer_size",
    "lanes": "packing_buffers", "pictures": "images", "world_pictures": "world_images",
}  # fmt: skip
"""Keys of older recipes, which are still read."""
PARAMETER_GROUPS = {
    "text_embedding": ("backbone.embed_tokens.",),
    "backbone": ("backbone.",),  # the rest of it
    "lm_head": ("lm_head.",),
    "projection": ("code_embedding.projection.",),  # attention within an image
    "projector": ("code_embedding.projector.",),  # from its width to the backbone's
    "code_vectors": ("code_embedding.codebooks.",),  # learned ones, of the summed embedder
    "places": ("code_embedding.places.",),
    "source": ("code_embedding.source.",),
    "code_head": ("code_head.",),
}
"""Groups of parameters that are trained or frozen together, and how their names begin; the first that fits counts."""
BESIDE_ADAPTER = ("projection", "projector", "places", "code_head")
"""Groups that can be trained in full while the backbone has adapters."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextTokenizerRecipe:
    output: File
    kind: Literal["text_tokenizer"] = "text_tokenizer"
    vocab_size: PositiveInt = 640  # pieces, including the 256 bytes and 3 special tokens
    records: list[File] = field(default_factory=list)  # that `mllm prepare` reads or wrote. Empty: the synthetic world
    dialogues: PositiveInt = 20_000  # dialogues of the synthetic world to train on
    seed: Integer = 0


DECODER_FIELDS = (
    *("decoder_depth", "decoder_depths", "decoder_expansion", "decoder_padding", "decoder_widths"),
    *("image_size", "shrink"),
)
"""Fields of UniTokConfig that change no weight of the encoder."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerLossWeights:
    l1: NonNegativeFloat = 0.2
    l2: NonNegativeFloat = 1.0
    detail: NonNegativeFloat = 0.0  # extra weight of detailed regions (for flat drawings, not for photographs)
    vq: NonNegativeFloat = 1.0  # commitment and codebook loss
    entropy: NonNegativeFloat = 0.0  # entropy loss: confident per feature, uniform over the codebook
    perceptual: NonNegativeFloat = 0.0  # LPIPS between image and reconstruction; needs `lpips`
    contrastive: NonNegativeFloat = 0.0  # of images and captions; 0 trains no text tower. Needs `text_tokenizer`


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodebookSchedule:
    initialise_at: NonNegativeInt = 300  # steps without the quantizer's loss, before k-means initialises the codebooks
    every: PositiveInt = 10  # steps between two revivals of dead codebook entries
    threshold: NonNegativeFloat = 0.05  # an entry is dead when its usage is below this share of the mean
    until: Share = 0.8  # share of the training after which no entry is revived


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdversarialRecipe:
    """The discriminator; the defaults are UniTok's except for the weight."""

    weight: NonNegativeFloat = 0.0  # of the adversarial loss (UniTok: 0.4); 0: no discriminator. Needs `dino`
    dino: File | None = None  # weights of the frozen DINOv2, as in dinov2_vits14_pretrain.pth
    blocks: tuple[int, ...] = (0, 2, 5, 8, 11)  # blocks of DINOv2 with a discriminator head on their output
    objective: Literal["hinge", "softplus", "linear"] = "hinge"
    start: Share = 0.375  # share of the training after which the discriminator starts
    warmup: Share = 0.03  # share of the training over which its weight and learning rate rise
    fade: Share = 0.06  # share of the training over which the blur of its input fades
    adaptive: bool = True  # scale the adversarial loss to the gradient of the other losses at the last layer
    adaptive_range: tuple[Real, Real] = (0.015, 1e4)
    consistency: Real = 4.0  # weight of the consistency between strongly and lightly augmented images
    augment_probability: Share = 1.0
    cutout: Share = 0.2  # side of the square that is cut out, as a share of the image's
    learning_rate: PositiveFloat = 2e-5
    final_learning_rate: Real = 0.1  # share of the learning rate at the end of the cosine
    betas: tuple[Real, Real] = (0.5, 0.9)
    epsilon: Real = 1e-6
    weight_decay: Real = 0.2
    max_grad_norm: PositiveFloat = 10.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShardsRecipe:
    """Images and captions in WebDataset tars."""

    urls: str | None = None
    """data/{00000..00099}.tar, data/*.tar or folders, separated by `::`. None: the synthetic world."""
    crop_area: tuple[Real, Real] = (0.9, 1.0)  # share of the image's area that the random crop keeps
    crop_ratio: tuple[Real, Real] = (0.75, 4 / 3)  # width over height of the random crop
    window: PositiveInt | None = None
    """Side in pixels of a random window of the crop that is trained on, smaller than `architecture.image_size`."""
    shuffle_shards: PositiveInt = 4  # shards of one reader that are shuffled together; their index is held in memory
    skip_bad_records: bool = False  # skip samples with a missing or damaged image or caption, and log each


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationRecipe:
    """What is measured during training; it does not change the training."""

    images: File | None = None  # folder of images for the sheets; None: training images
    every: NonNegativeInt = 0  # steps between two measurements of zero-shot accuracy; 0 measures at the end only
    imagenet_val: File | None = None
    """Folder with one folder of images per class, for zero-shot top-1 and top-5 accuracy. Needs `classes`."""
    classes: File | None = None  # JSON: folder of a class to its name
    templates: File | None = None  # text file with one template containing {} per line; None: OpenAI's 80
    fid_reference: File | None = None  # folder of PNG images to reconstruct at the end, for rFID
    fid_output: File | None = None
    fid_score: bool = True  # compute rFID and IS with torch-fidelity; false only writes the images


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizerRecipe:
    output: File
    kind: Literal["image_tokenizer"] = "image_tokenizer"
    preset: Literal["tiny", "large"] = "tiny"  # the UniTokConfig to start from
    architecture: dict[str, Any] = field(default_factory=dict)  # fields of UniTokConfig that differ from the preset
    start_from: ImageTokenizerFolder | None = None
    """Folder of a tokenizer (or the name of a bundled model) whose weights and sizes to start from; `architecture` may
    then only change the decoder."""
    trainable: Literal["all", "decoder"] = "all"
    """"decoder" freezes everything that produces codes, so that a language model trained on these codes can use the
    new decoder. With `shrink` in `architecture` the same codes come from images of half the size and are decoded at
    full size. Needs `start_from`."""
    shards: ShardsRecipe = field(default_factory=ShardsRecipe)
    world_crop: PositiveInt | None = None
    """Side in pixels of windows on objects of the synthetic world (most of an image is flat). None: whole images."""
    text_tokenizer: SentencePieceFile | None = None
    """Of captions: a SentencePiece model, OpenAI's bpe_simple_vocab_16e6.txt.gz, or the folder of a CLIP tokenizer."""
    lpips: File | None = None  # weights of LPIPS, as in lpips_with_vgg.pth
    steps: PositiveInt = 4000
    batch_size: PositiveInt = 64  # images per step and process
    learning_rate: PositiveFloat = 1.5e-3
    warmup_steps: NonNegativeInt = 100
    final_learning_rate: Share = 0.02  # share of the learning rate at the end of the cosine
    betas: tuple[Real, Real] = (0.9, 0.95)
    epsilon: Real = 1e-8
    weight_decay: NonNegativeFloat = 0.02
    max_grad_norm: PositiveFloat = 1.0
    recompute_activations: bool = False
    ema_decay: Share = 0.998  # of the average that becomes the finished tokenizer; 0 uses the last weights
    loss: TokenizerLossWeights = field(default_factory=TokenizerLossWeights)
    adversarial: AdversarialRecipe = field(default_factory=AdversarialRecipe)
    codebooks: CodebookSchedule = field(default_factory=CodebookSchedule)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of autocast; the quantizer is always float32. "auto": the fastest here (tokenizer/number_format.py)."""
    num_workers: NonNegativeInt = 1  # processes that render or read images, per training process
    seed: Seed = 0
    log_every: PositiveInt = 50
    save_every: NonNegativeInt = 500
    sheet_every: NonNegativeInt = 500  # steps between two sheets of reconstructions, written as PNG
    keep_checkpoints: PositiveInt = 2

    def __post_init__(self) -> None:
        for name, file in self.files.items():
            if file is None:
                raise ValueError(
                    f"{name} must be given for a loss of this recipe; give it, or set that loss's weight to 0"
                )
        contrastive, evaluation = self.loss.contrastive, self.evaluation
        if self.world_crop is not None and contrastive and self.shards.urls is None:
            raise ValueError("captions describe whole images: leave world_crop out, or set loss.contrastive to 0")
        fixed = sorted(set(self.architecture) - set(DECODER_FIELDS if self.trainable == "decoder" else ()))
        if self.start_from is not None and fixed:
            raise ValueError(
                f"architecture must keep the sizes of start_from, got {fixed}; leave them out (of a decoder alone, "
                f"{', '.join(DECODER_FIELDS)} may change)"
            )
        if self.trainable == "decoder" and (self.start_from is None or contrastive):
            raise ValueError("trainable: decoder must have start_from and loss.contrastive 0; change the recipe")
        if evaluation.imagenet_val and (evaluation.classes is None or not contrastive):
            raise ValueError(
                "evaluation.imagenet_val must come with evaluation.classes and loss.contrastive, got "
                f"{evaluation.classes} and {contrastive}; give both or leave it out"
            )
        if (evaluation.fid_reference is None) != (evaluation.fid_output is None):
            raise ValueError("evaluation.fid_reference and fid_output must be given together; give both or neither")

    @property
    def files(self) -> dict[str, Path | None]:
        """What must exist before the training starts, by the name of the field."""
        needed = {
            "start_from": (self.start_from is not None, self.start_from),
            "lpips": (self.loss.perceptual, self.lpips),
            "adversarial.dino": (self.adversarial.weight, self.adversarial.dino),
            "text_tokenizer": (self.loss.contrastive, self.text_tokenizer),
        }
        return {name: file for name, (is_needed, file) in needed.items() if is_needed}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorldData:
    """The synthetic world as training data: each episode's images are encoded once, wordings are always new."""

    episodes: PositiveInt = 60_000  # scenes (each with an edited scene) that images are rendered from
    dense_every: PositiveInt = 4  # one episode in so many also has its depth and segmentation images encoded
    jobs: dict[str, Real] = field(default_factory=lambda: {"draw": 1.0})  # weight of each job in the mixture
    prompt_dropout: Share = 0.1  # share of drawing and editing samples without instruction, for guidance
    plans: bool = False  # the model plans scenes before drawing, and describes them by plans (mllm/world/plan.py)
    plan_digits: Annotated[int, Number, Field(ge=1, le=2)] = 1
    """Digits of a row or column in a plan: 1 for eighths of the shorter side, 2 for eighths of these."""
    centred: bool = False
    """Objects stand in the middle of their squares in every other episode: there a plan determines the image."""
    questions: PositiveInt | None = None  # questions about one image in the job "ask"; None: one to five, as in tests
    question_weights: dict[str, PositiveFloat] = field(default_factory=lambda: {**QUESTION_WEIGHTS})
    """Weight of each kind of question (mllm/world/language.py); the default is that of tests."""
    drawing_weights: dict[str, PositiveFloat] = field(default_factory=lambda: {**DRAWING_WEIGHTS})
    """Weight of each kind of description in the job "draw" (mllm/world/language.py); the default is that of tests."""
    conversations: dict[str, Real] = field(default_factory=dict)
    """Weight of each kind of conversation in people's own words (mllm/world/people.py), in addition to `jobs`."""
    conversation_images: PositiveInt = 2048
    """Conversations whose images are encoded; all others are learned as words and plans, at a third of the length."""
    words_only: Share = 0.8  # share of these others
    mixture_seed: Integer = 0
    """Seed of the order of jobs and wordings; `seed` also selects the episodes. A stage that reuses the codes of an
    earlier one needs another value, or it starts with the same batches."""
    min_objects: PositiveInt = 1
    max_objects: Annotated[int, Number, Field(le=MAX_OBJECTS)] = MAX_OBJECTS
    """Episodes with fewer or more objects are skipped: a first stage of few objects learns faster."""
    seed: Integer = 0

    def __post_init__(self) -> None:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects must be <= max_objects, got {self.min_objects} and {self.max_objects}")
        if not self.plans and (self.centred or self.plan_digits != WorldData.plan_digits):
            raise ValueError("plans must be true for centred and plan_digits, got false; set it to true")
        if self.centred and self.plan_digits < 2:
            raise ValueError("plan_digits must be 2 with centred, got 1, in whose squares objects would overlap; set 2")
        for name, known in (("question_weights", QUESTION_WEIGHTS), ("drawing_weights", DRAWING_WEIGHTS)):
            if not (weights := getattr(self, name)) or set(weights) - set(known):
                raise ValueError(f"{name} must have some of {', '.join(known)}, got {weights}; change it")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShardSource:
    """One folder that `mllm prepare` made."""

    path: str  # the folder, below `data.root` if it is relative, or its URL (hf://datasets/NAME/PROJECT/FOLDER)
    weight: PositiveFloat = 1.0  # how often its samples come, relative to the other folders'


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MLLMData(WorldData):
    """Training data of the unified model: prepared folders if `shards` names some, else the synthetic world."""

    shards: list[ShardSource] = field(default_factory=list)
    root: File | None = None  # of relative paths in `shards`, also in `validation`. None: the current one
    describe_share: Share = 0.0  # share of captioned images whose caption is learned from the image
    buffer_size: PositiveInt = 64  # sequences that wait in each packing buffer; more leave less padding
    packing_buffers: PositiveInt = 32
    """Independent buffers that rows are packed from in turn; a multiple of processes times loader workers, so that no
    sample is read twice. Changing it changes the batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [item.name for item in fields(WorldData) if item.name not in ("prompt_dropout", "seed")]
        of_world = [name for name in names if getattr(self, name) != getattr(WorldData(), name)]
        if self.shards and of_world:
            raise ValueError(f"data must have either shards or the world's fields, got both ({', '.join(of_world)})")
        if self.root is not None and not self.shards:
            raise ValueError(
                f"data.root must come with data.shards, whose folder it is, got {self.root} alone; leave it out"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClassData:
    """Images by class as training data (train/data/classes.py)."""

    folders: list[File] = field(default_factory=list)
    """Folders that `mllm prepare --format classes` made of the same images, for example at two crops; each time one
    folder and one view is drawn. Empty: the synthetic world's classes, encoded into the output folder."""
    world_images: NonNegativeInt = 0  # images of the world's classes, where `folders` is empty
    class_dropout: Annotated[float, Number, Field(ge=0, lt=1)] = 0.0
    """Share of the samples whose class is dropped; 0.1 allows classifier-free guidance."""
    seed: Integer = 0

    @property
    def is_given(self) -> bool:
        return bool(self.folders) or self.world_images > 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdapterRecipe:
    """Low-rank adapters (LoRA, arXiv:2106.09685; QLoRA, arXiv:2305.14314)."""

    rank: PositiveInt = 64  # inner width; 64, 16 and 0.05 are the defaults of UniTok's training code
    alpha: PositiveFloat = 16.0  # the update is scaled by alpha / rank
    dropout: Share = 0.05
    targets: list[str] = field(default_factory="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split)
    """Linear layers of the backbone that get an adapter."""
    new_tokens: bool = True  # also train the embedding and output rows of the image tokens; the other rows stay frozen
    bits: Annotated[int, Number, Field(ge=4, le=8, multiple_of=4)] | None = None
    """4 or 8: quantize the frozen backbone (QLoRA; needs bitsandbytes). None: keep its precision."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerRecipe:
    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit keeps its two averages in 8 bits (needs bitsandbytes)."""
    learning_rate: PositiveFloat = 5e-5  # of AdamW
    matrix_learning_rate: PositiveFloat = 2e-2  # of Muon
    betas: tuple[Real, Real] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BadSteps:
    """What is done about steps whose loss or gradient is not finite, or whose loss is a spike."""

    allowed: NonNegativeInt = 0  # steps that may be skipped; one more ends the run
    spike: Annotated[float, Number, Field(gt=1)] | None = None
    """A loss above this many times the median of the last 50 is a spike; None: no loss is."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchmarkInLoop:
    """A benchmark of `mllm evaluate` that is run in every validation."""

    name: str  # such as pope; text benchmarks that need no LLM judge
    questions: File
    annotations: File
    images: File
    limit: PositiveInt | None = None  # only the first items; the result then says PARTIAL
    batch_size: PositiveInt = 16


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorldInLoop:
    """The synthetic world's scores, by its exact checker, in every validation."""

    count: PositiveInt = 20  # items of each job; `mllm evaluate world` takes 500
    jobs: list[str] = field(default_factory=lambda: ["draw", "ask"])
    batch_size: PositiveInt = 32


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validation:
    """Losses of each task on held-out batches, and what the model that would be saved now draws and answers."""

    batches: PositiveInt = 4  # packed batches of each task
    shards: list[ShardSource] = field(default_factory=list)
    """Held-out prepared folders, each a task, where `data` names shards too; the world needs none."""
    prompts: list[str] = field(default_factory=list)  # drawn onto one sheet, `samples/step-N.png`
    benchmarks: list[BenchmarkInLoop] = field(default_factory=list)  # answered and scored in `benchmarks/step-N/`
    world: WorldInLoop | None = None  # pass rates on a few items of the synthetic world, in the log


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MLLMRecipe:
    output: File
    kind: Literal["mllm"] = "mllm"
    image_tokenizer: ImageTokenizerFolder  # or the name of a bundled model, as in the next two
    text_tokenizer: ModelFolder  # SentencePiece model of the text tokenizer, or a folder that has one
    model: dict[str, Any] = field(default_factory=dict)  # fields of MLLMConfig; with `start_from`, those to change
    start_from: ModelFolder | None = None  # folder of a model of ours to train further
    backbone: File | None = None
    """Folder of a language model in the Hugging Face layout to build a new model around. Its vocabulary is extended;
    code embedding and code head are new. Of a model of ours only the language model is taken, for another image
    tokenizer or head."""
    trainable: list[str] = field(default_factory=lambda: ["all"])
    """Groups of parameters that are trained: "all", or keys of PARAMETER_GROUPS; the others are frozen."""
    adapter: AdapterRecipe | None = None
    """Low-rank adapters on the backbone; `trainable` then names what else is trained, in full."""
    data: MLLMData = field(default_factory=MLLMData)
    classes: ClassData = field(default_factory=ClassData)
    """Images by class as training data instead of `data`, where it names any."""
    length: PositiveInt = 512  # positions of a packed row
    rows: PositiveInt = 16  # packed rows of a batch on one process
    batches_per_step: PositiveInt | None = None
    """Batches of one optimizer step, over all processes and accumulation steps, so that the number of processes only
    changes the time. None: processes times `trainer.gradient_accumulation_steps`."""
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    compile_backbone: bool = False  # compile the backbone (a minute at the start, a quarter faster afterwards on a CPU)
    scheduled_sampling: Share = 0.0
    """Share of learned image positions that the model sees as it predicts them itself (MLLM's `forward`); a third more
    time."""
    max_logits_mib: PositiveInt | None = None
    """Compute the loss in slices whose float32 logits take at most this many MiB, again in the backward pass."""
    ema_decay: Share = 0.0  # of the average of the weights that becomes the finished model; 0 uses the last weights
    bad_steps: BadSteps = field(default_factory=BadSteps)
    validation: Validation | None = None  # what is measured every `trainer.eval_steps` steps; None measures nothing
    trainer: dict[str, Any] = field(default_factory=dict)  # of transformers.TrainingArguments: max_steps, bf16, ...

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.trainable) - {"all", *PARAMETER_GROUPS}):
            raise ValueError(f"trainable must name some of all, {', '.join(PARAMETER_GROUPS)}, got {unknown}")
        if self.start_from is not None and self.backbone is not None:
            raise ValueError(f"start_from or backbone must be left out, got {self.start_from} and {self.backbone}")
        if self.adapter is not None and (self.start_from is None or not set(self.trainable) <= set(BESIDE_ADAPTER)):
            raise ValueError(
                f"an adapter must have start_from and trainable within {', '.join(BESIDE_ADAPTER)}, got "
                f"{self.start_from} and {self.trainable}; change the recipe"
            )
        wanted = self.validation
        if wanted and not (self.measures_losses or wanted.prompts or wanted.benchmarks or wanted.world):
            raise ValueError(
                "validation must have shards, prompts, benchmarks or world, where data names shards, got none; give "
                "one, or leave validation out"
            )

    @property
    def measures_losses(self) -> bool:
        """Whether a validation has held-out samples; the world and classes always do."""
        is_prepared = bool(self.data.shards) and not self.classes.is_given
        return self.validation is not None and (not is_prepared or bool(self.validation.shards))


def find_recipe(name: str | Path) -> Path:
    """A path as given, or the name of a recipe that comes with the package (`tiny` or `tiny.yaml`)."""
    for candidate in (Path(name), RECIPES / name, (RECIPES / name).with_suffix(".yaml")):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"recipe {str(name)!r} not found; give the path of a YAML file or one of: {shipped}")


class Loader(yaml.SafeLoader):
    """A loader that reads 1e-4 as a number, and refuses a key that comes twice, of which the last one would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+e[-+]?\d+$", re.I), [*"-+0123456789"])


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.load(read_text(path), Loader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = TOO_DEEP if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(f"{path} must be valid YAML, got: {reason}; fix the file") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} must be a mapping of keys to values, got {type(values).__name__}; fix the file")
    return values


def resolve(
    recipe_type: type[R], values: dict[str, Any], overrides: Sequence[str] = (), *, path: Path | None = None
) -> R:
    """Apply `--key value` overrides, check against the dataclass and build it. Raises ValueError that names an unknown
    or missing key, or a value of the wrong type or size. `path`: of the recipe, for messages."""
    given = _read_overrides(overrides)
    for keys, value in given:
        values = _with(values, keys, value)
    try:
        return TypeAdapter(recipe_type).validate_python(_with_new_names(values))
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        reason = wrong_value(error, advice=like_a_key_of(recipe_type, str(where[-1])) if where else "change it")
        source, beside = str(path or "the recipe"), []
        for keys, _ in given:
            names, option = tuple(RENAMED.get(key, key) for key in keys), f"--{'.'.join(keys)}"
            if where[: len(names)] == names:
                source = option
            elif names[: len(where)] == where and names[-1] in reason:  # values that do not fit each other
                beside.append(option)
        source += f" with {' and '.join(beside)}" if beside else ""
        raise ValueError(f"{source} must fit {recipe_type.__name__}, but {reason}") from None


def like_a_key_of(recipe_type: type, key: str) -> str:
    """What to do about a key: to write the one that it looks like, or to change it."""
    schema = TypeAdapter(recipe_type).json_schema()
    known = {name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", ())}
    alike = get_close_matches(key, known - {key}, n=1)
    return f"write {alike[0]}" if alike and key not in known else "change it"


def _read_overrides(argv: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Nested keys and values of `--key value` or `--key=value`; what is in the free sections is read as in a file."""
    pairs, waiting = [], list(argv)
    while waiting:
        name, equals, text = waiting.pop(0).partition("=")
        if not name.startswith("--") or not (equals or waiting):
            raise ValueError(f"overrides must be --key value, got {name!r}; see mllm train --help")
        text = text if equals else waiting.pop(0)
        keys = name.removeprefix("--").split(".")
        is_yaml = keys[0] in ("model", "architecture", "trainer") or text[:1] in ("[", "{") or text == "null"
        try:
            pairs.append((keys, yaml.load(text, Loader) if is_yaml else text))
        except yaml.YAMLError:
            raise ValueError(f"{name} must be valid YAML, got {text!r}; fix the value") from None
    return pairs


def _with(values: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    first, *below = keys
    inside = values.get(first)
    return {**values, first: _with(inside if isinstance(inside, dict) else {}, below, value) if below else value}


def _with_new_names(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {RENAMED.get(key, key): _with_new_names(inside) for key, inside in value.items()}


def as_yaml(recipe: Any) -> str:
    """The resolved recipe as YAML that `resolve` reads back to an equal recipe."""
    return yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe), default=str)), sort_keys=False)
