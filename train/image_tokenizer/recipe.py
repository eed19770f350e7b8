"""The fields of a recipe of kind `image_tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
