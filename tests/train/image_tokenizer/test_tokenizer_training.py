"""Training the image tokenizer: it learns, every loss term is the one it says, and it goes on where it stopped."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import SMALL
from tokenizer.text_tower import load_captions
from tokenizer.unitok import UniTok
from train.recipe import CodebookSchedule, TokenizerLossWeights, TokenizerRecipe
from train.tokenizer_losses import contrastive_loss, detail_of, reconstruction_loss
from train.tokenizer_trainer import TokenizerTrainer, with_new_decoder

TEXT_TOWER = {
    "embed_dim": 8,
    "text_vocab_size": 401,
    "text_context": 24,
    "text_width": 16,
    "text_heads": 2,
    "text_layers": 1,
}


LONGER = {
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "codebooks": CodebookSchedule(initialise_at=30, every=5),
    "save_every": 60,
    "sheet_every": 60,
}


def make_recipe(output: Path, **changes: object) -> TokenizerRecipe:
    settings = {
        "architecture": SMALL,
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
        "codebooks": CodebookSchedule(initialise_at=2, every=2),
        "precision": "no",
        "num_workers": 0,
        "log_every": 1,
        "save_every": 2,
        "sheet_every": 6,
    }
    return TokenizerRecipe(output=output, **{**settings, **changes})


def log(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "images_per_second"} for entry in entries]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    TokenizerTrainer(recipe).train()
    whole, final = log(tmp_path), load_file(tmp_path / "final" / "model.safetensors")
    for path in tmp_path.glob("checkpoint-*"):
        if path.name != "checkpoint-4":
            shutil.rmtree(path)
    shutil.rmtree(tmp_path / "final")
    TokenizerTrainer(recipe).train()
    assert log(tmp_path) == whole
    resumed = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(resumed[name], final[name]) for name in final)


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, save_every=1)
    TokenizerTrainer(recipe).train(stop_at=2)
    trainer = TokenizerTrainer(recipe)
    trainer.unwrapped.decoder.last_weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(ValueError):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / "final").exists()


def test_training_lowers_the_loss_and_leaves_a_sheet(tmp_path: Path) -> None:
    TokenizerTrainer(make_recipe(tmp_path, **LONGER)).train()
    values = [entry["reconstruction"] for entry in log(tmp_path)]
    assert sum(values[-10:]) < 0.7 * sum(values[:10])
    assert (tmp_path / "sheet-60.png").is_file()


def test_pictures_train_against_captions(tmp_path: Path, text_tokenizer_file: Path) -> None:
    recipe = make_recipe(
        tmp_path,
        architecture={**SMALL, **TEXT_TOWER},
        loss=TokenizerLossWeights(contrastive=1.0, entropy=0.1),
        text_tokenizer=text_tokenizer_file,
        **LONGER,
    )
    TokenizerTrainer(recipe).train()
    entries = log(tmp_path)
    values = [entry["contrastive"] for entry in entries]
    assert sum(values[-10:]) < 0.8 * sum(values[:10])
    assert all(math.isfinite(entry["entropy"]) for entry in entries)


def test_the_decoder_learns_alone_on_codes_that_stay_what_they_are(tmp_path: Path) -> None:
    TokenizerTrainer(make_recipe(tmp_path / "whole")).train()
    before = UniTok.from_pretrained(tmp_path / "whole" / "final")
    always = CodebookSchedule(initialise_at=1, every=1, threshold=10.0)  # would move every entry
    recipe = make_recipe(
        tmp_path / "run", architecture={}, start_from=tmp_path / "whole" / "final", trains="decoder", codebooks=always
    )
    TokenizerTrainer(recipe).train()
    after = UniTok.from_pretrained(tmp_path / "run" / "final")
    assert after.fingerprint() == before.fingerprint()
    moved = {
        name.split(".")[0]
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved == {"post_quant_proj", "decoder"}


def test_a_larger_decoder_draws_the_same_codes_at_twice_the_size(tmp_path: Path) -> None:
    TokenizerTrainer(make_recipe(tmp_path / "half")).train()
    half = UniTok.from_pretrained(tmp_path / "half" / "final")
    larger = {"shrink": 2, "image_size": 64, "decoder_widths": [12, 8, 8], "decoder_depths": [1, 1, 1]}
    recipe = make_recipe(
        tmp_path / "whole", architecture=larger, start_from=tmp_path / "half" / "final", trains="decoder", **LONGER
    )
    TokenizerTrainer(recipe).train()
    whole = UniTok.from_pretrained(tmp_path / "whole" / "final")
    pixels_B3HW = torch.rand(2, 3, 64, 64) * 2 - 1
    codes_BKN = half.encode(torch.nn.functional.avg_pool2d(pixels_B3HW, 2))
    assert torch.equal(whole.encode(pixels_B3HW), codes_BKN)
    assert whole.decode(codes_BKN).shape == pixels_B3HW.shape
    losses = [entry["reconstruction"] for entry in log(tmp_path / "whole")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    with pytest.raises(ValueError):
        make_recipe(tmp_path, architecture={"codebook_size": 8}, start_from=tmp_path, trains="decoder")


def test_a_decoder_of_other_sizes_takes_over_what_fits(image_tokenizer_folder: Path) -> None:
    model = UniTok.from_pretrained(image_tokenizer_folder)
    assert with_new_decoder(model, {}) is model
    changed = with_new_decoder(model, {"decoder_widths": [12, 6]})
    old, new = model.state_dict(), changed.state_dict()
    fitting = {name for name in old.keys() & new.keys() if old[name].shape == new[name].shape}
    assert all(torch.equal(old[name], new[name]) for name in fitting)
    assert any("decoder.stages.0" in name for name in fitting) and old.keys() - fitting
    with pytest.raises(ValueError):
        with_new_decoder(model, {"shrink": 2, "decoder_widths": [12, 8, 8], "decoder_depths": [1, 1, 1]})


def test_a_decoder_without_codes_to_learn_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        make_recipe(tmp_path, trains="decoder")


def test_contrastive_training_without_a_text_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        TokenizerTrainer(make_recipe(tmp_path, loss=TokenizerLossWeights(contrastive=1.0)))


def test_reconstruction_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    made, real = torch.randn(2, 3, 5, 7, generator=generator), torch.randn(2, 3, 5, 7, generator=generator)
    differences = [(a - b).item() for a, b in zip(made.flatten(), real.flatten(), strict=True)]
    expected = sum(0.3 * abs(d) + 0.7 * d * d for d in differences) / len(differences)
    assert reconstruction_loss(made, real, l1_weight=0.3, l2_weight=0.7).item() == pytest.approx(expected, rel=1e-5)


def test_detail_is_one_at_a_strong_border_and_zero_on_flat_ground() -> None:
    pixels = torch.full((1, 3, 9, 20), -1.0)
    pixels[:, 1, :, 10:] = 1.0
    detail = detail_of(pixels)[0, 0]
    assert detail[:, 8:12].eq(1).all()
    assert detail[:, :8].eq(0).all() and detail[:, 12:].eq(0).all()


def test_contrastive_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    total = 0.0
    for row in range(3):
        for first, second in ((images, texts), (texts, images)):
            logits = [4.0 * torch.cosine_similarity(first[row], other, dim=0).item() for other in second]
            total -= logits[row] - math.log(sum(math.exp(value) for value in logits))
    assert contrastive_loss(images, texts, torch.tensor(4.0)).item() == pytest.approx(total / 6, rel=1e-5)


def test_the_end_is_the_largest_id_of_a_sentencepiece_vocabulary(text_tokenizer_file: Path) -> None:
    captions = load_captions(text_tokenizer_file, vocab_size=450, context=30)
    ids = captions(["a red circle"])
    assert ids.shape == (1, 30) and ids.max().item() == 449
    with pytest.raises(ValueError):
        load_captions(text_tokenizer_file, vocab_size=300, context=30)
