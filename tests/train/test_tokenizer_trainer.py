"""Training the image tokenizer: it learns, resumes exactly, processes only share the work, and what is measured."""

import dataclasses
import json
import math
import shutil
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor

from tests.train.conftest import SMALL, TEXT_TOWER, everything
from tests.train.launching import command, free_port, kill_at, launch, run_program, same, weights, write_recipe
from tests.train.published_weights import small_image, write_merges
from tokenizer.config import UniTokConfig
from tokenizer.images import ImageProcessor, read_image
from tokenizer.metrics import CLIP_TEMPLATES, class_vectors, read_templates
from tokenizer.text_tower import load_captions
from tokenizer.unitok import UniTok
from train import recipe as recipes
from train.recipe import CodebookSchedule, TokenizerRecipe
from train.tokenizer_trainer import TokenizerTrainer, TokenizerValidation, with_new_decoder

PLAIN: dict[str, Any] = {
    **{"architecture": SMALL, "steps": 4, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 1, "num_workers": 0},
    **{"codebooks": CodebookSchedule(initialise_at=2, every=2), "precision": "no", "log_every": 1},
}
"""Reconstruction of the synthetic world alone, on a very small network."""
LOSSES = ("reconstruction", "perceptual", "vq", "entropy", "contrastive", "adversarial")
DISCRIMINATOR_LOSSES = ("discriminator_real", "discriminator_made", "discriminator_consistency")


def train(output: Path, **changes: Any) -> Path:
    TokenizerTrainer(TokenizerRecipe(output=output, **{**PLAIN, **changes})).train()
    return output / "final"


def read_log(output: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in entries]


def test_every_loss_trains_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = everything(tmp_path, tmp_path / "run")
    TokenizerTrainer(recipe).train()
    log = read_log(recipe.output)
    assert all(name in log[-1] for name in LOSSES + DISCRIMINATOR_LOSSES)
    assert "adversarial" not in log[2] and "adversarial" in log[3]  # its weight is 0 up to its first step
    assert any(entry["revived"] for entry in log)
    assert (recipe.output / "sheet-8.png").is_file()
    shutil.copytree(recipe.output / "final", tmp_path / "kept")
    for path in recipe.output.glob("checkpoint-*"):
        if path.name not in ("checkpoint-2", "checkpoint-4"):
            shutil.rmtree(path)
    TokenizerTrainer(dataclasses.replace(recipe, recompute_activations=True)).train()  # changes nothing, either
    assert read_log(recipe.output) == log
    final = weights(recipe.output / "final")
    assert same(final, weights(tmp_path / "kept"))
    assert same(final, UniTok.from_pretrained(recipe.output / "checkpoint-8").state_dict())
    assert not same(final, weights(recipe.output / "checkpoint-8"))  # it is the average
    TokenizerTrainer(dataclasses.replace(recipe, learning_rate=9.0)).train()  # a finished run keeps its recipe
    assert recipes.read_yaml(recipe.output / "recipe.yaml")["learning_rate"] == recipe.learning_rate


def test_checkpoints_that_were_moved_or_packed_do_not_end_a_run(tmp_path: Path) -> None:
    run, often = tmp_path / "run", {"save_every": 1, "keep_checkpoints": 1}
    train(run, steps=2, **often)
    (run / "checkpoint-2").rename(tmp_path / "moved")
    (run / "checkpoint-2").symlink_to(tmp_path / "moved")
    (run / "checkpoint-9").write_bytes(b"packed")
    train(run, steps=3, **often)
    assert (run / "checkpoint-3").is_dir() and (tmp_path / "moved").is_dir()


