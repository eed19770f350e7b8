"""Classify pictures by captions of the classes, without training on them (CLIP, arXiv:2103.00020, section 3.1).

Comes in: a tokenizer with a text tower, names, templates, pictures. Goes out: class vectors and counts of right
answers. Pictures are judged through their codes, as UniTok reports it. Knows no files but the templates'.

Letters: B batch, H W pixels, D embedding width, N classes, R ranks of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.captions import EncodeCaptions
from tokenizer.model import UniTok

_WITH_EITHER_ARTICLE = (
    "a bad photo of {} %.", "a sculpture of {} %.", "a rendering of {} %.", "graffiti of {} %.",
    "a cropped photo of {} %.", "a tattoo of {} %.", "a bright photo of {} %.", "a dark photo of {} %.",
    "a drawing of {} %.", "a close-up photo of {} %.", "a black and white photo of {} %.", "a painting of {} %.",
    "a pixelated photo of {} %.", "a jpeg corrupted photo of {} %.", "a blurry photo of {} %.", "a good photo of {} %.",
    "a doodle of {} %.", "a sketch of {} %.", "a low resolution photo of {} %.", "a rendition of {} %.",
    "art of {} %.", "itap of {} %.", "a photo of {} %.", "a photo of {} clean %.", "a photo of {} dirty %.",
    "a photo of {} cool %.", "a photo of {} large %.", "a photo of {} small %.", "a photo of {} nice %.",
    "a photo of {} weird %.", "a photo of {} hard to see %.", "{} embroidered %.", "{} plastic %.", "{} origami %.",
    "{} toy %.", "{} plushie %.", "{} cartoon %.", "{} % in a video game.",
)  # fmt: skip
_OTHERS = ("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.")
TEMPLATES = (
    tuple(sentence.format(article).replace("%", "{}") for sentence in _WITH_EITHER_ARTICLE for article in ("a", "the"))
    + _OTHERS
)
"""The 80 sentences that CLIP's authors use for ImageNet (articles as they have them: "a embroidered {}.")."""


def read_templates(path: Path) -> tuple[str, ...]:
    """Sentences of a text file, one per line, each with one {}."""
    lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise ValueError(f"a template holds {{}} once; {path} has {wrong[:1] or 'no line'}; mend the file")
    return lines


@torch.no_grad()
def class_vectors(model: UniTok, captions: EncodeCaptions, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector of length 1 per class, (N, D): the mean over the templates."""
    vectors = []
    for name in names:
        ids_BT = captions([template.format(name) for template in templates]).to(model.device)
        vectors.append(F.normalize(model.encode_text(ids_BT, normalize=True).float().mean(dim=0), dim=-1))
    return torch.stack(vectors)


@torch.no_grad()
def right_answers(
    model: UniTok, pixels_B3HW: Tensor, labels_B: Tensor, classes_ND: Tensor, *, ranks: Sequence[int] = (1, 5)
) -> Tensor:
    """How many pictures have their class among the R best, for each R, (len(ranks),) int64."""
    features_BD = model.encode_image(pixels_B3HW, normalize=True).float()
    order_BN = (features_BD @ classes_ND.T).argsort(dim=1, descending=True, stable=True)
    place_B = (order_BN == labels_B[:, None].to(order_BN.device)).int().argmax(dim=1)
    return torch.stack([(place_B < best).sum() for best in ranks])
