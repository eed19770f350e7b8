"""Small real files in the formats that `mllm prepare` reads, made from the synthetic world.

    captions/*.tar          WebDataset tars, as DataComp (the second without .json members)
    folder/*.jpg, *.txt     a folder of images with captions beside them
    chat/messages.jsonl     Hugging Face chat messages, several images and turns
    llava/llava.json        LLaVA's questions and answers
    mmc4/, obelics/         interleaved documents
    text/text.jsonl.zst     plain text

Run as `python -m train.data.make_samples OUT [--count N --size PIXELS --seed S]`. The same arguments write the same
records.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from argparse import Namespace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from mllm.cli.main import CommandParser, positive_count
from mllm.files import write_lines
from mllm.world.dialogue import Dialogue, Episode, ImageRef, make_dialogue, make_episode
from mllm.world.export import export_world
from mllm.world.language import describe

NUM_TARS = 2


def main(argv: list[str] | None = None) -> int:
    """Write the files."""
    parser = CommandParser(
        "python -m train.data.make_samples",
        description="Write small data sets of every format, to try `mllm prepare` on.",
        example="python -m train.data.make_samples runs/raw --count 60",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--count", type=positive_count, default=40, metavar="N", help="records of each format (40)")
    parser.add_argument("--size", type=positive_count, default=128, metavar="PIXELS", help="side of the images (128)")
    parser.add_argument("--seed", type=int, default=0)
    make_samples(parser.parse_args(argv))
    return 0


def make_samples(options: Namespace) -> None:
    """Write every format."""
    out, size, seed = options.out, options.size, options.seed
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"OUT must be a new or empty folder, got {out}; choose another one")
    episodes = [make_episode(index, seed=seed) for index in range(options.count)]
    for name in ("captions", "folder", "llava/images", "mmc4", "obelics", "text"):
        (out / name).mkdir(parents=True)
    write_tars(out / "captions", episodes, size)
    for index, episode in enumerate(episodes):
        (out / "folder" / f"{index:06d}.jpg").write_bytes(as_jpeg(ImageRef(episode.edited), size))
        (out / "folder" / f"{index:06d}.txt").write_text(describe(episode.edited), encoding="utf-8")
    export_world(out / "chat", options.count, jobs=("ask", "edit", "multi_turn"), seed=seed, size=size)
    (out / "chat" / "captions.jsonl").unlink()
    asked = [make_dialogue("ask", episode, Random(f"llava/{seed}/{index}")) for index, episode in enumerate(episodes)]
    records = [llava_record(out / "llava", index, dialogue, size) for index, dialogue in enumerate(asked)]
    (out / "llava" / "llava.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    stories = [
        make_dialogue("interleaved", episode, Random(f"story/{seed}/{index}")) for index, episode in enumerate(episodes)
    ]
    for name, to_record in (("mmc4", mmc4_record), ("obelics", obelics_record)):
        records = [to_record(out / name, index, dialogue, size) for index, dialogue in enumerate(stories)]
        write_lines(out / name / "documents.jsonl", records)
    with pa.CompressedOutputStream(str(out / "text" / "text.jsonl.zst"), "zstd") as stream:
        for episode in episodes:
            text = f"{describe(episode.scene)}\n{describe(episode.edited)}"
            stream.write((json.dumps({"text": text}) + "\n").encode())
    print(f"{out}: {options.count} records of each format")


def write_tars(folder: Path, episodes: list[Episode], size: int) -> None:
    """Images and captions."""
    for number in range(NUM_TARS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for index in range(number, len(episodes), NUM_TARS):
                caption = describe(episodes[index].scene)
                members = {"jpg": as_jpeg(ImageRef(episodes[index].scene), size), "txt": caption.encode()}
                if number == 0:
                    members["json"] = json.dumps({"caption": caption, "width": size, "height": size}).encode()
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{index:08d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def llava_record(folder: Path, index: int, dialogue: Dialogue, size: int) -> dict[str, Any]:
    """A dialogue about one image."""
    names = save_images(folder / "images", index, dialogue, size)
    turns = []
    for turn in dialogue.turns:
        words = [part if isinstance(part, str) else "<image>" for part in turn.parts]
        turns.append({"from": "human" if turn.role == "user" else "gpt", "value": "\n".join(words)})
    return {"id": f"{index:06d}", "image": f"images/{names[0]}", "conversations": turns}


def mmc4_record(folder: Path, index: int, dialogue: Dialogue, size: int) -> dict[str, Any]:
    """A document in MMC4's layout: an image is matched with the text that follows it."""
    names = iter(save_images(folder, index, dialogue, size))
    texts: list[str] = []
    images = []
    for part in parts_of(dialogue):
        if isinstance(part, str):
            texts.append(part)
        else:
            images.append({"image_name": next(names), "matched_text_index": len(texts), "matched_sim": 0.3})
    if images and images[-1]["matched_text_index"] == len(texts):
        texts.append("The end.")
    return {"url": f"world/{index}", "text_list": texts, "image_info": images}


def obelics_record(folder: Path, index: int, dialogue: Dialogue, size: int) -> dict[str, Any]:
    """A document in OBELICS' layout: at each index a text or an image."""
    names, parts = iter(save_images(folder, index, dialogue, size)), parts_of(dialogue)
    texts = [part if isinstance(part, str) else None for part in parts]
    return {"texts": texts, "images": [None if text else next(names) for text in texts], "metadata": None}


def parts_of(dialogue: Dialogue) -> list[str | ImageRef]:
    """What is said and shown, in order, whoever says it."""
    return [part for turn in dialogue.turns for part in turn.parts]


def save_images(folder: Path, index: int, dialogue: Dialogue, size: int) -> list[str]:
    """Save a dialogue's images; their names in order."""
    names = []
    for number, image in enumerate(dialogue.images):
        names.append(f"{index:06d}-{number}.jpg")
        (folder / names[-1]).write_bytes(as_jpeg(image, size))
    return names


def as_jpeg(image: ImageRef, size: int) -> bytes:
    """An image as a JPEG file."""
    stream = io.BytesIO()
    image.render(size).save(stream, "JPEG", quality=95)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
