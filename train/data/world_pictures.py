"""Pictures of the synthetic world by number, for the image tokenizer: picture i is always the same.

In: an index. Out: uint8 pixels (3, H, W) and, where captions are wanted, ids for the text tower.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import sentencepiece
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mllm.world.describe_language import describe
from mllm.world.episode import PICTURE_KINDS, Picture
from mllm.world.splits import random_scene_for

KIND_WEIGHTS = (86, 6, 8)
"""Of images, depth pictures and segmentation pictures; the latter two are simpler."""


class WorldPictures(Dataset):
    """An endless set: every integer names a picture of the training split; negative ones are for looking at."""

    def __init__(self, *, image_size: int, seed: int, captions: CaptionEncoder | None = None) -> None:
        self.image_size = image_size
        self.seed = seed
        self.captions = captions

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = Random(f"pictures/{self.seed}/{index}")
        scene = random_scene_for("train", rng)
        picture = Picture(scene, rng.choices(PICTURE_KINDS, KIND_WEIGHTS)[0])
        pixels_HW3 = np.asarray(picture.render(self.image_size))
        item = {"pixels": torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)}
        if self.captions:
            item["text_ids"] = self.captions.encode(picture, rng)
        return item


class CaptionEncoder:
    """Descriptions as ids for the text tower: pieces, then the largest id as end of text, then zeros.

    The text tower reads its feature at the largest id (spec of CLIP's text transformer), so the end of text must be it.
    """

    def __init__(self, model_file: Path, *, vocab_size: int, context: int) -> None:
        if not model_file.is_file():
            raise FileNotFoundError(
                f"there is no SentencePiece model {model_file}; train it first or mend text_tokenizer"
            )
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        self.context = context
        self.end_of_text = vocab_size - 1
        if self.pieces.vocab_size() > self.end_of_text:
            raise ValueError(
                f"the text tower has {vocab_size} ids but {model_file} has {self.pieces.vocab_size()} pieces and one "
                "more is needed for the end of text; raise text_vocab_size"
            )

    def encode(self, picture: Picture, rng: Random) -> Tensor:
        """Ids (context,) of a description of the picture."""
        caption = describe(picture.scene, short=rng.random() < 0.5) if picture.kind == "image" else picture.kind
        ids = self.pieces.encode(caption)[: self.context - 1] + [self.end_of_text]
        return torch.tensor(ids + [0] * (self.context - len(ids)))
