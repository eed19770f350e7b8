"""Recipes: strict keys, typed overrides, round trip, old keys; what is shipped is sound."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

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


def test_overrides_win_over_the_file_and_keep_their_types(tmp_path: Path) -> None:
    """Also in optional and free sections, which can be dropped; paths may be numbers."""
    values = read_yaml(find_recipe("lora"))
    words = ["--adapter.rank", "4", "--adapter.alpha=2", "--validation.batches", "3", "--trainer.max_steps", "5"]
    words += ["--validation.world.count", "5", "--validation.world.jobs=[draw]", "--model.text_config.hidden_size", "8"]
    words += ["--trainer.lr_scheduler_kwargs", "{num_decay_steps: 2}", "--trainer.warmup_ratio", "1e-4"]
    words += ["--output", "7"]
    changed = resolve(MLLMRecipe, values, words)
    assert (changed.adapter.rank, changed.adapter.alpha, changed.adapter.dropout) == (4, 2.0, 0.05)
    assert changed.validation.batches == 3 and changed.validation.world == WorldInLoop(count=5, jobs=["draw"])
    assert changed.model == {"text_config": {"hidden_size": 8}} and changed.output == Path("7")
    expected = {"max_steps": 5, "warmup_ratio": 1e-4, "lr_scheduler_kwargs": {"num_decay_steps": 2}}
    assert expected.items() <= changed.trainer.items()
    (tmp_path / "resolved.yaml").write_text(as_yaml(changed))
    assert resolve(MLLMRecipe, read_yaml(tmp_path / "resolved.yaml")) == changed
    tokenizer = ["--precision", "no", "--betas=[0.5, 0.6]", "--learning_rate", "5e-5", "--world_crop", "null"]
    image = resolve(TokenizerRecipe, read_yaml(find_recipe("tiny_tokenizer")), tokenizer)
    assert (image.precision, image.betas, image.learning_rate, image.world_crop) == ("no", (0.5, 0.6), 5e-5, None)
    assert resolve(MLLMRecipe, read_yaml(find_recipe("stage2_pretrain")), ["--validation", "null"]).validation is None


def test_old_keys_are_read() -> None:
    values = read_yaml(find_recipe("lora"))
    old = {("trains" if name == "trainable" else name): value for name, value in values.items()}
    old["data"] = {"outlines": True, "outline_digits": 2}
    values["data"] = {"plans": True, "plan_digits": 2}
    assert resolve(MLLMRecipe, old) == resolve(MLLMRecipe, values)
    values["data"] = {"shards": [{"path": "a"}], "root": "here"}
    old = {**values, "data": {**values["data"], "lanes": 4, "lookahead": 9}}
    resolved = resolve(MLLMRecipe, old, ["--trains", "[projector]"])
    assert resolved.trainable == ["projector"]
    assert (resolved.data.packing_buffers, resolved.data.buffer_size) == (4, 9)
    assert resolve(TokenizerRecipe, {"output": "x"}, ["--evaluation.pictures", "y"]).evaluation.images == Path("y")


def test_what_does_not_fit_is_refused_in_one_line_that_names_the_file_and_the_key() -> None:
    model = read_yaml(find_recipe("stage2_pretrain")) | {"adapter": {"rank": 4}, "start_from": "x", "trainable": []}
    shards = {"shards": [{"path": "a"}]}
    for key, value in (
        *(("rows", 0), ("rows", True), ("length", "many"), ("lenght", 5), ("data", None), ("data.prompt_dropout", 1.5)),
        *(("optimizer", None), ("optimizer.learning_rate", 0.0), ("adapter.bits", 3), ("bad_steps.spike", 1.0)),
        *(("output", ""), ("output", None), ("start_from", 1.5), ("trainable", ["projektor"]), ("trainable", ["all"])),
        *(("backbone", "folder"), ("classes.class_dropout", 1.0), ("data.drawing_weights", {"full": 0})),
        *(("data.episodes", 3), ("data.plan_digits", 3), ("data.min_objects", 5)),
    ):
        refuse(MLLMRecipe, model, key, value)
    for key, value in (("steps", -3), ("ema_decay", 2), ("loss", None), ("loss.l1", -1), ("codebooks.every", 0)):
        refuse(TokenizerRecipe, read_yaml(find_recipe("tiny_tokenizer")), key, value)
    for section in (
        *({"plans": False, "centred": True}, {"min_objects": 3, "max_objects": 2}, {"jobs": "draw"}),
        *({**shards, "jobs": {"ask": 1.0}}, {"root": "a"}, {"plan_digits": 2}, {"question_weights": {"counts": 1.0}}),
    ):
        refuse(MLLMRecipe, model, "data", section, named="data")
    refuse(MLLMRecipe, {**model, "start_from": None}, "adapter", {}, named="adapter")
    for words in (["--stepz", "3"], ["--steps"], ["steps", "3"], ["--betas=["]):
        with pytest.raises(ValueError, match=words[0].strip("-=[")):
            resolve(TokenizerRecipe, {"output": "out"}, words)


def test_names_of_bundled_models_stand_for_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # no model
    words = ["--start_from", "tiny", "--image_tokenizer=tiny", "--text_tokenizer", "tiny"]
    recipe = resolve(MLLMRecipe, read_yaml(find_recipe("tiny_language")), words)
    assert (recipe.start_from, recipe.text_tokenizer) == (BUNDLED, BUNDLED)
    assert recipe.image_tokenizer == BUNDLED / "image_tokenizer"
    assert resolve(TokenizerRecipe, {"output": "x", "start_from": "tiny"}).start_from == BUNDLED / "image_tokenizer"
    (tmp_path / "tiny" / "config.json").touch()  # a model
    assert resolve(TokenizerRecipe, {"output": "x", "start_from": "tiny"}).start_from == Path("tiny")


def test_what_the_command_line_got_wrong_names_the_option() -> None:
    path, values = Path("some.yaml"), read_yaml(find_recipe("tiny"))
    for words, source in (
        (["--rows", "0"], "--rows must fit MLLMRecipe, but rows must be greater than 0, got '0'"),
        (
            ["--rows", "4", "--lenght=3"],
            "--lenght must fit MLLMRecipe, but lenght must be left out, as there is no such key, got '3'; write length",
        ),
        (["--optimizer.betas=[0.9, x]"], "--optimizer.betas must fit"),
        (["--data.outline_digits", "7"], "--data.outline_digits must fit"),
        (["--data.min_objects", "3", "--data.max_objects=2"], "some.yaml with --data.min_objects and --data.max_ob"),
        (["--rows", "4", "--start_from", "x", "--backbone", "y"], "some.yaml with --start_from and --backbone must"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(source)}"):
            resolve(MLLMRecipe, values, words, path=path)
    with pytest.raises(ValueError, match="^some.yaml must fit MLLMRecipe, but rows must"):
        resolve(MLLMRecipe, {**values, "rows": 0}, ["--length", "3"], path=path)


def refuse(recipe_type: type, values: dict[str, Any], key: str, value: object, named: str = "") -> None:
    first, _, inside = key.partition(".")
    changed = {**values, first: {**(values.get(first) or {}), inside: value} if inside else value}
    with pytest.raises(ValueError, match=rf"^some.yaml must .*{named or inside or first}.*") as caught:
        resolve(recipe_type, changed, path=Path("some.yaml"))
    assert not re.search(r"\n|should|<class|instance of", str(caught.value)), caught.value


def test_a_file_that_is_no_mapping_of_unique_keys_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for content in (b"steps: 3\nsteps: 4\n", b"loss: {l1: 1, l1: 2}", b"a: caf\xe9", b"- a", b"", b"a: [", b"[" * 1500):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.yaml must"):
            read_yaml(path)
    path.write_bytes(b"\xef\xbb\xbfkind: mllm\nrate: 1e-4\n")
    assert read_yaml(path) == {"kind": "mllm", "rate": 1e-4}


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
    vocabulary = extend_tokenizer(load_text_tokenizer(BUNDLED), max_grid_side=third.model["max_grid_side"], plans=True)
    text_config = {**third.model["text_config"], "vocab_size": vocabulary.size}
    config = model_config(third, text_config, vocabulary, image_tokenizer)
    for name in (*third.model.keys() - {"text_config"}, "patch_size", "image_size", "begin_plan_id", "new_line_id"):
        assert getattr(config, name) == getattr(bundled, name), name


def test_launchers_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--local_rank=0", "tiny", "--lenght", "3"])  # as deepspeed starts it
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("train.run", run_name="__main__")
    assert "lenght" in capsys.readouterr().err.splitlines()[-1]
