"""All that is asked of a tokenizer, put together to one result.

In: the typed arguments. Out: the content of result.json, protocol `tokenizer@CROP-SIZE`: numbers of different crops are
not comparable, and references are cropped exactly as what is reconstructed.
"""

from __future__ import annotations

import importlib
import io
import tarfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mllm.checkpoint import choose_device, find_image_tokenizer
from mllm.evaluation.intervals import mean_with_interval, without_interval
from mllm.evaluation.protocol import Score, Scores, make_result
from mllm.files import fingerprint_of, tool_versions
from mllm.world.checker import parse, same_scene
from mllm.world.render import RenderSize, image_size, render
from mllm.world.scene import random_scene_for
from tokenizer.config import UniTokConfig
from tokenizer.images import (
    IMAGE_ENDINGS,
    PREPARATIONS,
    ImageProcessor,
    open_image,
    pictures_in,
    read_classes,
    reconstruction_sheet,
    to_images,
)
from tokenizer.metrics import (
    LPIPS,
    TEMPLATES,
    bits_per_picture,
    class_vectors,
    code_counts,
    entropy_of,
    fidelity,
    need_fidelity,
    psnr,
    read_templates,
    ssim,
    usage_of,
)
from tokenizer.network import cut_into_patches
from tokenizer.text_tower import EncodeCaptions, load_captions
from tokenizer.unitok import UniTok

# What a tokenizer must offer to be measured, and how one is found: ours by a folder, others by a function.
#
# `--codec package.module:function` names a function without arguments that returns a `MeasuredTokenizer`; nothing
# has to be inherited.
#
# Letters: B batch, H W pixels, K codebooks, N positions, D feature width.


class MeasuredTokenizer(Protocol):
    """Any tokenizer of discrete codes."""

    name: str
    image_size: int
    codebook_size: int

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to codes (B, K, N)."""
        ...

    def decode(self, codes_BKN: Tensor) -> Tensor:
        """Codes to pixels in [-1, 1]."""
        ...

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """One vector per picture (B, D), for the linear probe."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredUniTok:
    """A tokenizer of this toolkit."""

    model: UniTok

    @property
    def name(self) -> str:
        return f"unitok {self.model.fingerprint()}"

    @property
    def image_size(self) -> int:
        return self.model.config.image_size

    @property
    def codebook_size(self) -> int:
        return self.model.config.codebook_size

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        return self.model.encode(pixels_B3HW.to(self.model.device)).cpu()

    def decode(self, codes_BKN: Tensor) -> Tensor:
        return self.model.decode(codes_BKN.to(self.model.device)).cpu()

    @torch.no_grad()
    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """The mean of the quantized vectors over the positions."""
        codes_BKN = self.model.encode(pixels_B3HW.to(self.model.device))
        return self.model.quantizer.lookup(codes_BKN).mean(dim=1).float().cpu()


def find_measured(model: str | None, codec: str | None, *, device: torch.device | str) -> MeasuredTokenizer:
    """The tokenizer that a person named."""
    if codec is None:
        return MeasuredUniTok(find_image_tokenizer(model, device=device).eval())
    module, colon, function = codec.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{codec!r} names no tokenizer; write package.module:function")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{codec!r} cannot be used: {error}; name a function that returns the tokenizer") from error


# The pictures to measure on: of a folder with all below it, or of a tar archive, always in the order of their names.
#
# In: a path. Out: names and opened pictures, one at a time, so that a large set needs no memory.


T = TypeVar("T")


class Named(NamedTuple):
    """A picture and where it comes from."""

    name: str
    image: Image.Image


def count_pictures(source: Path) -> int:
    """How many pictures there are; none is an error."""
    if source.is_dir():
        number = len(files_below(source))
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            number = sum(is_picture(name) for name in archive.getnames())
    else:
        raise FileNotFoundError(f"there are no pictures at {source}: found no folder and no tar archive; give one")
    if not number:
        raise ValueError(f"{source} holds no picture: found none of {', '.join(IMAGE_ENDINGS)}; give another one")
    return number


