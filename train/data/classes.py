"""Images by class as training data: prepared folders whose records are of kind `class`.

A record holds a class and one or more views of its image (crops, of which one is picked each time). Folders come from
`mllm prepare --format classes`, or are rendered from the synthetic world here. Every epoch goes through all images in
an order of its own; the sequences of batch b are a pure function of b.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, Message, TextPart
from mllm.sequence import TokenSequence
from mllm.world.render import render
from mllm.world.scene import CLASSES, class_scene
from tokenizer.images import to_bytes
from train.data.mixture import sample_sequence
from train.data.packing import BatchShape, PackingBuffer, SequenceSource, Tokenizers, Waiting
from train.data.records import Record
from train.data.shards import ShardFolder
from train.data.world import BlankCodes
from train.recipe import ClassData


@dataclass(frozen=True, kw_only=True)
class WorldClasses:
    """Image i of the world's classes: always the same for the same seed; classes take turns."""

    count: int
    size: int  # side in pixels
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        return {"world_classes": len(CLASSES), "size": self.size, "seed": self.seed}

    def __len__(self) -> int:
        return self.count

    def images(self, index: int) -> list[Tensor]:
        scene = class_scene(index % len(CLASSES), Random(f"classes/{self.seed}/{index}"))
        return [to_bytes(render(scene, self.size))]

    def record(self, index: int, images: tuple[CodesPart, ...]) -> Record:
        """The number of the class stands in place of words."""
        asked = Message("user", (TextPart(str(index % len(CLASSES))),))
        return Record("class", (asked, Message("assistant", images)), "world", str(index))


class ClassSequences(SequenceSource):
    """A class and its image, for all images of the folders in turn. `folders`: of the same images in the same order
    (other enlargements); each time one of them is picked."""

    def __init__(
        self, data: ClassData, folders: Sequence[ShardFolder | BlankCodes], tokenizers: Tokenizers, shape: BatchShape
    ) -> None:
        if len({len(folder) for folder in folders}) != 1:
            raise ValueError(
                f"classes.folders must hold the same images, got {[len(folder) for folder in folders]} of them; "
                "name folders that were made from the same images"
            )
        self.data, self.folders, self.tokenizers, self.shape = data, folders, tokenizers, shape
        num_positions = len(self.sequence(0, Random(0)))
        self.num_samples = shape.rows * (shape.length // num_positions)
        if not self.num_samples:
            raise ValueError(f"length must be >= {num_positions}, as one image needs, got {shape.length}; raise it")

    def refill(self, buffer: PackingBuffer) -> None:
        """Take all samples of a batch before its first row; they have the same length and fill it exactly."""
        rng = Random(f"class batch/{self.data.seed}/{buffer.index}")
        for number in range(buffer.index * self.num_samples, (buffer.index + 1) * self.num_samples):
            epoch, place = divmod(number, len(self.folders[0]))
            image = int(epoch_order(len(self.folders[0]), self.data.seed, epoch)[place])
            buffer.waiting.append(Waiting(self.sequence(image, rng)))

    def sequence(self, image: int, rng: Random) -> TokenSequence:
        record = rng.choice(self.folders)[image]
        if record.kind != "class":
            raise ValueError(
                f"classes.folders must hold images by class, got a record of kind {record.kind} ({record.source}, "
                f"{record.place}); make the folder with `mllm prepare --format classes`"
            )
        return sample_sequence(record, rng, self.tokenizers, prompt_dropout=self.data.class_dropout, describe_share=0.0)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def check_guidance(data: ClassData, config: MLLMConfig) -> None:
    """Refuse a model that would be guided away from a "no class" that it never learns."""
    if config.image_guidance > 1 and not data.class_dropout:
        raise ValueError(
            f"classes.class_dropout must be > 0 where model.image_guidance is > 1, got 0 and {config.image_guidance}; "
            "set the first to 0.1 or the second to 1"
        )
