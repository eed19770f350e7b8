"""Make a finished model the bundled one: smaller weights and a record of their origin.

`python -m train.bundle FINISHED BUNDLED [--note TEXT] [--attribution FILE]` copies the folder, stores the language
model in bfloat16 (codes of images stay the same) and writes `SOURCE.json`: the recipes of all stages, the commit, a
note, and scores, which `python -m train.bundle FINISHED BUNDLED --scores FILE` adds later.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint import SOURCE_FILE, save_model_card
from mllm.config import MLLMConfig
from mllm.evaluation.answerer import model_fingerprint
from mllm.files import need_file, read_json, write_json
from mllm.model import MLLMForConditionalGeneration
from tokenizer.unitok import CONFIG_FILE, UniTok
from train.recipe import read_yaml

RECIPE_FILE = "recipe.yaml"
PATHS = ("output", "image_tokenizer", "text_tokenizer", "start_from", "shards.urls", "data.root")
"""Fields of recipes that name folders of the machine they ran on; a dot leads into a section."""
ATTRIBUTION = "ATTRIBUTION.md"


def read_scores(file: Path, bundled: Path) -> dict[str, Any]:
    """Scores of exactly the bundled weights."""
    scores = read_json(file)
    expected = {
        "model": model_fingerprint(MLLMForConditionalGeneration.from_pretrained(bundled)),
        "image_tokenizer": UniTok.from_pretrained(bundled / "image_tokenizer").fingerprint(),
    }
    for part, fingerprint in expected.items():
        found = scores.get(part, "no fingerprint") if isinstance(scores, dict) else "no scores"
        if found != fingerprint:
            raise ValueError(
                f"{file} must hold scores of the bundled {part} ({fingerprint}), got {found}; measure it with "
                "`mllm evaluate world --json` or `mllm evaluate emoji --json`"
            )
    return scores


def read_commit() -> str | None:
    """The commit of the toolkit; None where it is installed without git's history."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_target(bundled: Path) -> None:
    """Refuse to replace anything but an earlier bundled model."""
    if bundled.exists() and not (bundled / SOURCE_FILE).is_file():
        if not bundled.is_dir() or any(bundled.iterdir()):
            raise ValueError(f"the folder to write must be new, empty or a bundled model, got {bundled}; name another")


def read_stages(run: Path) -> list[dict[str, Any]]:
    """The resolved recipes of a run and of those that it started from, the first one first."""
    recipe = read_yaml(run / RECIPE_FILE)
    stages = [without_paths(recipe)]
    if start := recipe.get("start_from"):
        if (Path(start) / SOURCE_FILE).is_file():  # a bundled model
            return [*read_json(Path(start) / SOURCE_FILE)["stages"], *stages]
        if (Path(start).parent / RECIPE_FILE).is_file():
            return [*read_stages(Path(start).parent), *stages]
    return stages


def without_paths(value: Any, section: str = "") -> Any:
    """A recipe without the folders of the machine it ran on; of other absolute paths the names stay."""
    match value:
        case dict():
            names = [name for name in value if f"{section}{name}" not in PATHS]
            return {name: without_paths(value[name], f"{section}{name}.") for name in names}
        case list():
            return [without_paths(each, section) for each in value]
        case str() if Path(value).is_absolute():
            return Path(value).name
    return value


def read_tokenizer_stages(run: Path) -> list[dict[str, Any]]:
    """The same of the image tokenizer of a run."""
    owner = Path(read_yaml(run / RECIPE_FILE)["image_tokenizer"]).parent
    if (owner / SOURCE_FILE).is_file():  # a bundled model
        return read_json(owner / SOURCE_FILE)["image_tokenizer_stages"]
    return read_stages(owner)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finished", type=Path, help="the `final` folder of a training run")
    parser.add_argument("bundled", type=Path, help="where to put it")
    parser.add_argument("--scores", type=Path, help="JSON of `mllm evaluate world` or `emoji`; without: copy the model")
    parser.add_argument("--note", help="what else there is to know about how it was made")
    parser.add_argument("--attribution", type=Path, help="who made the training images, under which licences")
    args = parser.parse_args(argv)
    scores, note, run = None, args.note, args.finished.parent
    if args.scores is None:
        need_file(args.finished / CONFIG_FILE)
        if args.attribution is not None:
            need_file(args.attribution)
        check_target(args.bundled)
        # before copying: the run may have started from what is replaced
        stages = {"stages": read_stages(run), "image_tokenizer_stages": read_tokenizer_stages(run)}
        shutil.rmtree(args.bundled, ignore_errors=True)
        shutil.copytree(args.finished, args.bundled)
        MLLMForConditionalGeneration.from_pretrained(args.finished, dtype=torch.bfloat16).save_pretrained(args.bundled)
        if args.attribution is not None:
            shutil.copyfile(args.attribution, args.bundled / ATTRIBUTION)
    else:
        scores = read_scores(args.scores, args.bundled)
        source = read_json(args.bundled / SOURCE_FILE)
        note = source["note"] if note is None else note
        stages = {name: source[name] for name in ("stages", "image_tokenizer_stages")}
    sizes = read_json(args.bundled / "image_tokenizer" / CONFIG_FILE)
    source = {"note": note, "commit": read_commit(), "image_tokenizer": sizes, **stages, "scores": scores}
    write_json(args.bundled / SOURCE_FILE, source)
    save_model_card(args.bundled, MLLMConfig.from_pretrained(args.bundled))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        sys.exit(2)
