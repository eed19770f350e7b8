"""What an importer makes of one raw sample, before its pictures are codes.

A record is a short dialogue whose pictures are files, bytes or codes. Four kinds of records are told apart, because
they are learned differently:

    chat      the assistant's messages are learned
    document  one message of the assistant: everything is learned
    pair      the user's message holds one or two captions (short, long), the assistant's the picture; either is learned
    draw      as a pair, but only the picture is learned

Knows no file formats, no tokenizer and no shards.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from mllm.conversation import CodesPart, Role, TextPart
from tokenizer.image_processor import open_image

Kind = Literal["chat", "document", "pair", "draw"]
KINDS: tuple[str, ...] = get_args(Kind)
LONGEST_PATH = 240
"""Letters of a path that are shown; a picture's bytes may stand in its place."""


class BadRecord(ValueError):
    """One sample is broken; the others are not. The reader adds where it stands."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that is not read yet."""

    path: Path

    def open(self) -> Image.Image:
        try:
            return open_image(self.path)
        except (ValueError, OSError) as error:
            path, reason = str(self.path), getattr(error, "strerror", None)  # such as: name too long, not allowed
            sentence = f"cannot open picture {path}; {reason}; give the path of a file" if reason else str(error)
            raise BadRecord(sentence.replace(path, shortened(path))) from error


@dataclass(frozen=True, slots=True)
class PictureBytes:
    """A picture file in memory."""

    data: bytes
    name: str

    def open(self) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(self.data))
            image.load()
            return image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadRecord(f"cannot read picture {self.name}: {error}; save it anew or leave it out") from error


Picture = PictureFile | PictureBytes
RecordPart = TextPart | CodesPart | PictureFile | PictureBytes


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[RecordPart, ...]


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Pictures that are not codes yet, in order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, PictureFile | PictureBytes)]


def chat_record(turns: Sequence[Turn]) -> Record:
    """A dialogue that something can be learned from."""
    roles = [turn.role for turn in turns]
    alternating = [("user", "assistant")[index % 2] for index in range(len(roles))]
    if not roles or roles != alternating or roles[-1] != "assistant":
        raise BadRecord(
            f"roles must alternate from 'user' on and end with 'assistant': found {roles}; merge or drop messages"
        )
    for turn in turns:
        if not has_content(turn.parts):
            raise BadRecord(f"a message is empty: found nothing in one of {turn.role!r}; give text or a picture")
    return Record("chat", tuple(turns))


def document_record(parts: Sequence[RecordPart]) -> Record:
    """Text and pictures that follow each other, without a question."""
    kept = tuple(part for part in parts if not (isinstance(part, TextPart) and not part.text.strip()))
    if not kept:
        raise BadRecord("a document is empty: found neither text nor pictures; leave it out")
    return Record("document", (Turn("assistant", kept),))


def pair_record(captions: Sequence[str], picture: RecordPart, *, kind: Kind = "pair") -> Record:
    """A picture and what is said of it, the short caption first."""
    texts = tuple(TextPart(caption) for caption in captions if caption.strip())
    if not texts:
        raise BadRecord(f"a picture has no caption: found {list(captions)}; write one or leave the picture out")
    return Record(kind, (Turn("user", texts), Turn("assistant", (picture,))))


def shortened(path: str) -> str:
    return path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH] + "..."


def has_content(parts: Sequence[RecordPart]) -> bool:
    return any(not isinstance(part, TextPart) or part.text.strip() for part in parts)
