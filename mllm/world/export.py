"""Export a part of the world as a folder in ordinary dataset formats: PNG images and JSON lines.

    images/000000-image.png ...  every image once
    messages.jsonl               {"messages": [{"role", "content": [{"type": "text" | "image", ...}]}], "job", "skills"}
    captions.jsonl               {"image": "images/000000-image.png", "caption": "...", "scene": {...}}

Records are written one by one, so a folder may be larger than memory; it gets its name when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from mllm.files import require_new, whole_folder
from mllm.world.dialogue import JOBS, Dialogue, ImageRef, make_dialogue, make_episode
from mllm.world.language import describe
from mllm.world.render import RenderSize
from mllm.world.scene import PairGroup, Split


def export_world(
    folder: Path,
    count: int,
    *,
    split: Split = "train",
    pairs: PairGroup = "seen",
    jobs: Sequence[str] = JOBS,
    seed: int = 0,
    size: RenderSize = 128,
) -> None:
    """Write `count` episodes with one dialogue of each job."""
    require_new(folder)
    with whole_folder(folder) as out:
        (out / "images").mkdir()
        with (out / "messages.jsonl").open("w") as messages, (out / "captions.jsonl").open("w") as captions:
            for index in range(count):
                episode = make_episode(index, seed=seed, split=split, pairs=pairs)
                names = {}
                for image, name in zip(episode.images, ("image", "edited", "depth", "segmentation"), strict=True):
                    names[image] = f"images/{index:06d}-{name}.png"
                    image.render(size).save(out / names[image])
                for scene in (episode.scene, episode.edited):
                    caption = {"image": names[ImageRef(scene)], "caption": describe(scene), "scene": asdict(scene)}
                    captions.write(json.dumps(caption) + "\n")
                for job in jobs:
                    dialogue = make_dialogue(job, episode, Random(f"export/{seed}/{index}/{job}"))
                    messages.write(json.dumps(to_record(dialogue, names)) + "\n")


def to_record(dialogue: Dialogue, names: dict[ImageRef, str]) -> dict:
    """A dialogue as Hugging Face chat messages; images by the names of their files."""
    messages = []
    for turn in dialogue.turns:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "path": names[part]}
            for part in turn.parts
        ]
        messages.append({"role": turn.role, "content": content})
    return {"messages": messages, "job": dialogue.job, "skills": list(dialogue.skills)}
