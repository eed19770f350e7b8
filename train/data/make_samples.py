"""Small real files to try `mllm prepare` on, made from the synthetic world.

    captions/*.tar          WebDataset tars, as DataComp (the second without .json members)
    folder/*.jpg, *.txt     a folder of images with captions beside them
    chat/messages.jsonl     Hugging Face chat messages, several images and turns
    obelics/                interleaved documents
    text/text.jsonl.zst     plain text

Run as `python -m train.data.make_samples OUT [--count N --size PIXELS --seed S]`. The same arguments write the same
records.
"""

import io
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from webdataset import TarWriter

from mllm.cli.main import CommandParser, positive_count
from mllm.files import counted, require_new, whole_folder, write_lines
from mllm.world.dialogue import Dialogue, Episode, ImageRef, make_dialogue, make_episode
from mllm.world.language import describe

NUM_TARS = 2


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(
        "python -m train.data.make_samples",
        description="Write small data sets of every format, to try `mllm prepare` on.",
        example="python -m train.data.make_samples runs/raw --count 60",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--count", type=positive_count, default=40, metavar="N", help="records of each format (40)")
    parser.add_argument("--size", type=positive_count, default=128, metavar="PIXELS", help="side of the images (128)")
    parser.add_argument("--seed", type=int, default=0)
    try:
        make_samples(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def make_samples(options: Namespace) -> None:
    size, seed = options.size, options.seed
    require_new(options.out)
    episodes = [make_episode(index, seed=seed) for index in range(options.count)]
    with whole_folder(options.out) as out:
        for name in ("captions", "folder", "obelics", "text"):
            (out / name).mkdir()
        for number in range(NUM_TARS):
            with TarWriter(str(out / "captions" / f"{number:05d}.tar"), mtime=0) as tar:
                for index in range(number, len(episodes), NUM_TARS):
                    caption, image = describe(episodes[index].scene), as_jpeg(ImageRef(episodes[index].scene), size)
                    about = {"json": {"caption": caption, "width": size, "height": size}} if number == 0 else {}
                    tar.write({"__key__": f"{index:08d}", "jpg": image, "txt": caption, **about})
        write_chats(out / "chat", episodes, size=size, seed=seed)
        documents, texts = [], []
        for index, episode in enumerate(episodes):
            (out / "folder" / f"{index:06d}.jpg").write_bytes(as_jpeg(ImageRef(episode.edited), size))
            (out / "folder" / f"{index:06d}.txt").write_text(describe(episode.edited), encoding="utf-8")
            story = make_dialogue("interleaved", episode, Random(f"story/{seed}/{index}"))
            documents.append(write_document(out / "obelics", index, story, size))
            texts.append(json.dumps({"text": f"{describe(episode.scene)}\n{describe(episode.edited)}"}) + "\n")
        write_lines(out / "obelics" / "documents.jsonl", documents)
        with pa.CompressedOutputStream(str(out / "text" / "text.jsonl.zst"), "zstd") as stream:
            stream.write("".join(texts).encode())
    print(f"{options.out}: {counted(options.count, 'record')} of each format")


def write_chats(folder: Path, episodes: Sequence[Episode], *, size: int, seed: int) -> None:
    """Dialogues as Hugging Face's chat messages, several about each episode, and every image once."""
    (folder / "images").mkdir(parents=True)
    records = []
    for index, episode in enumerate(episodes):
        names = {}
        for image, name in zip(episode.images, ("image", "edited", "depth", "segmentation"), strict=True):
            names[image] = f"images/{index:06d}-{name}.png"
            image.render(size).save(folder / names[image])
        for job in ("ask", "edit", "multi_turn"):
            dialogue = make_dialogue(job, episode, Random(f"export/{seed}/{index}/{job}"))
            messages = [
                {"role": turn.role, "content": [as_content(part, names) for part in turn.parts]}
                for turn in dialogue.turns
            ]
            records.append({"messages": messages, "job": job, "skills": list(dialogue.skills)})
    write_lines(folder / "messages.jsonl", records)


def as_content(part: str | ImageRef, names: Mapping[ImageRef, str]) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "path": names[part]}


def write_document(folder: Path, index: int, dialogue: Dialogue, size: int) -> dict[str, Any]:
    """A document in OBELICS' layout: what is said and shown, in order, whoever says it."""
    texts: list[str | None] = []
    images: list[str | None] = []
    for number, part in enumerate(part for turn in dialogue.turns for part in turn.parts):
        name = f"{index:06d}-{number}.jpg"
        if isinstance(part, ImageRef):
            (folder / name).write_bytes(as_jpeg(part, size))
        texts.append(part if isinstance(part, str) else None)
        images.append(None if isinstance(part, str) else name)
    return {"texts": texts, "images": images, "metadata": None}


def as_jpeg(image: ImageRef, size: int) -> bytes:
    stream = io.BytesIO()
    image.render(size).save(stream, "JPEG", quality=95)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
