"""Make a finished model the bundled one: smaller weights, and where they came from.

`python -m train.bundle FINISHED BUNDLED [--scores FILE] [--note TEXT]`: copies the folder, stores the language model in
bfloat16 (the image tokenizer keeps float32, so that its codes stay the same) and writes `SOURCE.json` with the recipes
of the image tokenizer's and the language model's stages, commit and scores. The note says what the recipes do not;
where scores come without one, the note of the bundled model stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint import save_model_card
from mllm.config import MLLMConfig
from mllm.evaluation.answerer import model_fingerprint
from mllm.files import read_json
from mllm.model import MLLMForConditionalGeneration
from tokenizer.unitok import UniTok
from train.recipe import read_yaml

SOURCE = "SOURCE.json"
PATHS = ("output", "image_tokenizer", "text_tokenizer", "start_from")


def bundle(finished: Path, bundled: Path) -> None:
    """Copy a finished model folder to its place in the package, in bfloat16."""
    if not (finished / "config.json").is_file():
        raise FileNotFoundError(
            f"there is no finished model in {finished}; train one first (scripts/build_tiny_model.sh)"
        )
    shutil.rmtree(bundled, ignore_errors=True)
    shutil.copytree(finished, bundled)
    MLLMForConditionalGeneration.from_pretrained(finished, dtype=torch.bfloat16).save_pretrained(bundled)


def check_scores(scores: Path, bundled: Path) -> None:
    """Refuse scores of other weights than those that are bundled."""
    measured = read_json(scores)
    here = {
        "model": model_fingerprint(MLLMForConditionalGeneration.from_pretrained(bundled)),
        "image_tokenizer": UniTok.from_pretrained(bundled / "image_tokenizer").fingerprint(),
    }
    for part, fingerprint in here.items():
        if measured.get(part) != fingerprint:
            raise ValueError(
                f"the scores in {scores} are of {part} {measured.get(part)}, but {bundled} holds {fingerprint}; "
                "bundle the model without --scores first, then measure that folder with `mllm evaluate world --json`"
            )


def write_source(bundled: Path, *, run: Path, scores: Path | None, note: str | None = None) -> None:
    """Where the bundled model comes from: the resolved recipes, the commit, its scores."""
    image_tokenizer = Path(read_yaml(run / "recipe.yaml")["image_tokenizer"])
    if note is None and scores is not None:  # the model is still the one that its note was written for
        note = read_json(bundled / SOURCE)["note"]
    source = {
        "note": note,
        "commit": current_commit(),
        "stages": stages(run),
        "image_tokenizer": json.loads((bundled / "image_tokenizer" / "config.json").read_text()),
        "image_tokenizer_stages": stages(image_tokenizer.parent),
        "scores": read_json(scores) if scores else None,
    }
    (bundled / SOURCE).write_text(json.dumps(source, indent=2) + "\n")
    save_model_card(bundled, MLLMConfig.from_pretrained(bundled))


def stages(run: Path) -> list[dict[str, Any]]:
    """The resolved recipes of a run and of those that it went on from, the first one first."""
    recipe = read_yaml(run / "recipe.yaml")
    start = recipe.get("start_from")
    before = stages(Path(start).parent) if start and (Path(start).parent / "recipe.yaml").is_file() else []
    return [*before, without_paths(recipe)]


def without_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the folders of the machine it ran on."""
    return {name: value for name, value in recipe.items() if name not in PATHS}


def current_commit() -> str:
    """The commit that the working tree is at."""
    words = ["git", "rev-parse", "HEAD"]
    return subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finished", type=Path, help="the `final` folder of a training run")
    parser.add_argument("bundled", type=Path, help="where to put it")
    parser.add_argument("--scores", type=Path, help="JSON of `mllm evaluate world`; without it the model is copied")
    parser.add_argument("--note", help="what else there is to know about how it was made")
    words = parser.parse_args(argv)
    if words.scores is None:
        bundle(words.finished, words.bundled)
    else:
        check_scores(words.scores, words.bundled)
    write_source(words.bundled, run=words.finished.parent, scores=words.scores, note=words.note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
