"""Small real files in the formats that `mllm prepare` reads, made from the synthetic world.

    captions/*.tar          WebDataset tars, as DataComp (the second without .json members)
    folder/*.jpg, *.txt     a folder of pictures with captions beside them
    chat/messages.jsonl     Hugging Face chat messages, several pictures and turns
    llava/llava.json        LLaVA's questions and answers
    mmc4/, obelics/         interleaved documents
    text/text.jsonl.zst     plain text

Run as `python -m train.data.make_samples OUT [--count N --size PIXELS --seed S]`. The same arguments write the same
records.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
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
    parser.add_argument("--size", type=positive_count, default=128, metavar="PIXELS", help="side of the pictures (128)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    make_samples(arguments)
    return 0


def make_samples(arguments: argparse.Namespace) -> None:
    """Write every format."""
    out, count, size, seed = arguments.out, arguments.count, arguments.size, arguments.seed
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder, so that nothing is overwritten")
    episodes = [make_episode(index, seed=seed) for index in range(count)]
    write_tars(out / "captions", episodes, size)
    write_folder(out / "folder", episodes, size)
    export_world(out / "chat", count, jobs=("ask", "edit", "multi_turn"), seed=seed, size=size)
    (out / "chat" / "captions.jsonl").unlink()
    write_llava(out / "llava", episodes, size, seed)
    write_mmc4(out / "mmc4", episodes, size, seed)
    write_obelics(out / "obelics", episodes, size, seed)
    write_text(out / "text", episodes)
    print(f"{out}: {count} records of each format")


def write_tars(folder: Path, episodes: list[Episode], size: int) -> None:
    """Pictures and captions in tars."""
    folder.mkdir(parents=True)
    for number in range(NUM_TARS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for index in range(number, len(episodes), NUM_TARS):
                caption = describe(episodes[index].scene)
                members = {"jpg": encoded(ImageRef(episodes[index].scene), size), "txt": caption.encode()}
                if number == 0:
                    members["json"] = json.dumps({"caption": caption, "width": size, "height": size}).encode()
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{index:08d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def write_folder(folder: Path, episodes: list[Episode], size: int) -> None:
    """Pictures with captions beside them."""
    folder.mkdir(parents=True)
    for index, episode in enumerate(episodes):
        (folder / f"{index:06d}.jpg").write_bytes(encoded(ImageRef(episode.edited), size))
        (folder / f"{index:06d}.txt").write_text(describe(episode.edited), encoding="utf-8")


def write_llava(folder: Path, episodes: list[Episode], size: int, seed: int) -> None:
    """Questions about pictures, in one JSON array."""
    records = []
    for index, episode in enumerate(episodes):
        dialogue = make_dialogue("ask", episode, Random(f"llava/{seed}/{index}"))
        names = save_pictures(folder / "images", index, dialogue, size)
        turns = []
        for turn in dialogue.turns:
            words = [part if isinstance(part, str) else "<image>" for part in turn.parts]
            turns.append({"from": "human" if turn.role == "user" else "gpt", "value": "\n".join(words)})
        record: dict[str, Any] = {"id": f"{index:06d}", "image": f"images/{names[0]}", "conversations": turns}
        records.append(record)
    (folder / "llava.json").write_text(json.dumps(records, indent=1), encoding="utf-8")


def write_mmc4(folder: Path, episodes: list[Episode], size: int, seed: int) -> None:
    """Stories in MMC4's layout: a picture is matched with the text that follows it."""
    records = []
    for index, dialogue in enumerate(stories(episodes, seed)):
        names = iter(save_pictures(folder, index, dialogue, size))
        texts: list[str] = []
        images = []
        for part in parts_of(dialogue):
            if isinstance(part, str):
                texts.append(part)
            else:
                images.append({"image_name": next(names), "matched_text_index": len(texts), "matched_sim": 0.3})
        if images and images[-1]["matched_text_index"] == len(texts):
            texts.append("The end.")
        records.append({"url": f"world/{index}", "text_list": texts, "image_info": images})
    write_lines(folder / "documents.jsonl", records)


def write_obelics(folder: Path, episodes: list[Episode], size: int, seed: int) -> None:
    """Stories in OBELICS' layout: at each place a text or a picture."""
    records = []
    for index, dialogue in enumerate(stories(episodes, seed)):
        names = iter(save_pictures(folder, index, dialogue, size))
        parts = parts_of(dialogue)
        texts = [part if isinstance(part, str) else None for part in parts]
        images = [None if isinstance(part, str) else next(names) for part in parts]
        records.append({"texts": texts, "images": images, "metadata": None})
    write_lines(folder / "documents.jsonl", records)


def write_text(folder: Path, episodes: list[Episode]) -> None:
    """Plain texts in compressed lines."""
    folder.mkdir(parents=True)
    with pa.CompressedOutputStream(str(folder / "text.jsonl.zst"), "zstd") as stream:
        for episode in episodes:
            text = f"{describe(episode.scene)}\n{describe(episode.edited)}"
            stream.write((json.dumps({"text": text}) + "\n").encode())


def stories(episodes: Iterable[Episode], seed: int) -> Iterator[Dialogue]:
    """A dialogue with texts and pictures in turn for each episode."""
    for index, episode in enumerate(episodes):
        yield make_dialogue("interleaved", episode, Random(f"story/{seed}/{index}"))


def parts_of(dialogue: Dialogue) -> list[str | ImageRef]:
    """What is said and shown, in order, whoever says it."""
    return [part for turn in dialogue.turns for part in turn.parts]


def save_pictures(folder: Path, index: int, dialogue: Dialogue, size: int) -> list[str]:
    """Save a dialogue's pictures; their names in order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, picture in enumerate(dialogue.images):
        names.append(f"{index:06d}-{number}.jpg")
        (folder / names[-1]).write_bytes(encoded(picture, size))
    return names


def encoded(picture: ImageRef, size: int) -> bytes:
    """A picture as a JPEG file."""
    stream = io.BytesIO()
    picture.render(size).save(stream, "JPEG", quality=95)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