def read_pictures(source: Path, *, limit: int | None = None) -> Iterator[Named]:
    """The pictures in order."""
    if source.is_dir():
        for path in files_below(source)[:limit]:
            yield Named(str(path.relative_to(source)), open_image(path))
        return
    with tarfile.open(source) as archive:
        members = sorted((m for m in archive if m.isfile() and is_picture(m.name)), key=lambda member: member.name)
        for member in islice(members, limit):
            file = archive.extractfile(member)
            assert file is not None, "only files were kept"
            yield Named(member.name, open_member(file.read(), f"{source}, {member.name}"))


def open_member(data: bytes, where: str) -> Image.Image:
    """A picture of an archive."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where} does not open: found {type(error).__name__}; take it out or mend it") from error
    return image


def files_below(folder: Path) -> list[Path]:
    """Picture files of a folder and its folders."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and is_picture(path.name))


def is_picture(name: str) -> bool:
    """By the ending."""
    return Path(name).suffix.lower() in IMAGE_ENDINGS


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


# What the codes say about the class of a picture: zero-shot accuracy by captions, and a linear probe.
#
# In: a tokenizer and folders with one folder of pictures per class. Out: verdicts, one per picture.
#
# Letters: B batch, M pictures of a set, D feature width, N classes.


PROBE_STEPS, PROBE_DECAY = 200, 1e-3
IMAGENET_NAMES = "imagenet"
"""In place of a file: the names that open_clip has, in the order of the folders."""


def class_names(folder: Path, names: str | None) -> dict[str, str]:
    """Folder of each class -> its name: of a JSON file, of open_clip, or the folders' own."""
    folders = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if len(folders) < 2:
        raise ValueError(f"{folder} holds no classes: found {len(folders)} folders; give one folder for each class")
    if names is None:
        return {name: name.replace("_", " ") for name in folders}
    if names != IMAGENET_NAMES:
        return read_classes(folder, Path(names))
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise ImportError(
            f"ImageNet's names are those of open_clip: found none ({error}); `pip install open-clip-torch`, or give a "
            "JSON file of folder to name"
        ) from error
    if len(folders) != len(IMAGENET_CLASSNAMES):
        raise ValueError(f"{folder} is not ImageNet: found {len(folders)} folders, not {len(IMAGENET_CLASSNAMES)}")
    return dict(zip(folders, IMAGENET_CLASSNAMES, strict=True))


def labelled_pictures(folder: Path, classes: dict[str, str]) -> list[tuple[Path, int]]:
    """Files with the number of their class."""
    return [(path, label) for label, name in enumerate(classes) for path in pictures_in(folder / name)]


@torch.no_grad()
def zero_shot_places(
    model: UniTok,
    captions: EncodeCaptions,
    labelled: list[tuple[Path, int]],
    *,
    names: list[str],
    templates: tuple[str, ...],
    prepare: ImageProcessor,
    batch_size: int,
) -> list[int]:
    """On which place each picture's class comes, 0 is best; pictures are judged through their codes."""
    classes_ND = class_vectors(model, captions, names, templates)
    places: list[int] = []
    for part in tqdm(in_batches(labelled, batch_size), desc="zero-shot", unit="batch"):
        pixels_B3HW = prepare([open_image(path) for path, _ in part]).to(model.device)
        features_BD = model.encode_image(pixels_B3HW, normalize=True).float()
        order_BN = (features_BD @ classes_ND.T).argsort(dim=1, descending=True, stable=True).cpu()
        labels_B1 = torch.tensor([label for _, label in part])[:, None]
        places += (order_BN == labels_B1).int().argmax(dim=1).tolist()
    return places


