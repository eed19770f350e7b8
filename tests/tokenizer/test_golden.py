"""The released architecture reproduces stored numbers of the public implementation (820 M parameters, float32)."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mllm.cli.main import main
from tests.golden.deterministic_weights import FOLDER, fill, read_manifest
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "tokenizer_large.safetensors")


@pytest.fixture(scope="module")
def model() -> Iterator[UniTok]:
    """Through the file that a person downloads and the command that converts it."""
    shapes = read_manifest("tokenizer_large_manifest.json")
    with TemporaryDirectory() as folder:  # 7 GB, so not left behind as pytest's own folders are
        path, converted = Path(folder) / "unitok_tokenizer.pth", Path(folder) / "unitok"
        args = OrderedDict(model="vitamin_large", num_codebooks=8, vocab_size=32768, dtype=torch.bfloat16, le=0.0)
        state = {name: fill(name, shape) for name, shape in shapes.items()}
        torch.save({"args": args, "epoch": 1, "iter": 0, "trainer": {"config": {}, "unitok": state}}, path)
        assert main(["convert", "unitok", str(path), str(converted)]) == 0
        model = UniTok.from_pretrained(converted)
        assert model.config == UniTokConfig.large()
        yield model


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected.float()).norm() / expected.float().norm())


@torch.inference_mode()
def test_codes_of_images(model: UniTok, golden: dict[str, Tensor]) -> None:
    hidden_BND = model.encoder(golden["image"].float())
    assert relative_error(hidden_BND[..., :16], golden["encoder_tokens_first16"]) < 1e-4
    features_BNZ = model.quant_proj(hidden_BND)
    assert relative_error(features_BNZ, golden["pre_quant"]) < 1e-4
    codes_BKN = model.quantizer.quantize(features_BNZ)
    assert (codes_BKN == golden["indices"]).float().mean() >= 0.995


@torch.inference_mode()
def test_images_of_codes(model: UniTok, golden: dict[str, Tensor]) -> None:
    decoded_B3HW = model.decode(golden["indices"])
    torch.testing.assert_close(decoded_B3HW, golden["decoded"].float(), atol=1e-3, rtol=1e-3)  # stored as float16


@torch.inference_mode()
def test_joint_embeddings(model: UniTok, golden: dict[str, Tensor]) -> None:
    hidden_BND = model.post_quant_proj(model.quantizer.lookup(golden["indices"]))
    assert relative_error(hidden_BND[..., :16], golden["post_quant_first16"]) < 1e-4
    image_BD = model.projection(model.fc_norm(hidden_BND.mean(dim=1)))
    assert relative_error(image_BD, golden["image_embedding"]) < 1e-4
    text_BD = model.encode_text(golden["text_tokens"].long())
    assert relative_error(text_BD, golden["text_embedding"]) < 1e-4
