"""A YAML recipe and command line overrides in, one frozen dataclass out.

A recipe names its `kind`; the kind decides which dataclass the other keys must fit. Unknown keys and wrong types are
errors that name the key. The resolved recipe can be written beside a checkpoint and fed back. This file knows nothing
of training.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

R = TypeVar("R")

ROOT = "recipe"
"""The one argument that the parser knows; `--key` of a user is `--recipe.key` to it."""

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name: str | Path) -> Path:
    """A path as given, or the name of a recipe that comes with the package (`tiny` or `tiny.yaml`)."""
    candidates = [Path(name), RECIPES / name, (RECIPES / name).with_suffix(".yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"there is no recipe {str(name)!r}; give the path of a YAML file or one of: {shipped}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}; mend the file") from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of keys to values, found {type(values).__name__}")
    return values


def resolve(recipe_type: type[R], values: dict[str, Any], overrides: Sequence[str] = ()) -> R:
    """Check `values` against the dataclass, apply `--key value` overrides and build it.

    Raises:
        ValueError: an unknown key, a missing key or a value of the wrong type, named in the message.
    """
    values, overrides = override_sections(recipe_type, values, overrides)
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_argument(f"--{ROOT}", type=recipe_type)
    try:
        parsed = parser.parse_object({ROOT: values})
        parsed = parser.parse_args([_under_root(word) for word in overrides], namespace=parsed)
        return parser.instantiate(parsed)[ROOT]
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        sentence = " ".join(str(error).split()).replace(f"{ROOT}.", "")
        raise ValueError(f"the recipe does not fit {recipe_type.__name__}: {sentence}") from None


def override_sections(
    recipe_type: type, values: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Put overrides of sections that a recipe may have or not (`adapter`, `validation`) into its values.

    The parser takes them for such a section only while it is absent. Returns the values and the other words.
    """
    hints = get_type_hints(recipe_type)
    others, words = [], list(overrides)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        section = name.partition(".")[0]
        if not word.startswith("--") or not _is_optional_section(hints.get(section)) or not (equals or words):
            others.append(word)
            continue
        text = value if equals else words.pop(0)
        try:
            read = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--{name} is not valid YAML: found {text!r}; mend the value") from None
        values = _with(values, name.split("."), read)
    return values, others


def _with(values: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy with one value set, below as many keys as there are."""
    first, *below = keys
    inside = values.get(first)
    return {**values, first: _with(inside if isinstance(inside, dict) else {}, below, value) if below else value}


def _is_optional_section(hint: Any) -> bool:
    choices = get_args(hint)
    return NoneType in choices and any(dataclasses.is_dataclass(choice) for choice in choices)


def _under_root(word: str) -> str:
    return f"--{ROOT}.{word[2:]}" if word.startswith("--") else word


def as_yaml(recipe: Any) -> str:
    """The resolved recipe as YAML text that `resolve` reads back to an equal recipe."""
    return yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe), default=str)), sort_keys=False)
