"""Evaluate an image tokenizer: reconstruction, use of the codebooks, and what the codes say about classes.

In: any tokenizer of discrete codes, and images. Out: the content of result.json with protocol `tokenizer@CROP-SIZE`:
numbers of different crops are not comparable, and references are cropped exactly like what is reconstructed.

Letters: B batch, M images of a set, H W pixels, K codebooks, C entries of a codebook, N positions or classes, D width.
"""

import importlib
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mllm.checkpoint import choose_device, find_image_tokenizer
from mllm.evaluation.intervals import means, without_interval
from mllm.evaluation.protocol import Score, Scores, make_result
from mllm.files import fingerprint_of, tool_versions, write_image
from mllm.pipeline import batched
from tokenizer.images import (
    IMAGE_ENDINGS,
    PREPARATIONS,
    ImageProcessor,
    images_in,
    read_classes,
    read_image,
    reconstruction_sheet,
    to_images,
)
from tokenizer.metrics import (
    CLIP_TEMPLATES,
    LPIPS,
    bits_per_image,
    class_ranks,
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
from tokenizer.text_tower import load_captions
from tokenizer.unitok import UniTok

IMAGENET_NAMES = "imagenet"
"""Instead of a file: the class names of open_clip, in the order of the folders."""
RANKS = (1, 5)
PROBE_STEPS, PROBE_DECAY = 200, 1e-3
SHEET_IMAGES = 12
REFERENCE, RECONSTRUCTION, SHEET = "reference", "reconstruction", "sheet.png"


class ImageCodec(Protocol):
    """Any tokenizer of discrete codes."""

    name: str
    image_size: int
    codebook_size: int

    def encode(self, pixels_B3HW: Tensor) -> Tensor: ...  # pixels in [-1, 1] to codes (B, K, N)

    def decode(self, codes_BKN: Tensor) -> Tensor: ...

    def features(self, pixels_B3HW: Tensor) -> Tensor: ...  # a vector per image (B, D), for the linear probe


class UniTokCodec:
    def __init__(self, model: UniTok) -> None:
        self.model, self.name = model, f"unitok {model.fingerprint()}"
        self.image_size, self.codebook_size = model.config.image_size, model.config.codebook_size

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        return self.model.encode(pixels_B3HW.to(self.model.device)).cpu()

    def decode(self, codes_BKN: Tensor) -> Tensor:
        return self.model.decode(codes_BKN.to(self.model.device)).cpu()

    @torch.no_grad()
    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """The mean of the quantized vectors over the positions."""
        codes_BKN = self.model.encode(pixels_B3HW.to(self.model.device))
        return self.model.quantizer.lookup(codes_BKN).mean(dim=1).float().cpu()


def find_codec(model: str | None, codec: str | None, *, device: torch.device | str) -> ImageCodec:
    """The tokenizer in a folder, or the one that `codec`, a module:function without arguments, returns."""
    if codec is None:
        return UniTokCodec(find_image_tokenizer(model, device=device).eval())
    module, colon, function = codec.partition(":")
    if not (module and colon and function):
        raise ValueError(f"codec must be package.module:function, got {codec!r}")
    try:
        found = getattr(importlib.import_module(module), function)()
        if not all(hasattr(found, name) for name in ("encode", "decode", "features")):
            raise TypeError(f"it returned {type(found).__name__}")
        return found
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"codec must name a function that returns a tokenizer, got {codec!r} ({error}); see docs/evaluation.md"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluation:
    """What to evaluate; see `mllm evaluate tokenizer --help`."""

    images: Path
    output: Path
    model: str | None = None
    codec: str | None = None
    device: str | None = None
    crop: str = "zero_shot"
    limit: int | None = None
    batch_size: int = 16
    lpips: Path | None = None
    fid: bool = False
    class_images: Path | None = None
    classes: str | None = None
    templates: Path | None = None
    text_vocabulary: Path | None = None
    probe_images: Path | None = None


def measure_tokenizer(wanted: TokenizerEvaluation) -> dict[str, Any]:
    """Everything that was asked for; what is missing is reported before anything is computed."""
    if wanted.fid:
        need_fidelity()
    source, device = EvaluationImages(wanted.images), choose_device(wanted.device)
    lpips = None if wanted.lpips is None else LPIPS.from_file(wanted.lpips).to(device)
    codec = find_codec(wanted.model, wanted.codec, device=device)
    side = codec.image_size
    prepare = ImageProcessor(height=side, width=side, preparation=wanted.crop)
    class_scores = score_classes(codec, wanted, prepare)  # first: more can be missing here
    scores, codes = score_reconstruction(codec, islice(source, wanted.limit), wanted, prepare=prepare, lpips=lpips)
    num_images = min(len(source), wanted.limit or len(source))
    if wanted.fid:
        made, real = wanted.output / RECONSTRUCTION, wanted.output / REFERENCE
        found = fidelity(made, real, batch_size=wanted.batch_size)
        scores["rFID"] = without_interval(found["rfid"], num_images)
        scores["IS"] = without_interval(found["inception_score"], num_images)
    crop = describe_crop(prepare)
    tools = {"torch-fidelity": wanted.fid, "open-clip-torch": wanted.classes == IMAGENET_NAMES}
    used = tuple(name for name, is_used in tools.items() if is_used)
    extra = {**codes, "columns": {"Tokens": str(codes["tokens"])}, "crop": crop, "tokenizer": codec.name}
    measured = Scores(f"tokenizer@{wanted.crop}-{side}", "PSNR", scores | class_scores, extra=extra, tools=used)
    run: dict[str, Any] = dict.fromkeys(("prompts", "prompt_style", "decoding", "seed", "questions"))
    run |= {"model": {"fingerprint": codec.name}, "versions": tool_versions()}
    run["image_format"] = {"crop": crop, "file": "png"}
    if wanted.text_vocabulary is not None:
        run["prompts"] = f"sentences of {wanted.templates.name}" if wanted.templates else "CLIP's 80 sentences"
    files = {"images": str(wanted.images)}  # by their path: they are too many to read again
    for name in ("lpips", "templates", "text_vocabulary"):
        if (file := getattr(wanted, name)) is not None:
            files[name] = fingerprint_of(file)
    return make_result("tokenizer", measured, run=run, expected=len(source), scored=num_images, files=files)


def describe_crop(prepare: ImageProcessor) -> str:
    how, size = PREPARATIONS[prepare.preparation], f"{prepare.width} x {prepare.height}"
    if how.resize == "none":
        return f"centre crop {size} without scaling"
    if how.resize == "direct":
        return f"stretched to {size}, {how.resampling.name.lower()}"
    scaled = int(min(prepare.width, prepare.height) * how.ratio)
    return f"shorter side to {scaled} ({how.resampling.name.lower()}), centre crop {size}"


class EvaluationImages:
    """Images of a folder and its subfolders, or of a tar archive, in the order of their names; opened one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            names = [str(file.relative_to(path)) for file in files]
        elif path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                names = sorted(member.name for member in archive if member.isfile())
        else:
            raise FileNotFoundError(f"images must be a folder or a tar archive, got {path}")
        self.names = [name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS]
        if not self.names:
            raise ValueError(f"{path} must contain images ({', '.join(sorted(IMAGE_ENDINGS))}), got none")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Image.Image]:
        if self.path.is_dir():
            yield from (read_image(self.path / name) for name in self.names)
            return
        with tarfile.open(self.path) as archive:
            for name in self.names:
                file = archive.extractfile(name)
                assert file is not None, "only files were kept"
                yield read_image(file.read(), name=f"{self.path}, {name}")


@torch.no_grad()
def score_reconstruction(
    codec: ImageCodec,
    images: Iterable[Image.Image],
    wanted: TokenizerEvaluation,
    *,
    prepare: ImageProcessor,
    lpips: LPIPS | None,
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Scores of reconstructed images, and usage, entropy (nats) and perplexity of each codebook.

    For FID, the cropped references and the reconstructions are written as PNG files, one folder each.
    """
    values: dict[str, list[float]] = defaultdict(list)
    shown: list[tuple[Tensor, Tensor]] = []
    counts_KC, num_positions, output = torch.zeros((), dtype=torch.int64), 0, wanted.output
    output.mkdir(parents=True, exist_ok=True)
    for name in (REFERENCE, RECONSTRUCTION) if wanted.fid else ():  # FID is over a complete folder
        for path in (output / name).glob("[0-9]" * 6 + ".png"):
            path.unlink()
    for batch in tqdm(batched(images, wanted.batch_size), desc="reconstructions", unit="batch"):
        pixels_B3HW = prepare(batch)
        codes_BKN = codec.encode(pixels_B3HW)
        decoded_B3HW = codec.decode(codes_BKN).float().clamp(-1, 1)
        first = len(values["PSNR"])
        values["PSNR"] += psnr(decoded_B3HW, pixels_B3HW).tolist()
        values["SSIM"] += ssim(decoded_B3HW, pixels_B3HW).tolist()
        if lpips is not None:
            device = next(lpips.buffers()).device
            values["LPIPS"] += lpips(decoded_B3HW.to(device), pixels_B3HW.to(device)).tolist()
        counts_KC, num_positions = counts_KC + code_counts(codes_BKN, codec.codebook_size), codes_BKN.shape[2]
        if first < SHEET_IMAGES:
            shown.append((pixels_B3HW, decoded_B3HW))
        for name, made_B3HW in ((REFERENCE, pixels_B3HW), (RECONSTRUCTION, decoded_B3HW)):
            for number, image in enumerate(to_images(made_B3HW) if wanted.fid else [], start=first):
                write_image(output / name / f"{number:06d}.png", image)
    originals, reconstructions = (torch.cat(part)[:SHEET_IMAGES] for part in zip(*shown, strict=True))
    write_image(output / SHEET, reconstruction_sheet(originals, reconstructions))
    entropy_K = entropy_of(counts_KC)
    codes = {
        "tokens": num_positions,
        "codebooks": len(entropy_K),
        "usage": usage_of(counts_KC).tolist(),
        "entropy": entropy_K.tolist(),
        "perplexity": entropy_K.exp().tolist(),
        "bits_per_image": bits_per_image(entropy_K, num_positions),
    }
    return means(values, scale=1), codes


Labelled = list[tuple[Path, int]]
"""Image files with the index of their class."""


def score_classes(codec: ImageCodec, wanted: TokenizerEvaluation, prepare: ImageProcessor) -> dict[str, Score]:
    """Zero-shot accuracy and that of the linear probe, in percent, as far as they are asked for."""
    if wanted.class_images is None:
        return {}
    values: dict[str, list[float]] = {}
    classes = class_names(wanted.class_images, wanted.classes)
    test = labelled_images(wanted.class_images, classes)
    if wanted.text_vocabulary is not None:
        ranks = zero_shot_ranks(codec, test, list(classes.values()), wanted, prepare)
        values |= {f"zero-shot top-{best}": [float(rank < best) for rank in ranks] for best in RANKS}
    if wanted.probe_images is not None:

        def extract(labelled: Labelled) -> tuple[Tensor, Tensor]:
            """Features (M, D) and labels (M,)."""
            batches = load_batches(labelled, wanted.batch_size, prepare, desc="features")
            parts = [(codec.features(pixels_B3HW).float(), labels_B) for pixels_B3HW, labels_B in batches]
            features, labels = zip(*parts, strict=True)
            return torch.cat(features), torch.cat(labels)

        train_MD, train_labels_M = extract(labelled_images(wanted.probe_images, classes))
        test_MD, test_labels_M = extract(test)
        mean_D, scale_D = train_MD.mean(dim=0), train_MD.std(dim=0).clamp(min=1e-6)
        weights_DN, bias_N = fit_probe((train_MD - mean_D) / scale_D, train_labels_M, num_classes=len(classes))
        guess_M = ((test_MD - mean_D) / scale_D @ weights_DN + bias_N).argmax(dim=1)
        values["linear probe top-1"] = (guess_M == test_labels_M).float().tolist()
    return means(values)


def class_names(folder: Path, names: str | None) -> dict[str, str]:
    """Folder of each class -> its name: of a JSON file, of open_clip, or that of the folder."""
    folders = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if len(folders) < 2:
        raise ValueError(f"{folder} must contain one folder per class and at least 2, got {len(folders)}")
    if names is None:
        return {name: name.replace("_", " ") for name in folders}
    if names != IMAGENET_NAMES:
        return read_classes(folder, Path(names))
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise ImportError(
            f"ImageNet's class names need open_clip ({error}); `pip install open-clip-torch`, or give a JSON file of "
            "folder to name"
        ) from error
    if len(folders) != len(IMAGENET_CLASSNAMES):
        raise ValueError(f"{folder} must contain {len(IMAGENET_CLASSNAMES)} folders, got {len(folders)}")
    return dict(zip(folders, IMAGENET_CLASSNAMES, strict=True))


def labelled_images(folder: Path, classes: dict[str, str]) -> Labelled:
    return [(path, label) for label, name in enumerate(classes) for path in images_in(folder / name)]


@torch.no_grad()
def zero_shot_ranks(
    codec: ImageCodec, labelled: Labelled, names: list[str], wanted: TokenizerEvaluation, prepare: ImageProcessor
) -> list[int]:
    """The rank of each image's class, 0 is best; images are classified through their codes."""
    if not isinstance(codec, UniTokCodec) or not codec.model.config.has_text_tower:
        raise ValueError(f"tokenizer must have a text tower for zero-shot accuracy, got {codec.name}; leave it out")
    assert wanted.text_vocabulary is not None, "zero-shot accuracy was asked for"
    model, config = codec.model, codec.model.config
    captions = load_captions(wanted.text_vocabulary, vocab_size=config.text_vocab_size, context=config.text_context)
    templates = read_templates(wanted.templates or CLIP_TEMPLATES)
    classes_ND = class_vectors(model, captions, names, templates)
    ranks: list[int] = []
    for pixels_B3HW, labels_B in load_batches(labelled, wanted.batch_size, prepare, desc="zero-shot"):
        ranks += class_ranks(model, pixels_B3HW.to(model.device), labels_B, classes_ND).tolist()
    return ranks


def load_batches(
    labelled: Labelled, size: int, prepare: ImageProcessor, *, desc: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels (B, 3, H, W) and labels (B,)."""
    for part in tqdm(batched(labelled, size), desc=desc, unit="batch"):
        yield prepare([read_image(path) for path, _ in part]), torch.tensor([label for _, label in part])


def fit_probe(features_MD: Tensor, labels_M: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with weight decay, from zero, by L-BFGS: no randomness."""
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
