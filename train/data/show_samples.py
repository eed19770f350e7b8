"""Print samples as the model will learn them: what is learned in green, or in [[ ]] where there is no color.

In: a prepared folder. Out: printed text, and the pictures of the samples, decoded from their codes, as files.

Letters: K codebooks, N positions of an image.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from mllm.conversation import ClassPart, CodesPart, Marker, Segment, render
from tokenizer.image_processor import to_images
from tokenizer.model import UniTok
from train.data.row_samples import SampleOptions, sample_of
from train.data.shard_folder import ShardFolder
from train.data.shard_format import codes_made_by

GREEN, PLAIN = "\033[32m", "\033[0m"


def show_samples(
    folder: ShardFolder,
    count: int,
    *,
    tokenizer: UniTok,
    style: str,
    seed: int,
    pictures: Path,
    in_color: bool,
) -> None:
    """Print `count` random samples and save their pictures.

    Raises:
        ValueError: the codes are not this image tokenizer's.
    """
    folder.require_tokenizer(codes_made_by(tokenizer))
    rng = Random(seed)
    ends = np.cumsum(folder.num_rows)
    for number in range(1, count + 1):
        place = rng.randrange(len(folder))
        shard = int(np.searchsorted(ends, place, side="right"))
        row = folder.row(shard, place - int(ends[shard]) + int(folder.num_rows[shard]))
        segments = render(sample_of(row, rng, SampleOptions()), style)
        print(f"--- sample {number}: {row.kind} from {row.source}, {row.place}")
        print(as_text(segments, in_color=in_color))
        images = [segment.content for segment in segments if isinstance(segment.content, CodesPart)]
        for index, image in enumerate(images, start=1):
            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"sample-{number}-{index}.png"
            decode(tokenizer, image).save(path)
            print(f"    picture {index}: {path}")


def as_text(segments: list[Segment], *, in_color: bool) -> str:
    """The segments in order, the learned ones marked."""
    begin, end = (GREEN, PLAIN) if in_color else ("[[", "]]")
    text, num_images, was_learned = "", 0, False
    for segment in segments:
        if segment.supervised != was_learned:
            text += begin if segment.supervised else end
            was_learned = segment.supervised
        match segment.content:
            case Marker.BOS:
                text += "<s>"
            case Marker.EOS:
                text += "</s>"
            case CodesPart(grid=(rows, columns)):
                num_images += 1
                text += f"<picture {num_images}: {rows} x {columns}>"
            case ClassPart(index):
                text += f"<class {index}>"
            case str(words):
                text += words
    return text + (end if was_learned else "")


@torch.inference_mode()
def decode(tokenizer: UniTok, image: CodesPart) -> Image.Image:
    """The picture of its codes."""
    codes_1KN = torch.from_numpy(image.codes_KN.astype(np.int64))[None].to(tokenizer.device)
    return to_images(tokenizer.decode(codes_1KN, grid=image.grid))[0]
