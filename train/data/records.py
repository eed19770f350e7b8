"""Records: short dialogues whose images are files, bytes or codes. The kinds are learned differently:

    chat      the assistant's messages are learned
    document  one message of the assistant: everything is learned
    pair      the user's message holds captions (the short one first), the assistant's the image; either is learned
    draw      as a pair, but only the image is learned
    class     the user's message is the number of a class, the assistant's an image of it, or several views
    episode   images of the synthetic world, by number (train/data/world.py)

An image that a record names is on disk or in the record; nothing is ever fetched from a network. Rows are read in
train/data/raw_files.py and become records in train/data/formats.py.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from PIL import Image

from mllm.conversation import CodesPart, Message, Role, TextPart
from tokenizer.images import read_image

Kind = Literal["chat", "document", "pair", "draw", "class", "episode"]
MAX_PATH = 240  # characters of a path that are shown; an image's bytes may be in its place
MAX_SUBFOLDERS = 1000  # sub-folders of the image folder that a name is looked for in
ENLARGEMENT = 1.1  # LlamaGen's extraction: crops of the size out of a square 1.1 times as large


class BadRecord(ValueError):
    """One sample is invalid; the others are not. The reader adds its file and place."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image that is not read yet."""

    source: Path | bytes | str  # a `data:` or `file:` URL
    name: str
    has_views: bool = False  # ten crops of it become a part each

    def open(self) -> Image.Image:
        try:
            return read_image(self.source, name=self.name)
        except (ValueError, FileNotFoundError) as error:
            raise BadRecord(str(error)) from error


RecordPart = TextPart | CodesPart | RawImage


@dataclass(frozen=True, slots=True)
class Record:
    """A sample; a prepared one has codes for images, and is a row of a shard."""

    kind: Kind
    messages: tuple[Message, ...]
    source: str = ""
    place: str = ""

    @property
    def parts(self) -> list[Any]:
        return [part for message in self.messages for part in message.parts]


def message(role: Role, *parts: RecordPart) -> Message:
    """A message whose images may not be encoded yet."""
    return Message(role, parts)  # type: ignore[arg-type]


def chat_record(messages: Sequence[Message]) -> Record:
    """A dialogue that something can be learned from: without answers before the first question, as LLaVA reads it, and
    without questions after the last answer."""
    roles = [message.role for message in messages]
    if not {"user", "assistant"} <= set(roles[roles.index("user") if "user" in roles else len(roles) :]):
        raise BadRecord(f"a dialogue must have a question and its answer, got the roles {roles}; add what is missing")
    kept = messages[roles.index("user") : len(roles) - roles[::-1].index("assistant")]
    if any(message.role != ("user", "assistant")[index % 2] for index, message in enumerate(kept)):
        raise BadRecord(f"roles must alternate, got {roles}; merge or drop messages")
    for message in kept:
        if not any(not isinstance(part, TextPart) or part.text.strip() for part in message.parts):
            raise BadRecord(f"a message must hold text or an image, got an empty one of {message.role!r}; fill it")
    return Record("chat", tuple(kept))


def document_record(parts: Sequence[RecordPart]) -> Record:
    """Text and images that follow each other, without a question."""
    kept = [part for part in parts if not (isinstance(part, TextPart) and not part.text.strip())]
    if not kept:
        raise BadRecord("a document must hold text or images, got none; leave it out")
    return Record("document", (message("assistant", *kept),))


def pair_record(captions: Sequence[str], image: RecordPart, *, kind: Kind = "pair") -> Record:
    """An image and its captions, the short one first."""
    texts = [TextPart(caption) for caption in captions if caption.strip()]
    if not texts:
        raise BadRecord(f"an image must have a caption, got {list(captions)}; write one or leave the image out")
    return Record(kind, (message("user", *texts), message("assistant", image)))


def ten_views(image: Image.Image, size: int) -> list[Image.Image]:
    """Four corners and the middle of the enlarged middle square, then their mirror images."""
    image, large = read_image(image), int(size * ENLARGEMENT)
    scale = large / min(image.size)
    width, height = (max(large, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (resized.width - large) // 2, (resized.height - large) // 2
    free = large - size
    corners = [(0, 0), (free, 0), (0, free), (free, free), (free // 2, free // 2)]
    views = [resized.crop((left + x, top + y, left + x + size, top + y + size)) for x, y in corners]
    return views + [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]


def find_image(value: Any, folder: Path) -> RawImage:
    """The image that a record names: a path, a URL, bytes, or a mapping with `bytes`, `base64`, `path`, `url` or
    `image` (as `datasets` writes images). `folder`: of relative paths. The file of a URL is looked for there as
    HOST/PATH (as `wget --force-directories` stores it) and by its last name."""
    match value:
        case {"bytes": bytes(data), **rest}:
            return RawImage(data, f"image {rest.get('path') or 'in the record'}")
        case bytes():
            return RawImage(value, "image in the record")
        case {"bytes": str(text)} | {"base64": str(text)}:
            is_url = text[:5].lower() == "data:"
            return RawImage(text if is_url else f"data:image;base64,{text}", "image in the record")
        case str() if value[:5].lower() in ("data:", "file:"):
            return RawImage(value, f"image {short(value)}")
        case str() if value:
            path = _file_of_url(value, folder) if "://" in value else _on_disk(folder, Path(os.path.expanduser(value)))
            if "\\" in value and not os.path.isfile(path):  # as Windows writes paths
                path = _on_disk(folder, Path(value.replace("\\", "/")))
            name = str(path)
            return RawImage(path, name if len(name) <= MAX_PATH else name[:MAX_PATH] + "...")
        case dict():
            for key in ("path", "image", "url"):
                if value.get(key):
                    return find_image(value[key], folder)
        case [single]:
            return find_image(single, folder)
    raise BadRecord(f"an image must be a path, bytes, or a URL that is on disk, got {short(value)}; name its file")


def _on_disk(folder: Path, name: Path) -> Path:
    """Where a file is: below the folder, or below one of its sub-folders, as in COCO/val2014. Accents may be composed
    in the name and decomposed on the disk (archives from macOS), or the other way round."""
    spellings = dict.fromkeys([str(name), *(normalize(form, str(name)) for form in ("NFC", "NFD"))])
    with suppress(OSError):  # such as a name that is too long for a file
        for spelling in spellings:
            if (folder / spelling).is_file():
                return folder / spelling
            subfolders = [] if name.is_absolute() else _subfolders(folder)
            found = [path for subfolder in subfolders if (path := subfolder / spelling).is_file()]
            if len(found) > 1:
                raise BadRecord(
                    f"{name} must be in one folder, got {found[0]} and {found[1]}; choose one with --images"
                )
            if found:
                return found[0]
    return folder / name


@lru_cache(maxsize=16)
def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())[:MAX_SUBFOLDERS] if folder.is_dir() else []


def _file_of_url(url: str, folder: Path) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadRecord(f"an image must have a valid URL, got {short(url)}: {error}; correct it") from error
    path = unquote(parts.path)
    inside = Path(parts.netloc) / path.lstrip("/")
    for candidate in (_on_disk(folder, inside), _on_disk(folder, Path(Path(path).name))):
        with suppress(OSError, ValueError):  # a name that no file can have
            if folder.resolve() in candidate.resolve().parents and candidate.is_file():
                return candidate
    raise BadRecord(
        f"the image of a URL must be on disk, got {short(url)} but no {short(str(folder / inside))}; download it, "
        "nothing is fetched"
    )


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
