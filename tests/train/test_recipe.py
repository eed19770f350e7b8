"""Recipes: strict keys, typed overrides, round trip."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mllm.config import MLLMConfig
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from tests.train.launching import ROOT
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok
from train.build_model import model_config
from train.recipe import RECIPES, MLLMRecipe, TokenizerRecipe, WorldInLoop, as_yaml, find_recipe, read_yaml, resolve
from train.tokenizer_trainer import with_new_decoder

BUNDLED = ROOT / "mllm/assets/tiny"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Toy:
    output: Path
    steps: int = 3
    schedule: Schedule = field(default_factory=Schedule)


def test_overrides_win_over_the_file_and_keep_their_types() -> None:
    toy = resolve(
        Toy, {"output": "out", "schedule": {"rate": "5e-5"}}, ["--steps", "7", "--schedule.betas", "[0.5, 0.6]"]
    )
    assert toy == Toy(output=Path("out"), steps=7, schedule=Schedule(rate=5e-5, betas=(0.5, 0.6)))


def test_a_resolved_recipe_can_be_fed_back(tmp_path: Path) -> None:
    toy = Toy(output=Path("out"), steps=5, schedule=Schedule(rate=2e-5))
    path = tmp_path / "resolved.yaml"
    path.write_text(as_yaml(toy))
    assert resolve(Toy, read_yaml(path)) == toy


@pytest.mark.parametrize(
    ("values", "overrides", "named"),
    [
        ({"output": "out", "stepz": 3}, [], "stepz"),
        ({"output": "out", "schedule": {"rat": 1.0}}, [], "rat"),
        ({"output": "out", "steps": "many"}, [], "steps"),
        ({"output": "out"}, ["--stepz", "3"], "stepz"),
        ({}, [], "output"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence_that_names_the_key(
    values: dict, overrides: list, named: str
) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        resolve(Toy, values, overrides)
    assert "\n" not in str(caught.value)


def test_the_bundled_models_recipes_fit_together() -> None:
    first, second = (
        resolve(TokenizerRecipe, read_yaml(RECIPES / f"{name}.yaml")) for name in ("tiny_tokenizer", "tiny_decoder")
    )
    third = resolve(MLLMRecipe, read_yaml(RECIPES / "tiny.yaml"))
    assert second.start_from == first.output / "final" and third.image_tokenizer == second.output / "final"
    codes = UniTok(UniTokConfig.from_dict({**UniTokConfig.tiny().to_dict(), **first.architecture}))
    image_tokenizer = with_new_decoder(codes, second.architecture)
    bundled = MLLMConfig.from_pretrained(BUNDLED)
    assert image_tokenizer.config == UniTok.from_pretrained(BUNDLED / "image_tokenizer").config
    vocabulary = extend_tokenizer(
        load_text_tokenizer(BUNDLED), max_grid_side=third.model["max_grid_side"], outlines=True
    )
    text_config = {**third.model["text_config"], "vocab_size": vocabulary.size}
    config = model_config(third, text_config, vocabulary, image_tokenizer)
    for name in (*third.model.keys() - {"text_config"}, "patch_size", "image_size", "begin_plan_id", "new_line_id"):
        assert getattr(config, name) == getattr(bundled, name), name


def test_an_unknown_recipe_name_lists_what_is_shipped() -> None:
    with pytest.raises(FileNotFoundError, match="tiny"):
        find_recipe("no_such_recipe")


def test_what_the_launchers_start_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "train.run", "--local_rank=0", "tiny", "--lenght", "3"]  # as deepspeed starts it
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("mllm: ")]
    assert "lenght" in said


def test_sections_that_a_recipe_may_leave_out_can_be_changed_and_dropped() -> None:
    values = read_yaml(find_recipe("lora"))
    changed = resolve(MLLMRecipe, values, ["--adapter.rank", "4", "--adapter.alpha=2", "--validation.batches", "3"])
    assert (changed.adapter.rank, changed.adapter.alpha, changed.adapter.dropout) == (4, 2.0, 0.05)
    assert changed.validation.batches == 3
    world = ["--validation.world.count", "5", "--validation.world.jobs=[draw]"]
    assert resolve(MLLMRecipe, values, world).validation.world == WorldInLoop(count=5, jobs=["draw"])
    with pytest.raises(ValueError, match=r"--validation is not valid YAML: found '\{batches: '; mend the value"):
        resolve(MLLMRecipe, values, ["--validation", "{batches: "])
    assert resolve(MLLMRecipe, read_yaml(find_recipe("stage2_pretrain")), ["--validation", "null"]).validation is None
    with pytest.raises(ValueError, match="rang"):
        resolve(MLLMRecipe, values, ["--adapter.rang", "4"])
