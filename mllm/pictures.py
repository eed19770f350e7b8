"""Pictures from where they are to the codes of a model's image tokenizer, and back.

In: PIL images, files or addresses. Out: codes with their grid. Knows no dialogue and no language model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers.image_utils import load_image

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart, ImagePart, Message, Part, Role
from mllm.layout import Grid
from mllm.sizes import Size, best_size, grid_of
from tokenizer.image_processor import ImageProcessor, open_image, to_images
from tokenizer.model import UniTok

Picture = Image.Image | str | Path
OUTLINE = "outline"
"""Key of a drawn picture's `info`, and of its PNG file: what the model wrote before it drew (mllm/conversation.py)."""
"""A picture, or where it is: a file or an address."""


def load_picture(picture: Picture) -> Image.Image:
    """The picture itself."""
    if isinstance(picture, Image.Image):
        return picture
    is_file = not str(picture).startswith(("http://", "https://", "data:"))
    return open_image(picture) if is_file else load_image(picture)


def with_pictures(turn: dict[str, Any]) -> dict[str, Any]:
    """A chat message whose image items hold pictures, where they named files or addresses."""

    def load(item: Any) -> Any:
        named = [item[key] for key in ("image", "path", "url") if key in item] if item.get("type") == "image" else []
        return {"type": "image", "image": load_picture(named[0])} if named and isinstance(named[0], Picture) else item

    content = turn["content"]
    return turn if isinstance(content, str) else {**turn, "content": [load(item) for item in content]}


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture; a PNG keeps the outline, so that a chat can go on from the file."""
    outline, options = picture.info.get(OUTLINE), {}
    if outline is not None and Path(path).suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(OUTLINE, outline)
    picture.save(path, **options)


@torch.inference_mode()
def encode_images(
    images: Sequence[Image.Image], image_tokenizer: UniTok, *, config: MLLMConfig, preparation: str
) -> list[CodesPart]:
    """Codes of pictures, each at the size of the model that fits it best."""
    by_size: dict[Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_size[best_size(image.size, config)].append(index)
    encoded: dict[int, CodesPart] = {}
    for size, indices in by_size.items():
        prepare = ImageProcessor(width=size[0], height=size[1], preparation=preparation)
        pixels_B3HW = prepare([images[index] for index in indices]).to(image_tokenizer.device)
        codes_BKN = image_tokenizer.encode(pixels_B3HW).to("cpu", torch.int32).numpy()
        for index, codes_KN in zip(indices, codes_BKN, strict=True):
            encoded[index] = CodesPart(codes_KN.astype(np.uint16), grid_of(size, config))
    return [encoded[index] for index in range(len(images))]


def encode_dialogue(
    messages: Sequence[Message], encode: Callable[[Sequence[Image.Image]], Sequence[CodesPart]], *, outlines: bool
) -> list[Message]:
    """A dialogue with codes in place of pictures.

    Args:
        outlines: keep those of the pictures that the assistant drew; one of the user is to be looked at anew.
    """
    pictures = [part.image for message in messages for part in message.parts if isinstance(part, ImagePart)]
    codes = iter(encode(pictures))

    def encoded(part: Part, role: Role) -> Part:
        if not isinstance(part, ImagePart):
            return part
        return replace(next(codes), outline=part.image.info.get(OUTLINE) if outlines and role == "assistant" else None)

    return [replace(turn, parts=tuple(encoded(part, turn.role) for part in turn.parts)) for turn in messages]


@torch.inference_mode()
def decode_images(images: Sequence[CodesPart], image_tokenizer: UniTok) -> list[Image.Image]:
    """Pictures of codes; the outline of a drawn one is kept in its `info`."""
    by_grid: dict[Grid, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_grid[image.grid].append(index)
    decoded: dict[int, Image.Image] = {}
    for grid, indices in by_grid.items():
        codes_BKN = torch.from_numpy(np.stack([images[index].codes_KN for index in indices]).astype(np.int64))
        pictures = to_images(image_tokenizer.decode(codes_BKN.to(image_tokenizer.device), grid=grid))
        decoded.update(zip(indices, pictures, strict=True))
    for index, image in enumerate(images):
        if image.outline is not None:
            decoded[index].info[OUTLINE] = image.outline
    return [decoded[index] for index in range(len(images))]
