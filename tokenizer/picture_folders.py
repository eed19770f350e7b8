"""Folders of pictures to measure a tokenizer on: their files, and one folder per class with its name.

In: paths. Out: paths and names, or an error that says which file is wrong. Opens no picture.
"""

from __future__ import annotations

import json
from pathlib import Path

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by name."""
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        what = "it holds no picture" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"cannot evaluate on {folder}; {what}; mend the path in evaluation")
    return found


def png_files(folder: Path) -> list[Path]:
    """The reference pictures; PNG, because a lossy copy would change the score."""
    lossy = [file.name for file in pictures_in(folder) if file.suffix.lower() != ".png"]
    if lossy:
        raise ValueError(f"rFID compares PNG pictures; {folder} has {lossy[0]}; convert {len(lossy)} files to PNG")
    return pictures_in(folder)


def read_classes(folder: Path, file: Path | None) -> dict[str, str]:
    """Folder of each class to its name, checked against the folders that are there."""
    assert file is not None, "TokenizerRecipe refuses zero-shot without class names"
    if not file.is_file():
        raise FileNotFoundError(f"there are no class names at {file}; give a JSON file of folder to name")
    classes = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes.values()):
        raise ValueError(f"{file} must map folders of classes to names; found {type(classes).__name__}; mend it")
    there = {path.name for path in folder.glob("*") if path.is_dir()}
    if there != classes.keys():
        differing = sorted(there ^ classes.keys())
        raise ValueError(
            f"{folder} and {file} must have the same classes; {len(differing)} differ, such as {differing[0]}; mend one"
        )
    return classes
