"""The released architecture reproduces stored numbers of the public implementation (820 M parameters, float32)."""

from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file

from mllm.cli.main import main
from tests.golden.deterministic_weights import FOLDER, fill, read_manifest
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok


@pytest.mark.slow
@torch.inference_mode()
def test_the_converted_network_gives_the_stored_numbers() -> None:
    """Through the file that a person downloads and the command that converts it."""
    shapes, golden = read_manifest("tokenizer_large_manifest.json"), load_file(FOLDER / "tokenizer_large.safetensors")
    with TemporaryDirectory() as folder:  # 7 GB, so not left behind as pytest's own folders are
        path, converted = Path(folder) / "unitok_tokenizer.pth", Path(folder) / "unitok"
        args = OrderedDict(model="vitamin_large", num_codebooks=8, vocab_size=32768, dtype=torch.bfloat16, le=0.0)
        state = {name: fill(name, shape) for name, shape in shapes.items()}
        torch.save({"args": args, "epoch": 1, "iter": 0, "trainer": {"config": {}, "unitok": state}}, path)
        assert main(["convert", "unitok", str(path), str(converted)]) == 0
        model = UniTok.from_pretrained(converted)
    assert model.config == UniTokConfig.large()
    hidden_BND = model.encoder(golden["image"].float())
    features_BNZ = model.quant_proj(hidden_BND)
    assert (model.quantizer.quantize(features_BNZ) == golden["indices"]).float().mean() >= 0.995
    decoded_B3HW = model.decode(golden["indices"])
    torch.testing.assert_close(decoded_B3HW, golden["decoded"].float(), atol=1e-3, rtol=1e-3)  # stored as float16
    looked_up_BND = model.post_quant_proj(model.quantizer.lookup(golden["indices"]))
    for found, name in (
        (hidden_BND[..., :16], "encoder_tokens_first16"),
        (features_BNZ, "pre_quant"),
        (looked_up_BND[..., :16], "post_quant_first16"),
        (model.projection(model.fc_norm(looked_up_BND.mean(dim=1))), "image_embedding"),
        (model.encode_text(golden["text_tokens"].long()), "text_embedding"),
    ):
        expected = golden[name].float()
        assert (found - expected).norm() < 1e-4 * expected.norm(), name