@pytest.mark.parametrize("part", ["tokenizer", "discriminator"])
def test_a_diverged_run_ends_before_it_is_saved(tmp_path: Path, part: str) -> None:
    recipe = everything(tmp_path, tmp_path / "run", save_every=1)
    trainer = TokenizerTrainer(recipe)
    assert trainer.adversary is not None

    def diverge(gradient: Tensor) -> Tensor:
        return gradient * (math.nan if trainer.step == 3 else 1.0)

    diverging = trainer.unwrapped.decoder if part == "tokenizer" else trainer.adversary.heads
    next(diverging.parameters()).register_hook(diverge)
    with pytest.raises(ValueError):
        trainer.train()
    saved = sorted(path.name for path in recipe.output.glob("checkpoint-*"))
    assert saved == ["checkpoint-1", "checkpoint-2", "checkpoint-3"] and not (recipe.output / "final").exists()


def test_what_takes_long_to_import_and_is_not_used_is_not_imported(tmp_path: Path) -> None:
    recipe = TokenizerRecipe(output=tmp_path, **{**PLAIN, "steps": 1})
    script = (
        "import sys; from train.run import main; main(sys.argv[1:])\n"
        "assert not (found := {'peft', 'bitsandbytes', 'deepspeed'} & set(sys.modules)), found"
    )
    run_program(sys.executable, "-c", script, write_recipe(recipe, tmp_path / "recipe.yaml"))


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_images(tmp_path: Path) -> None:
    # Entries of the codebooks begin apart and are revived once, before the last step: equal ones would be told apart by
    # rounding alone, and the length of the gradient depends on which of two equal entries is taken.
    codebooks = CodebookSchedule(initialise_at=0, every=6, threshold=0.95, until=1.0)
    how = {"shards": recipes.ShardsRecipe(), "codebooks": codebooks}
    both = [everything(tmp_path, tmp_path / f"{count}", batch_size=8 // count, **how) for count in (1, 2)]
    for count, recipe in enumerate(both, start=1):  # with as many threads per process: rounding picks codes
        launch("torchrun", write_recipe(recipe, tmp_path / f"{count}.yaml"), processes=count)
    entries = list(zip(*(read_log(recipe.output) for recipe in both), strict=True))
    assert entries[6][0]["revived"] > 0
    for one, two in entries[:7]:  # after the revival, rounding decides which of two near entries is taken
        for name, value in one.items():
            # the adversarial loss, and with it the gradient, is weighted by a quotient, which rounding moves most
            rel = 0.15 if name in ("adversarial", "gradient_norm") else 1e-2
            assert two[name] == pytest.approx(value, rel=rel, abs=2e-3), (one["step"], name)


@pytest.mark.slow
def test_a_killed_run_on_two_processes_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    calm, killed = (everything(tmp_path, tmp_path / name, steps=12, save_every=3) for name in ("calm", "killed"))
    launch("torchrun", write_recipe(calm, tmp_path / "calm.yaml"))
    words = command("torchrun", write_recipe(killed, tmp_path / "killed.yaml"))
    kill_at(words, killed.output / "metrics.jsonl", lines=5)
    assert not (killed.output / "final").exists()
    launch("torchrun", tmp_path / "killed.yaml")
    assert read_log(killed.output) == read_log(calm.output)
    assert same(weights(killed.output / "final"), weights(calm.output / "final"))


def test_every_loss_trains_in_bfloat16(tmp_path: Path) -> None:
    logs = []
    for kind in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)  # it keeps one precision per process
        TokenizerTrainer(everything(tmp_path, tmp_path / kind, steps=4, precision=kind)).train()
        logs.append(read_log(tmp_path / kind))
    AcceleratorState._reset_state(reset_partial_state=True)
    full, half = logs
    for step, name in product((0, -1), ("reconstruction", "perceptual")):
        assert half[step][name] == pytest.approx(full[step][name], rel=0.2 if step else 0.05), (step, name)


def test_training_lowers_the_losses_of_images_and_of_captions(tmp_path: Path, text_tokenizer_file: Path) -> None:
    captioned = {
        "architecture": {**SMALL, **TEXT_TOWER, "text_context": 24},
        "loss": recipes.TokenizerLossWeights(contrastive=1.0, entropy=0.1),
        "text_tokenizer": text_tokenizer_file,
    }
    longer = {"steps": 24, "batch_size": 8, "codebooks": CodebookSchedule(initialise_at=12, every=5)}
    for name, share, changes in (("reconstruction", 0.85, {}), ("contrastive", 0.95, captioned)):
        train(tmp_path / name, **longer, **changes)
        values = [entry[name] for entry in read_log(tmp_path / name)]
        assert sum(values[-5:]) < share * sum(values[:5]), (name, sum(values[-5:]) / sum(values[:5]))


def test_start_from_and_checkpoints_of_another_network(tmp_path: Path) -> None:
    first = everything(tmp_path, tmp_path / "run", steps=2, ema_decay=0.0, save_every=1, keep_checkpoints=1)
    TokenizerTrainer(first).train()
    assert [path.name for path in first.output.glob("checkpoint-*")] == ["checkpoint-2"]  # the newest are kept
    second = everything(tmp_path, tmp_path / "more", architecture={}, start_from=first.output / "final")
    assert same(TokenizerTrainer(second).unwrapped.state_dict(), weights(first.output / "final"))
    # causal and full attention have the same weights; only the stored config tells them apart
    causal = {**first.architecture, "projection_attention": "causal"}
    for refused in (
        lambda: TokenizerTrainer(everything(tmp_path, tmp_path / "run", steps=2, architecture=causal)).train(),
        lambda: TokenizerTrainer(everything(tmp_path, tmp_path / "other", architecture=SMALL)),  # no text tower
        lambda: TokenizerTrainer(TokenizerRecipe(output=tmp_path / "other", world_crop=20, **PLAIN)),  # not of patches
        lambda: everything(tmp_path, tmp_path / "other", lpips=None),
        lambda: everything(tmp_path, tmp_path / "other", text_tokenizer=None),
        lambda: everything(tmp_path, tmp_path / "other", start_from=tmp_path),
        lambda: everything(tmp_path, tmp_path / "other", trainable="decoder"),
    ):
        with pytest.raises(ValueError):
            refused()


def test_a_decoder_trained_alone_leaves_the_codes_and_may_draw_them_larger(tmp_path: Path) -> None:
    half = UniTok.from_pretrained(train(tmp_path / "half"))
    always = CodebookSchedule(initialise_at=1, every=1, threshold=10.0)  # would move every entry
    decoder_only = {"start_from": tmp_path / "half" / "final", "trainable": "decoder", "codebooks": always}
    trained = UniTok.from_pretrained(train(tmp_path / "run", architecture={}, **decoder_only))
    assert trained.fingerprint() == half.fingerprint()
    named = zip(half.named_parameters(), trained.parameters(), strict=True)
    changed = {name.split(".")[0] for (name, old), new in named if not torch.equal(old, new)}
    assert changed == {"post_quant_proj", "decoder"}

    changed = with_new_decoder(half, {"decoder_widths": [12, 6]})  # of other sizes, it takes over what fits
    old, new = half.state_dict(), changed.state_dict()
    fitting = {name for name in old.keys() & new.keys() if old[name].shape == new[name].shape}
    assert all(torch.equal(old[name], new[name]) for name in fitting)
    assert any("decoder.stages.0" in name for name in fitting) and old.keys() - fitting
    larger = {"shrink": 2, "image_size": 64, "decoder_widths": [12, 8, 8], "decoder_depths": [1, 1, 1]}
    with pytest.raises(ValueError):
        with_new_decoder(half, {**larger, "image_size": 32})
    double = UniTok.from_pretrained(train(tmp_path / "double", architecture=larger, **decoder_only))
    pixels_B3HW = torch.rand(2, 3, 64, 64) * 2 - 1
    codes_BKN = double.encode(pixels_B3HW)
    assert torch.equal(codes_BKN, half.encode(F.avg_pool2d(pixels_B3HW, 2)))
    assert double.decode(codes_BKN).shape == pixels_B3HW.shape


def write_classes(folder: Path, names: dict[str, str], counts: tuple[int, ...]) -> None:
    for label, (name, count) in enumerate(zip(names, counts, strict=True)):
        (folder / "val" / name).mkdir(parents=True)
        for number in range(count):
            small_image(10 * label + number).save(folder / "val" / name / f"{number}.png")
    (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8-sig")  # a byte order mark


def test_zero_shot_accuracy_equals_a_loop_over_images(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = UniTok(dataclasses.replace(UniTokConfig.tiny(), **SMALL, **TEXT_TOWER)).eval()
    for parameter in (model.quantizer.codebooks, *model.text_encoder.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    names = {"n01": "cat", "n02": "the dog", "n03": "house"}
    write_classes(tmp_path, names, (3, 2, 4))
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\n\nthe {} here.\nthe {} there.\n")
    templates = read_templates(path)
    assert templates == ("a {}.", "the {} here.", "the {} there.") and len(set(read_templates(CLIP_TEMPLATES))) == 80
    captions = load_captions(write_merges(tmp_path / "merges.txt.gz"), vocab_size=517, context=12)
    recipe = recipes.EvaluationRecipe(imagenet_val=tmp_path / "val", classes=tmp_path / "classes.json", templates=path)
    measured = TokenizerValidation(recipe, 32, batch_size=2, captions=captions)
    classes_ND = class_vectors(model, captions, list(names.values()), templates)
    is_best, prepare = [], ImageProcessor(height=32, width=32, preparation="zero_shot")
    for label, name in enumerate(names):
        for file in sorted((tmp_path / "val" / name).iterdir()):
            scores_N = torch.cosine_similarity(model.encode_image(prepare(read_image(file))), classes_ND)
            is_best.append(scores_N.argmax().item() == label)
    expected = sum(is_best) / len(is_best)
    assert measured.zero_shot(model) == {"zero_shot_top1": pytest.approx(expected), "zero_shot_top5": 1.0}


@pytest.mark.slow
def test_the_launcher_trains_on_two_processes_and_evaluates(tmp_path: Path) -> None:
    write_classes(tmp_path, {"n01": "cat", "n02": "dog"}, (2, 3))
    recipe = write_recipe(everything(tmp_path, tmp_path / "unused", steps=4), tmp_path / "recipe.yaml")
    words = f"--nnodes 1 --nproc_per_node 2 --node_rank 0 --master_addr 127.0.0.1 --master_port {free_port()}".split()
    words += ["--output_dir", str(tmp_path / "run"), "--train_data", f"{tmp_path}/{{02..03}}.tar"]
    words += ["--imagenet_val", str(tmp_path / "val"), "--imagenet_classes", str(tmp_path / "classes.json")]
    words += ["--fid_eval_src", str(tmp_path / "val" / "n02"), "--fid_eval_dst", str(tmp_path / "made")]
    words += ["--evaluation.fid_score", "false", "--batch_size", "3"]
    run_program("scripts/train_tokenizer.sh", *words, RECIPE=str(recipe), PYTHON=sys.executable)
    used = recipes.resolve(TokenizerRecipe, recipes.read_yaml(tmp_path / "run" / "recipe.yaml"))
    assert (used.shards.urls, used.batch_size) == (f"{tmp_path}/{{02..03}}.tar", 3)
    reading = json.loads((tmp_path / "run" / "checkpoint-4" / "reading.json").read_text())
    assert (reading["shards"], reading["readers"]) == (2, 2)
    assert {file.name for file in (tmp_path / "made").iterdir()} == {"0.png", "1.png", "2.png"}
    last = read_log(tmp_path / "run")[-1]
    assert last["step"] == 4 and last["zero_shot_top5"] == 1.0
