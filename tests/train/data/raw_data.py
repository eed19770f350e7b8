"""Small raw data of several formats for the tests of preparation, and prepared folders made by hand."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mllm.conversation import CodesPart, Message, TextPart
from tokenizer.unitok import UniTok
from train.data.prepare import PrepareOptions, prepare_folder
from train.data.records import Record
from train.data.shards import SHARDS, CodeSource, ShardFolder, write_manifest, write_shard

OPTIONS = PrepareOptions(sizes=((32, 32),), batch_size=5, num_workers=2)


def image_file(number: int) -> bytes:
    """A PNG that no other number has; of different sizes."""
    rng = np.random.default_rng(number)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20 + number % 9, 30, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def lines(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_raw(folder: Path, count: int = 11) -> None:
    """Captioned images in a tar, dialogues, documents with images, and texts."""
    folder.mkdir(parents=True)
    captioned, dialogues, documents = {}, [], []
    for number in range(count):
        captioned |= {f"{number:03d}.png": image_file(number), f"{number:03d}.txt": f"caption {number}".encode()}
        (folder / f"{number}.png").write_bytes(image_file(100 + number))
        turns = [{"from": "human", "value": f"<image> question {number}"}, {"from": "gpt", "value": f"answer {number}"}]
        dialogues.append({"image": f"{number}.png", "conversations": turns})
        documents.append({"texts": [f"before {number}", None, "after"], "images": [None, f"{number}.png", None]})
    (folder / "captions.tar").write_bytes(tar_of(captioned))
    (folder / "llava.json").write_text(json.dumps(dialogues))
    (folder / "documents.jsonl").write_text(lines(documents))
    (folder / "text.jsonl").write_text(lines({"text": f"text {number}"} for number in range(count)))


def prepare_with(
    tokenizer: UniTok, *sources: Path, out: Path, size: int = 4, name: str | None = None, **how: Any
) -> dict[str, Any]:
    options = replace(OPTIONS, **how)
    return prepare_folder(list(sources), out, tokenizer=tokenizer, options=options, shard_size=size, format_name=name)


def rows_of(path: Path) -> list[tuple]:
    """All records of a prepared folder, comparable."""
    folder = ShardFolder(path)
    return [content(folder[index]) for index in range(len(folder))]


def content(row: Record) -> tuple:
    def shown(part: TextPart | CodesPart) -> object:
        return part.text if isinstance(part, TextPart) else (part.codes_KN.tolist(), part.grid)

    said = [(message.role, [shown(part) for part in message.parts]) for message in row.messages]
    return row.kind, str(said), row.source, row.place


def prepared(path: Path, shards: Sequence[Sequence[Record]], code_source: CodeSource) -> Path:
    (path / SHARDS).mkdir(parents=True)
    names = [f"{number:05d}.parquet" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write_shard(path / SHARDS / name, rows, code_source, [])
    write_manifest(path, names, code_source)
    return path


def document(text: str, place: str = "line 1") -> Record:
    return Record("document", (Message("assistant", (TextPart(text),)),), "made.jsonl", place)


def of_class(label: int, codes: Sequence[int | np.ndarray]) -> Record:
    """Views of 2 x 2 positions; a number is the code of them all."""
    views = tuple(CodesPart(np.full((2, 4), each, dtype=np.uint16), (2, 2)) for each in codes)
    return Record("class", (Message("user", (TextPart(str(label)),)), Message("assistant", views)), "made", str(label))


def pair(captions: Sequence[str], code_source: CodeSource, seed: int) -> Record:
    """A captioned image of 2 x 2 positions."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, code_source.codebook_size, (code_source.num_codebooks, 4)).astype(np.uint16)
    texts = tuple(TextPart(caption) for caption in captions)
    answer = Message("assistant", (CodesPart(codes, (2, 2)),))
    return Record("pair", (Message("user", texts), answer), "made.tar", f"{seed}")