def probe_verdicts(
    tokenizer: MeasuredTokenizer,
    train: list[tuple[Path, int]],
    test: list[tuple[Path, int]],
    *,
    num_classes: int,
    prepare: ImageProcessor,
    batch_size: int,
) -> list[bool]:
    """Whether a linear classifier of the features, learned on one set, is right about each picture of the other."""
    train_MD, train_labels_M = features_of(tokenizer, train, prepare, batch_size)
    test_MD, test_labels_M = features_of(tokenizer, test, prepare, batch_size)
    mean_D, scale_D = train_MD.mean(dim=0), train_MD.std(dim=0).clamp(min=1e-6)
    weights_DN, bias_N = fit_probe((train_MD - mean_D) / scale_D, train_labels_M, num_classes=num_classes)
    guess_M = ((test_MD - mean_D) / scale_D @ weights_DN + bias_N).argmax(dim=1)
    return (guess_M == test_labels_M).tolist()


def features_of(
    tokenizer: MeasuredTokenizer, labelled: list[tuple[Path, int]], prepare: ImageProcessor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Features (M, D) and labels (M,)."""
    parts = [
        tokenizer.features(prepare([open_image(path) for path, _ in part])).float()
        for part in tqdm(in_batches(labelled, batch_size), desc="features", unit="batch")
    ]
    return torch.cat(parts), torch.tensor([label for _, label in labelled])


def fit_probe(features_MD: Tensor, labels_M: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with a little weight decay, from zero, by L-BFGS: no randomness."""
    weights_DN = torch.zeros(features_MD.shape[1], num_classes, requires_grad=True)
    bias_N = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_DN, bias_N], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(features_MD @ weights_DN + bias_N, labels_M)
        value = value + PROBE_DECAY * weights_DN.square().sum()
        value.backward()
        return value.item()

    with torch.enable_grad():
        optimizer.step(loss)
    return weights_DN.detach(), bias_N.detach()


# Through the codes and back: how close pictures come back, and how well the codebooks are used.
#
# In: a tokenizer and pictures. Out: scores with intervals, numbers per codebook, and where wanted the cropped
# references
# and their reconstructions as PNG files, one folder each, for FID: both sides are cropped alike.
#
# Letters: B batch, H W pixels, K codebooks, C entries per codebook, N positions.


ON_THE_SHEET = 12
REFERENCE, RECONSTRUCTION, SHEET = "reference", "reconstruction", "sheet.png"


@dataclass(slots=True)
class Tally:
    """What was seen so far."""

    values: dict[str, list[float]] = field(default_factory=dict)
    counts_KC: Tensor | None = None
    positions: int = 0
    shown: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, name: str, values_B: Tensor) -> None:
        self.values.setdefault(name, []).extend(values_B.tolist())


