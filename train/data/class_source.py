"""From the recipe's fields to codes by class: encode the world where no folder is named, and check what was found."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState

from mllm.config import MLLMConfig
from tokenizer.model import UniTok
from train.class_recipe import ClassData
from train.data.class_codes import ClassCodes
from train.data.class_pictures import WorldClassPictures, encode_classes


def check_guidance(data: ClassData, config: MLLMConfig) -> None:
    """Refuse a model that would be guided away from a "no class" that it never learns."""
    if config.image_guidance > 1 and not data.class_dropout:
        raise ValueError(
            f"guidance needs samples without a class: found model.image_guidance {config.image_guidance} and "
            "classes.class_dropout 0; set the first to 1 or the second to 0.1"
        )


def open_class_codes(
    data: ClassData, world_folder: Path, *, image_tokenizer: UniTok, config: MLLMConfig
) -> list[ClassCodes]:
    """The codes that the recipe names, or those of the world's classes; the first process encodes what is missing.

    Args:
        world_folder: where the world's codes are, or will be.
    """
    folders = list(data.folders)
    if not folders:
        pictures = WorldClassPictures(data.world_pictures, size=image_tokenizer.config.image_size, seed=data.seed)
        with PartialState().main_process_first():
            encode_classes(pictures, world_folder, image_tokenizer)
        folders = [world_folder]
    codes = [ClassCodes(folder) for folder in folders]
    for part in codes:
        part.check(
            num_codebooks=config.num_codebooks,
            num_positions=config.positions_per_image,
            num_classes=config.num_classes,
            fingerprint=image_tokenizer.fingerprint(),
        )
    return codes
