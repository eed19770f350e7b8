"""What the codes say about the class of a picture: zero-shot accuracy by captions, and a linear probe.

In: a tokenizer and folders with one folder of pictures per class. Out: verdicts, one per picture.

Letters: B batch, M pictures of a set, D feature width, N classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mllm.evaluation.laboratory.measured import MeasuredTokenizer
from mllm.evaluation.laboratory.pictures import in_batches
from tokenizer.captions import EncodeCaptions
from tokenizer.image_processor import ImageProcessor, open_image
from tokenizer.model import UniTok
from tokenizer.picture_folders import pictures_in, read_classes
from tokenizer.zero_shot import class_vectors

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