@torch.no_grad()
def measure_reconstruction(
    tokenizer: MeasuredTokenizer,
    pictures: Iterator[Named],
    *,
    prepare: ImageProcessor,
    output: Path,
    batch_size: int,
    lpips: nn.Module | None = None,
    keeps_files: bool = False,
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Scores, and what is no score.

    Args:
        lpips: a distance of two batches in [-1, 1], on its own device.
        keeps_files: write references and reconstructions.
    """
    tally, number = Tally(), 0
    for folder in (output / REFERENCE, output / RECONSTRUCTION) if keeps_files else ():
        remove_pictures(folder)
    for batch in tqdm(in_batches(pictures, batch_size), desc="reconstructions", unit="batch"):
        pixels_B3HW = prepare([named.image for named in batch])
        codes_BKN = tokenizer.encode(pixels_B3HW)
        again_B3HW = tokenizer.decode(codes_BKN).float().clamp(-1, 1)
        tally.add("PSNR", psnr(again_B3HW, pixels_B3HW))
        tally.add("SSIM", ssim(again_B3HW, pixels_B3HW))
        if lpips is not None:
            place = next(lpips.buffers()).device
            tally.add("LPIPS", lpips(again_B3HW.to(place), pixels_B3HW.to(place)))
        counts_KC = code_counts(codes_BKN, tokenizer.codebook_size)
        tally.counts_KC = counts_KC if tally.counts_KC is None else tally.counts_KC + counts_KC
        tally.positions = codes_BKN.shape[2]
        if number < ON_THE_SHEET:
            tally.shown.append((pixels_B3HW, again_B3HW))
        if keeps_files:
            write_pictures(output / REFERENCE, pixels_B3HW, number)
            write_pictures(output / RECONSTRUCTION, again_B3HW, number)
        number += len(batch)
    output.mkdir(parents=True, exist_ok=True)
    originals, reconstructions = (torch.cat(part)[:ON_THE_SHEET] for part in zip(*tally.shown, strict=True))
    reconstruction_sheet(originals, reconstructions).save(output / SHEET)
    return {name: mean_with_interval(values) for name, values in tally.values.items()}, describe_codes(tally)


def remove_pictures(folder: Path) -> None:
    """Take away what `write_pictures` left there before: FID is over a whole folder, whoever wrote it."""
    for path in folder.glob("[0-9]" * 6 + ".png"):
        path.unlink()


def write_pictures(folder: Path, pixels_B3HW: Tensor, first: int) -> None:
    """Numbered PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(to_images(pixels_B3HW), start=first):
        picture.save(folder / f"{number:06d}.png")


def describe_codes(tally: Tally) -> dict[str, Any]:
    """Usage, entropy (nats) and perplexity of each codebook."""
    assert tally.counts_KC is not None, "there was at least one picture"
    entropy_K = entropy_of(tally.counts_KC)
    return {
        "tokens": tally.positions,
        "codebooks": len(entropy_K),
        "usage": usage_of(tally.counts_KC).tolist(),
        "entropy": entropy_K.tolist(),
        "perplexity": entropy_K.exp().tolist(),
        "bits_per_picture": bits_per_picture(entropy_K, tally.positions),
    }


RANKS = (1, 5)


def measure_tokenizer(arguments: Namespace) -> dict[str, Any]:
    """Everything that was asked for; what is missing is said before anything is computed."""
    if arguments.fid:
        need_fidelity()
    expected, device = count_pictures(arguments.images), choose_device(arguments.device)
    lpips = None if arguments.lpips is None else LPIPS.from_file(arguments.lpips).to(device)
    tokenizer = find_measured(arguments.model, arguments.codec, device=device)
    side = tokenizer.image_size
    prepare = ImageProcessor(height=side, width=side, preparation=arguments.crop)
    of_classes = measure_classes(tokenizer, arguments, prepare)  # first: here more can be missing
    scores, codes = measure_reconstruction(
        tokenizer,
        read_pictures(arguments.images, limit=arguments.limit),
        prepare=prepare,
        output=arguments.output,
        batch_size=arguments.batch_size,
        lpips=lpips,
        keeps_files=arguments.fid,
    )
    number = min(expected, arguments.limit or expected)
    scores |= measure_fidelity(arguments, number) | of_classes
    columns = {"columns": {"Tokens": str(codes["tokens"])}, "crop": describe_crop(prepare), "tokenizer": tokenizer.name}
    return make_result(
        "tokenizer",
        Scores(
            f"tokenizer@{arguments.crop}-{side}",
            "PSNR",
            scores,
            extra={**codes, **columns},
            tools=tools_of(arguments),
        ),
        run=describe_measurement(tokenizer, arguments, prepare),
        expected=expected,
        scored=number,
        files=describe_files(arguments),
    )


def describe_measurement(tokenizer: MeasuredTokenizer, arguments: Namespace, prepare: ImageProcessor) -> dict[str, Any]:
    """What decides the numbers; nothing is prompted, sampled or random but the sentences of zero-shot."""
    sentences = None
    if arguments.text_vocabulary is not None:
        sentences = f"sentences of {arguments.templates.name}" if arguments.templates else "CLIP's 80 sentences"
    return {
        "model": {"fingerprint": tokenizer.name},
        "prompts": sentences,
        "image_format": {"crop": describe_crop(prepare), "file": "png"},
        "versions": tool_versions(),
        **dict.fromkeys(("prompt_style", "decoding", "seed", "questions")),
    }


def tools_of(arguments: Namespace) -> tuple[str, ...]:
    """Packages of others that have a part in the scores."""
    used = {"torch-fidelity": arguments.fid, "open-clip-torch": arguments.classes == IMAGENET_NAMES}
    return tuple(name for name, is_used in used.items() if is_used)


def describe_files(arguments: Namespace) -> dict[str, str]:
    """The pictures by their path, which are too many to read again, and the files that decide a score by their hash."""
    given = {name: getattr(arguments, name) for name in ("lpips", "templates", "text_vocabulary")}
    hashes = {name: fingerprint_of(Path(file)) for name, file in given.items() if file is not None}
    return {"images": str(arguments.images)} | hashes


def measure_fidelity(arguments: Namespace, number: int) -> dict[str, Score]:
    """rFID and IS of the pictures that were written, where they were asked for."""
    if not arguments.fid:
        return {}
    made, real = arguments.output / RECONSTRUCTION, arguments.output / REFERENCE
    found = fidelity(made, real, batch_size=arguments.batch_size)
    names = {"rFID": "rfid", "IS": "inception_score"}
    return {title: without_interval(found[name], number) for title, name in names.items()}


def measure_classes(tokenizer: MeasuredTokenizer, arguments: Namespace, prepare: ImageProcessor) -> dict[str, Score]:
    """Zero-shot accuracy and the linear probe, in percent, as far as they are asked for."""
    scores: dict[str, Score] = {}
    if arguments.class_images is None:
        return scores
    classes = class_names(arguments.class_images, arguments.classes)
    test = labelled_pictures(arguments.class_images, classes)
    if arguments.text_vocabulary is not None:
        if not isinstance(tokenizer, MeasuredUniTok) or not tokenizer.model.config.has_text_tower:
            raise ValueError(f"{tokenizer.name} has no text tower: it cannot read class names; leave zero-shot out")
        config = tokenizer.model.config
        vocabulary = load_captions(
            arguments.text_vocabulary, vocab_size=config.text_vocab_size, context=config.text_context
        )
        templates = read_templates(arguments.templates) if arguments.templates else TEMPLATES
        places = zero_shot_places(
            tokenizer.model,
            vocabulary,
            test,
            names=list(classes.values()),
            templates=templates,
            prepare=prepare,
            batch_size=arguments.batch_size,
        )
        scores |= {f"zero-shot top-{best}": mean_with_interval([100.0 * (p < best) for p in places]) for best in RANKS}
    if arguments.probe_images is not None:
        train = labelled_pictures(arguments.probe_images, classes)
        verdicts = probe_verdicts(
            tokenizer, train, test, num_classes=len(classes), prepare=prepare, batch_size=arguments.batch_size
        )
        scores["linear probe top-1"] = mean_with_interval([100.0 * right for right in verdicts])
    return scores


def describe_crop(prepare: ImageProcessor) -> str:
    """The crop in words."""
    how = PREPARATIONS[prepare.preparation]
    size = f"{prepare.width} x {prepare.height}"
    match how.resize:
        case "none":
            return f"centre crop {size} without scaling"
        case "direct":
            return f"stretched to {size}, {how.resampling.name.lower()}"
        case _:
            scaled = f"shorter side to {int(min(prepare.width, prepare.height) * how.ratio)}"
            return f"{scaled} ({how.resampling.name.lower()}), centre crop {size}"


# What the image tokenizer keeps of the world: pictures to codes and back, then the checker reads them.
#
# Most patches of a drawing are plain background of a few colors. Where codes depend on their patch alone, each such
# color
# is one entry of a codebook, however large that is, which bounds its perplexity over whole pictures. So it is told over
# the other patches too, those with a border of something.
#
# Letters: B batch, H W pixels, M patches, K codebooks, C entries, N positions.


@torch.inference_mode()
def score_round_trip(
    tokenizer: UniTok, *, count: int, seed: int, size: RenderSize | None = None, batch_size: int = 64
) -> dict:
    """PSNR, SSIM, share of test scenes still read right, and of each codebook usage, entropy (nats) and perplexity.

    `perplexity_of_borders` is over patches of more than one color, `plain_share` the share of the others. Where codes
    depend on their patch alone, `highest_perplexity` is what a codebook of this size can have over all patches at most.

    Args:
        size: (width, height) of the pictures; default: the tokenizer's.
    """
    width, height = image_size(size or tokenizer.config.image_size)
    prepare = ImageProcessor(width=width, height=height)
    rng = Random(f"round trip/{seed}")
    scenes = [random_scene_for("test", rng) for _ in range(count)]
    num_right, psnrs, ssims, use = 0, [], [], CodebookUse(tokenizer.config)
    for start in tqdm(range(0, count, batch_size), desc="image tokenizer", leave=False):
        batch = scenes[start : start + batch_size]
        pixels_B3HW = prepare([render(scene, (width, height)) for scene in batch]).to(tokenizer.device)
        codes_BKN = tokenizer.encode(pixels_B3HW)
        decoded_B3HW = tokenizer.decode(codes_BKN, grid=tokenizer.grid_of(pixels_B3HW))
        for scene, picture in zip(batch, to_images(decoded_B3HW), strict=True):
            found = parse(picture).scene
            num_right += found is not None and same_scene(scene, found)
        psnrs.append(psnr(decoded_B3HW, pixels_B3HW))
        ssims.append(ssim(decoded_B3HW, pixels_B3HW))
        use.add(pixels_B3HW, codes_BKN)
    return {
        "count": count,
        "scenes_read_right": num_right / count,
        "psnr": torch.cat(psnrs).mean().item(),
        "ssim": torch.cat(ssims).mean().item(),
        **use.as_report(),
    }


class CodebookUse:
    """Counts the entries that pictures take."""

    def __init__(self, config: UniTokConfig) -> None:
        self.config = config
        self.counts_KC = torch.zeros(config.num_codebooks, config.codebook_size, dtype=torch.int64)
        self.border_counts_KC = torch.zeros_like(self.counts_KC)
        self.plain_counts = Counter[tuple[float, ...]]()
        """Of patches of one color only, by color."""

    def add(self, pixels_B3HW: Tensor, codes_BKN: Tensor) -> None:
        is_plain_M, color_M3 = plain_patches(pixels_B3HW, self.config.patch_size)
        border_codes_KM = codes_BKN.transpose(0, 1).flatten(1)[:, ~is_plain_M]
        self.counts_KC += code_counts(codes_BKN, self.config.codebook_size).cpu()
        self.border_counts_KC += code_counts(border_codes_KM[None], self.config.codebook_size).cpu()
        self.plain_counts.update(map(tuple, color_M3[is_plain_M].tolist()))

    def as_report(self) -> dict[str, float | list[float] | None]:
        entropy_K, total = entropy_of(self.counts_KC), int(self.counts_KC[0].sum())
        plain = [*self.plain_counts.values()]
        is_bound = self.config.encoder_scope == "patch"
        return {
            "usage": usage_of(self.counts_KC).tolist(),
            "entropy": entropy_K.tolist(),
            "perplexity": entropy_K.exp().tolist(),
            "perplexity_of_borders": entropy_of(self.border_counts_KC).exp().tolist(),
            "plain_share": sum(plain) / max(total, 1),
            "highest_perplexity": highest_perplexity(plain, total, self.config.codebook_size) if is_bound else None,
        }


def plain_patches(pixels_B3HW: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Which patches have one color only, (M,), and the first color of each, (M, 3); in the order of their codes."""
    patches_M3P = cut_into_patches(pixels_B3HW, patch_size).flatten(2)
    return (patches_M3P == patches_M3P[:, :, :1]).all(dim=2).all(dim=1), patches_M3P[:, :, 0]


def highest_perplexity(fixed: Sequence[int], total: int, num_entries: int) -> float:
    """No codebook can have a larger perplexity over `total` codes of which groups, as large as `fixed` says, share an
    entry each: the other codes at best fill up the rarest entries to one level. With more groups than entries, that
    is the number of entries."""
    if len(fixed) > num_entries:
        return float(num_entries)
    rising = torch.tensor(sorted([*fixed, *[0] * (num_entries - len(fixed))]), dtype=torch.float64)
    numbers = torch.arange(1, num_entries + 1)
    levels = (total - sum(fixed) + rising.cumsum(0)) / numbers  # if the n rarest are filled up
    return float(entropy_of(torch.maximum(rising, levels.min())[None])[0].exp())
