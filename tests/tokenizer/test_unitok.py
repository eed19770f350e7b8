"""The whole tokenizer: config, pixels to codes and back, captions, files of codes; saved and read again."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.launching import same
from tests.train.published_weights import write_merges
from tokenizer.codes import CodeFile, fingerprint, read_codes, write_codes
from tokenizer.config import UniTokConfig
from tokenizer.images import to_pixels
from tokenizer.layers import FoldedUpsample
from tokenizer.text_tower import TextTower, load_captions
from tokenizer.unitok import UniTok, build_empty, decode_images, encode_images


def test_config_survives_json_and_presets_have_their_sizes(small_config: UniTokConfig) -> None:
    stored = json.loads(json.dumps(small_config.to_dict()))
    assert UniTokConfig.from_dict(stored) == small_config
    assert UniTokConfig.from_dict({**stored, "encoder_scope": "picture"}) == small_config  # an older name
    config = UniTokConfig.large()
    assert (config.patch_size, config.grid, config.positions_per_image, config.vector_width) == (16, (16, 16), 256, 64)
    assert sum(parameter.numel() for parameter in build_empty(config).parameters()) == 820_297_668  # without pos_embed
    bad = [("image_size", 40), ("codebook_size", 0), ("depth", -1), ("shrink", 3), ("num_heads", 5), ("colour", 3)]
    bad += [("stage_depths", (1, 2, 3)), ("stage_depths", (0, 2)), ("projection_heads", 7), ("drop_path", 1.0)]
    for name, value in bad:
        with pytest.raises(ValueError):
            UniTokConfig.from_dict({**stored, name: value})
            pytest.fail(f"{name} {value} was accepted")


def test_every_grid_works_both_ways_and_images_do_not_influence_their_neighbours(small_model: UniTok) -> None:
    for rows, columns in ((2, 3), (3, 2), (1, 4), (5, 1)):
        pixels_B3HW = torch.rand(2, 3, 16 * rows, 16 * columns) * 2 - 1
        codes_BKN = small_model.encode(pixels_B3HW)
        with pytest.raises(ValueError):
            small_model.decode(codes_BKN, grid=(rows, columns + 1))
        assert small_model.grid_of(pixels_B3HW) == (rows, columns) and codes_BKN.dtype == torch.int64
        assert torch.equal(codes_BKN, torch.cat([small_model.encode(each[None]) for each in pixels_B3HW]))
        decoded_B3HW = small_model.decode(codes_BKN, grid=(rows, columns))
        expected_B3HW = small_model(pixels_B3HW).reconstruction_B3HW.clamp(-1, 1)
        torch.testing.assert_close(decoded_B3HW, expected_B3HW, atol=1e-4, rtol=1e-4)
    assert small_model.decode(torch.zeros(1, 3, 9, dtype=torch.int32)).shape == (1, 3, 48, 48)  # a square by default


def test_codes_of_a_patch_depend_on_that_patch_alone(small_config: UniTokConfig) -> None:
    torch.manual_seed(0)
    model = UniTok(replace(small_config, encoder_scope="patch")).eval()
    pixels_B3HW = torch.rand(2, 3, 32, 48) * 2 - 1
    changed_B3HW = pixels_B3HW.clone()
    changed_B3HW[1, :, 16:, 16:32] = 0.5  # second row, second column: position 4
    features_BNZ, changed_BNZ = model.features(pixels_B3HW), model.features(changed_B3HW)
    is_changed_BN = (features_BNZ != changed_BNZ).any(dim=-1)
    assert is_changed_BN.nonzero().tolist() == [[1, 4]]
    alone_1NZ = model.features(pixels_B3HW[1:, :, 16:, 16:32])
    torch.testing.assert_close(alone_1NZ[0, 0], features_BNZ[1, 4])


def test_the_bundled_tokenizer_draws_no_frame_and_keeps_its_fingerprint() -> None:
    """Existing shards name it."""
    model = UniTok.from_pretrained(Path(__file__).parents[2] / "mllm/assets/tiny/image_tokenizer")
    source = json.loads((Path(__file__).parents[2] / "mllm/assets/tiny/SOURCE.json").read_text())
    assert model.fingerprint() == source["scores"]["image_tokenizer"]
    white_B3HW = torch.ones(1, 3, 256, 256)
    assert (model.decode(model.encode(white_B3HW)) - white_B3HW).abs().max() < 0.1


def test_autocast_around_it_changes_no_code(small_model: UniTok, pixels_B3HW: Tensor) -> None:
    codes_BKN = small_model.encode(pixels_B3HW)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rounded_BKN = small_model.quantizer.quantize(small_model.features(pixels_B3HW))
        assert torch.equal(small_model.encode(pixels_B3HW), codes_BKN)
    assert not torch.equal(rounded_BKN, codes_BKN)  # else this test could not fail


def test_every_parameter_learns_and_recomputing_keeps_gradients(small_model: UniTok, pixels_B3HW: Tensor) -> None:
    model = small_model.train()
    output = model(pixels_B3HW, torch.tensor([[1, 2, 30, 0], [5, 30, 0, 0]]), with_entropy=True)
    loss = output.reconstruction_B3HW.square().mean() + output.vq_loss + output.entropy_loss
    logits_BB = output.logit_scale * output.image_features @ output.text_features.T
    (loss + torch.nn.functional.cross_entropy(logits_BB, torch.arange(2))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    alone = {id(parameter) for parameter in model.contrastive_parameters()}
    parts = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) in alone}
    assert parts == {"text_encoder", "fc_norm", "projection", "logit_scale"}
    torch.testing.assert_close(output.image_features, model.encode_image(pixels_B3HW, normalize=True))
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100.0)  # CLIP, section 2.5
    gradients = []
    for enabled in (False, True):
        model.recompute_activations(enabled)
        model.zero_grad()
        model(pixels_B3HW).reconstruction_B3HW.square().mean().backward()
        gradients.append(model.encoder.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_saved_tokenizer_is_the_same(small_model: UniTok, pixels_B3HW: Tensor, tmp_path: Path) -> None:
    small_model.quantizer.usage.fill_(0.5)
    small_model.save_pretrained(tmp_path / "deep" / "folder")
    loaded = UniTok.from_pretrained(tmp_path / "deep" / "folder", device="cpu:0")  # `torchrun` on a CPU gives cpu:0
    assert loaded.config == small_model.config and not loaded.training
    assert same(loaded.state_dict(), small_model.state_dict()) and loaded.fingerprint() == small_model.fingerprint()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    half = UniTok.from_pretrained(tmp_path / "deep" / "folder", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.quantizer.codebooks.dtype == torch.float32
    codes_BKN = small_model.encode(pixels_B3HW)
    assert (half.encode(pixels_B3HW) == codes_BKN).float().mean() > 0.7
    expected_B3HW = small_model.decode(codes_BKN, grid=(2, 3))
    torch.testing.assert_close(half.decode(codes_BKN, grid=(2, 3)), expected_B3HW, atol=0.1, rtol=0.1)
    config = json.loads((tmp_path / "deep/folder/config.json").read_text())
    for text in (json.dumps({**config, "depth": 3}), json.dumps({**config, "depth": "3"}), "[]", "{", "[" * 100_000):
        (tmp_path / "deep/folder/config.json").write_text(text)
        with pytest.raises(ValueError, match=str(tmp_path)):
            UniTok.from_pretrained(tmp_path / "deep/folder")


def test_folded_once_it_decodes_and_saves_the_same_until_it_trains(small_model: UniTok, pixels_B3HW: Tensor) -> None:
    codes_BKN, grid = small_model.encode(pixels_B3HW), small_model.grid_of(pixels_B3HW)
    expected = small_model.decode(codes_BKN, grid=grid)
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    small_model.for_inference()
    assert isinstance(small_model.ready_decoder.entry, FoldedUpsample)
    torch.testing.assert_close(small_model.decode(codes_BKN, grid=grid), expected, atol=1e-5, rtol=0)
    assert same(small_model.state_dict(), before)
    small_model.for_inference(torch.bfloat16)
    assert {parameter.dtype for parameter in small_model.ready_decoder.parameters()} == {torch.bfloat16}
    assert small_model.dtype == torch.float32 and torch.equal(small_model.encode(pixels_B3HW), codes_BKN)
    assert 0 < (small_model.decode(codes_BKN, grid=grid) - expected).abs().max() < 0.05
    assert small_model.train().ready_decoder is None
    assert small_model.eval().for_inference().to(torch.float64).ready_decoder is None


def test_fingerprint_sees_what_decides_codes(small_model: UniTok, small_config: UniTokConfig) -> None:
    before = small_model.fingerprint()
    small_model.decoder.last_weight.data += 1.0
    small_model.quantizer.usage += 1.0
    assert small_model.fingerprint() == before
    other = UniTok(replace(small_config, encoder_scope="patch"))
    other.load_state_dict(small_model.state_dict())
    assert other.fingerprint() != before
    small_model.quantizer.codebooks.data[1, 2, 3] += 1e-3
    assert small_model.fingerprint() != before
    weights = torch.tensor([0.5, -2.0])
    first = fingerprint(["a", b"b", weights])
    assert len(first) == 16 and first == fingerprint(["a", b"b", weights.bfloat16()])  # the same values
    others = (["a", b"c", weights], ["b", b"b", weights], ["a", b"b", weights + 1])
    assert len({first, *map(fingerprint, others)}) == 4


@pytest.mark.parametrize("scope", ["image", "patch"])
def test_batches_of_one_size_equal_single_images(small_config: UniTokConfig, scope: Literal["image", "patch"]) -> None:
    """And come as soon as their batch is full."""
    torch.manual_seed(0)
    tokenizer = UniTok(replace(small_config, encoder_scope=scope, depth=1)).eval()
    patch = tokenizer.config.patch_size
    sizes = [(2, 3), (3, 2), (2, 3), (2, 3), (1, 1), (3, 2), (2, 3)]
    images = [torch.randint(0, 3, (3, rows * patch, columns * patch)).to(torch.uint8) * 100 for rows, columns in sizes]
    images[3][:, :, :patch] = images[0][:, :, :patch]  # equal patches in different images
    taken: list[Tensor] = []
    next(encode_images((taken.append(image) or image for image in images), tokenizer, batch_size=2))
    assert len(taken) == 3
    as_bytes = list(encode_images(iter(images), tokenizer, batch_size=2))
    as_floats = list(encode_images(map(to_pixels, images), tokenizer, batch_size=3))
    for image_3HW, encoded, again, grid in zip(images, as_bytes, as_floats, sizes, strict=True):
        expected_KN = tokenizer.encode(to_pixels(image_3HW[None]))[0].numpy()
        assert encoded.grid == again.grid == grid and encoded.codes_KN.dtype == np.uint16
        assert np.array_equal(encoded.codes_KN, expected_KN) and np.array_equal(again.codes_KN, expected_KN)
    for pixels_3HW, encoded in zip(decode_images(as_bytes, tokenizer, batch_size=2), as_bytes, strict=True):
        codes_1KN = torch.from_numpy(encoded.codes_KN.astype(np.int64))[None]
        torch.testing.assert_close(pixels_3HW, tokenizer.decode(codes_1KN, grid=encoded.grid)[0])


BEGIN, END = 515, 516  # after 256 letters, 256 letters that end a word, and three merges
THE, CA, T, AMPERSAND = 513, 514, 256 + ord("t") - ord("!"), 256 + ord("&") - ord("!")


def test_merges_are_applied_as_clip_does_and_what_follows_the_end_does_not_matter(
    small_model: UniTok, small_config: UniTokConfig, tmp_path: Path
) -> None:
    path = write_merges(tmp_path / "merges.txt.gz")
    captions = load_captions(path, vocab_size=517, context=9)
    ids_BT = captions(["The  CAT\n", "the &amp;amp; t"])
    assert ids_BT.tolist() == [[BEGIN, THE, CA, T, END, 0, 0, 0, 0], [BEGIN, THE, AMPERSAND, T, END, 0, 0, 0, 0]]
    cut = load_captions(path, vocab_size=517, context=5)
    assert cut(["the " * 20]).tolist() == [[BEGIN, THE, THE, THE, END]]
    captions.pieces.save_pretrained(tmp_path / "clip")  # type: ignore[attr-defined]
    folder = load_captions(tmp_path / "clip", vocab_size=517, context=9)
    assert torch.equal(folder(["the cat &"]), captions(["the cat &"]))
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress(b"# version\none\n"))
    for name, size in (("absent.model", 1000), ("words.txt.gz", 1000), ("merges.txt.gz", 516)):
        with pytest.raises((FileNotFoundError, ValueError)):
            load_captions(tmp_path / name, vocab_size=size, context=3)
    short = small_model.encode_text(torch.tensor([[1, 7, 30]]))
    torch.testing.assert_close(short, small_model.encode_text(torch.tensor([[1, 7, 30, 0, 0, 4]])))
    assert not torch.allclose(short, small_model.encode_text(torch.tensor([[1, 8, 30]])))
    text_ids_BT = torch.tensor([[1, 9, 2, 2, 0], [1, 2, 30, 0, 0]])  # the end is the largest id or the named one
    assert TextTower(small_config).end_positions(text_ids_BT).tolist() == [1, 2]
    assert TextTower(replace(small_config, text_end_id=2)).end_positions(text_ids_BT).tolist() == [2, 1]


def test_codes_come_back_as_written_and_other_files_are_refused(tmp_path: Path) -> None:
    generator, grids = np.random.default_rng(3), ((2, 5), (3, 3), (1, 7))
    codes = tuple(generator.integers(0, 65536, (3, h * w)).astype(np.uint16) for h, w in grids)
    sizes = {"num_codebooks": 3, "codebook_size": 65536, "fingerprint": "0123456789abcdef"}
    written = CodeFile(names=("a.png", "b c.jpg", "a.png"), grids=grids, codes=codes, **sizes)
    for ending in (".npz", ".safetensors"):
        path = tmp_path / f"x{ending}"
        write_codes(path, written)
        read = read_codes(path)
        assert replace(read, codes=codes) == written
        for ours, theirs in zip(codes, read.codes, strict=True):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        for content in (b"", b"not a code file at all", b"PK\x03\x04"):
            path.write_bytes(content)
            with pytest.raises(ValueError):
                read_codes(path)
    with pytest.raises(ValueError):
        written.require_fingerprint("fedcba9876543210")
