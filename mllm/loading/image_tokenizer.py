"""Where an image tokenizer is: in a model folder, in a folder of its own, or in the released file.

In: what a person named, or a model folder. Out: a loaded `UniTok`. Knows no language model.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mllm.loading.model_folder import CONFIG_FILE, IMAGE_TOKENIZER, find_model_folder
from tokenizer.model import WEIGHTS_FILE, UniTok
from tokenizer.upstream_file import load_upstream

RELEASED_FILES = ("unitok_tokenizer.pth", "unitok_tokenizer.safetensors")
"""The released file, where somebody put it into a model folder."""


def released_image_tokenizer(folder: Path) -> Path | None:
    """The released file in this model folder, if it is there."""
    return next((folder / name for name in RELEASED_FILES if (folder / name).is_file()), None)


def load_image_tokenizer(folder: Path, *, device: torch.device | str | None = None) -> UniTok | None:
    """The image tokenizer of a model folder: ours, or the released file; None where there is neither."""
    if (folder / IMAGE_TOKENIZER).is_dir():
        return UniTok.from_pretrained(folder / IMAGE_TOKENIZER, device=device)
    released = released_image_tokenizer(folder)
    return None if released is None else load_upstream(released).to(device or "cpu")


def find_image_tokenizer(name: str | None, *, device: torch.device | str | None = None) -> UniTok:
    """The image tokenizer that a person named: by a model, a folder that is one itself, or the released file."""
    path = Path(name or "").expanduser()
    if name is not None and path.is_file():
        return load_upstream(path).to(device or "cpu")
    if name is not None and is_image_tokenizer(path):
        return UniTok.from_pretrained(path, device=device)
    folder = find_model_folder(name)
    tokenizer = load_image_tokenizer(folder, device=device)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder} has no image tokenizer: found no {IMAGE_TOKENIZER}/ and no {RELEASED_FILES[0]}; add one of them"
        )
    return tokenizer


def is_image_tokenizer(folder: Path) -> bool:
    """Whether this folder is an image tokenizer's: its config names no type, as those of models do."""
    config = folder / CONFIG_FILE
    if not config.is_file() or not (folder / WEIGHTS_FILE).is_file():
        return False
    try:
        return "model_type" not in json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return False
