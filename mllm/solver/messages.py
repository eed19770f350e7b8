"""Questions and answers of the solver, with placeholders, to messages with pictures in their places.

In: images in any form and `qas`, a list of [question, answer]. Out: messages. The rules of `<|image|>` are here, as
ValueErrors: as many placeholders as images, filled in reading order; without any placeholder the images go in front of
the first question; only the last answer is open. Knows no model.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mllm.conversation import CodesPart, ImagePart, Message, Part, Role, TextPart
from mllm.pictures import Picture, load_picture
from mllm.solver.tasks import ESCAPED, PLACEHOLDER, split_placeholders

SolverImage: TypeAlias = Picture | bytes | Tensor | CodesPart
"""A picture, its file, the bytes of the file, pixels (3, H, W) as uint8 or in [0, 1], or codes of an earlier answer."""
Turns: TypeAlias = Sequence[Sequence[Any]]
"""[[question, answer], ...]; the last answer is None."""


def build_messages(images: Sequence[SolverImage], qas: Turns, *, last_words: str | None = None) -> list[Message]:
    """The dialogue, ending with the open question.

    Args:
        last_words: in place of the words of the last question; its placeholders stay.
    """
    check_turns(qas)
    numbers = [split_placeholders(text)[1] for turn in qas for text in turn if text is not None]
    lead = len(images) if not sum(numbers) else 0
    if not lead and sum(numbers) != len(images):
        raise ValueError(
            f"placeholders and images do not match: found {sum(numbers)} of {PLACEHOLDER} (per question and answer: "
            f"{', '.join(map(str, numbers))}) and {len(images)} images; use one per image, or {ESCAPED} for the text"
        )
    parts = iter([read_image(image) for image in images])
    messages: list[Message] = []
    for index, (question, answer) in enumerate(qas):
        words = last_words if index == len(qas) - 1 else None
        front = [next(parts) for _ in range(lead)] if index == 0 else []
        messages.append(Message("user", (*front, *fill(question, parts, role="user", words=words))))
        if answer is not None:
            messages.append(Message("assistant", tuple(fill(answer, parts, role="assistant"))))
    return messages


def check_turns(qas: Turns) -> None:
    """Pairs of a question and an answer, of which only the last is open."""
    if isinstance(qas, str) or not qas:
        raise ValueError(f"qas is no dialogue: found {qas!r}; pass [[question, None]]")
    for number, turn in enumerate(qas, start=1):
        is_pair = not isinstance(turn, str) and len(turn) == 2 and isinstance(turn[0], str)
        if not is_pair or not isinstance(turn[1], str | None):
            raise ValueError(f"turn {number} is no question with its answer: found {turn!r}; pass [question, answer]")
        if (turn[1] is None) != (number == len(qas)):
            found = "no answer" if turn[1] is None else "a finished answer"
            raise ValueError(
                f"only the last answer is open: found {found} in turn {number} of {len(qas)}; "
                "give every earlier answer, and None as the last one"
            )


def fill(text: str, images: Iterator[Part], *, role: Role, words: str | None = None) -> list[Part]:
    """Parts of one text. Pictures that end a question stand before its words, where models are trained to see them."""
    pieces, num_images = split_placeholders(text)
    pictures = [next(images) for _ in range(num_images)]
    if words is not None:
        pieces = [words, *[""] * num_images]
    pieces = [piece.strip() for piece in pieces]
    if role == "user" and not any(pieces[1:]):
        return [*pictures, *([TextPart(pieces[0])] if pieces[0] else [])]
    parts: list[Part] = [TextPart(pieces[0])] if pieces[0] else []
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        parts += [picture, *([TextPart(piece)] if piece else [])]
    return parts or [TextPart("")]


def read_image(image: Any) -> Part:
    """A picture in any form."""
    match image:
        case CodesPart():
            return image
        case bytes():
            try:
                return ImagePart(Image.open(io.BytesIO(image)))
            except UnidentifiedImageError as error:
                raise ValueError(
                    f"cannot read a picture: {len(image)} bytes in no known format; pass those of a PNG or JPEG file"
                ) from error
        case Tensor():
            return ImagePart(from_pixels(image))
        case Image.Image() | str() | Path():
            return ImagePart(load_picture(image))
        case _:
            raise ValueError(
                f"an image is in no known form: found {type(image).__name__}; pass a PIL image, a path, bytes, "
                "a tensor (3, H, W), or codes"
            )


def from_pixels(pixels_3HW: Tensor) -> Image.Image:
    """A picture from pixels, uint8 or floating point in [0, 1]."""
    if pixels_3HW.ndim != 3 or pixels_3HW.shape[0] != 3:
        raise ValueError(f"pixels have the wrong shape: found {tuple(pixels_3HW.shape)}; pass (3, height, width)")
    if pixels_3HW.is_floating_point():
        pixels_3HW = (pixels_3HW.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels_3HW.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
