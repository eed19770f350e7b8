"""Loading: fewer bits, several devices, number formats, and what a code embedding may see."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mllm import checkpoint
from mllm.checkpoint import FREE_SHARE, KEPT, find_model_folder, spread
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.quantization import GROUP, MOST_PACKED_ROWS, Int4Linear, Int8Linear
from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 64 divides every width, as the kernels of few bits want it
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), width=192)


def linears(model: nn.Module, prefix: str) -> list[nn.Module]:
    return [m for name, m in model.named_modules() if name.startswith(prefix) and hasattr(m, "in_features")]


def is_quantized(linear: nn.Module) -> bool:
    return linear.weight.dtype in (torch.int8, torch.uint8) or type(linear.weight) not in (nn.Parameter, torch.Tensor)


@pytest.mark.parametrize("name", ["int8", "int4", "bnb8", "nf4"])
def test_backbone_and_head_are_quantised_and_still_draw_and_answer(folder: Path, name: str) -> None:
    if name in ("bnb8", "nf4"):
        pytest.importorskip("bitsandbytes")
    plain = Pipeline.load(folder, device="cpu")
    pipeline = Pipeline.load(folder, device="cpu", quantization=name)
    model = pipeline.model
    assert all(is_quantized(linear) for linear in linears(model, "backbone.") + linears(model, "code_head.layers."))
    for kept in KEPT:
        assert not any(is_quantized(linear) for linear in linears(model, kept))
    pictures = pipeline.draw("a red circle", n=2, seed=1)
    assert [image.size for image in pictures] == [(32, 32)] * 2
    assert isinstance(pipeline.ask(pictures[0], "What color is it?", max_new_tokens=5), str)
    ids = torch.tensor([[1, 300, 301, 302, 303]])
    with torch.inference_mode():
        ours, theirs = model(ids).logits.float(), plain.model(ids).logits.float()
    error = float((ours - theirs).norm() / theirs.norm())
    assert 0 < error < {"int8": 0.05, "int4": 0.4, "bnb8": 0.1, "nf4": 0.4}[name]


def test_packed_layers_are_the_product_with_the_nearest_weights_of_few_bits() -> None:
    """Against plain loops over the definition; integer weights that fit into the bits come back exactly."""
    torch.manual_seed(0)
    linear = nn.Linear(2 * GROUP, 48)
    weight_OI = linear.weight.detach()
    scale_O1 = (weight_OI.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    eight_bits_OI = (weight_OI / scale_O1).round().clamp(-128, 127) * scale_O1
    groups_OGI = weight_OI.unflatten(1, (-1, GROUP))
    step_OG1 = ((groups_OGI.amax(-1, keepdim=True) - groups_OGI.amin(-1, keepdim=True)) / 15).bfloat16().float()
    zero_OG1 = (groups_OGI.amin(-1, keepdim=True) + 8 * step_OG1).bfloat16().float()
    four_bits_OGI = ((groups_OGI - zero_OG1) / step_OG1).round().clamp(-8, 7) * step_OG1 + zero_OG1
    cases = ((Int8Linear, eight_bits_OI), (Int4Linear, four_bits_OGI.flatten(1)))
    for layer_class, rounded_OI in cases:
        assert 0 < (rounded_OI - weight_OI).abs().max() < 0.02
        layer = layer_class(linear, torch.device("cpu"))
        for num_rows in (1, 3, MOST_PACKED_ROWS + 1):
            hidden = torch.randn(2, num_rows, 2 * GROUP).bfloat16().float()  # what the kernels take exactly
            expected = nn.functional.linear(hidden, rounded_OI, linear.bias)
            torch.testing.assert_close(layer(hidden), expected, atol=0.01, rtol=0.01)
    integers = nn.Linear(2 * GROUP, 48, bias=False).requires_grad_(False)
    integers.weight.copy_(torch.randint(-8, 8, (48, 2 * GROUP)))
    integers.weight[:, ::GROUP], integers.weight[:, 1::GROUP] = -8, 7
    hidden = torch.randint(-2, 3, (5, 2 * GROUP)).float()
    product = integers(hidden)
    assert torch.equal(Int4Linear(integers, torch.device("cpu"))(hidden), product.bfloat16().float())
    integers.weight[:, 0] = 127
    product = integers(hidden)
    assert torch.equal(Int8Linear(integers, torch.device("cpu"))(hidden), product.bfloat16().float())
    with pytest.raises(ValueError, match="use int8"):
        Int4Linear(nn.Linear(GROUP + 1, 48), torch.device("cpu"))
    narrow = nn.Linear(24, 24).requires_grad_(False)  # torch's kernel crashes with AVX-512 and more than one row
    eight_bits, hidden = Int8Linear(narrow, torch.device("cpu")), torch.randn(300, 4, 24)
    for rows_MI in hidden:
        torch.testing.assert_close(eight_bits(rows_MI), narrow(rows_MI), atol=0.03, rtol=0.03)


def test_auto_spreads_the_layers_and_keeps_the_rest_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MLLMForConditionalGeneration.from_pretrained(folder).config
    config.text_config.num_hidden_layers = 4
    assert spread(config, dtype=torch.float32, first=torch.device("cpu")) == {"": torch.device("cpu")}
    with torch.device("meta"):
        model = MLLMForConditionalGeneration(config)
    layer = sum(p.numel() for p in model.backbone.layers[0].parameters()) * 4
    around = (model.num_parameters() - layer) * 4

    def places(dtype: torch.dtype, **memory: float) -> dict[str, Any]:
        free = {int(name[3:]) if name.startswith("gpu") else name: room / FREE_SHARE for name, room in memory.items()}
        monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: free)
        found = spread(config, dtype=dtype, first=torch.device("cuda", 0))
        assert {name.split(".")[-1] for name in found} >= {"embed_tokens", "norm", "code_head", "lm_head"}
        layers = {name: place for name, place in found.items() if name.startswith("backbone.layers")}
        assert {place for name, place in found.items() if name not in layers} == {0}
        return layers

    first = around + 2.1 * layer  # accelerate keeps room on the first device for one of the layers that are elsewhere
    for name, place in (("gpu1", 1), ("cpu", "cpu")):
        expected = {f"backbone.layers.{number}": place if number else 0 for number in range(4)}
        assert places(torch.float32, **{"gpu0": first, name: 9 * layer}) == expected
    assert places(torch.bfloat16, gpu0=first, cpu=9 * layer) == {"backbone.layers": 0}, "half the bytes fit on one"
    for memory in ({"gpu0": first}, {"gpu0": around - 9, "gpu1": 9 * layer}):
        with pytest.raises(ValueError):
            places(torch.float32, **memory)


def test_number_formats_and_contexts_are_chosen_when_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for name in ("prefix", "current"):
        pipeline = Pipeline.load(folder, device="cpu", embedding_context=name)
        drawn[name] = pipeline.draw("a red circle", seed=1)[0].tobytes()
        assert (pipeline.model.code_embedding.new_cache(2, 4) is None) == (name == "current")
    for dtype in (None, "float32", "bfloat16", "float16"):
        pipeline = Pipeline.load(folder, device="cpu", dtype=dtype)
        assert pipeline.model.dtype == getattr(torch, dtype or "float32")
        image = pipeline.draw("a red circle", seed=1)[0]
        assert (image.tobytes() == drawn["prefix"] != drawn["current"]) or dtype in ("bfloat16", "float16")
    for options in ({"embedding_context": "wide"}, {"quantization": "int3"}, {"device_map": "balanced"}):
        with pytest.raises(ValueError):
            Pipeline.load(folder, device="cpu", **options)
    monkeypatch.setattr("mllm.checkpoint.find_spec", lambda name: None)
    with pytest.raises(ImportError):
        Pipeline.load(folder, device="cpu", quantization="nf4")


def test_bundled_models_have_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # no model, so it does not hide the bundled one
    assert find_model_folder("tiny") == find_model_folder(None)
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path / "assets")
    with pytest.raises(FileNotFoundError, match="'emoji' must be in .*build_emoji_model"):
        find_model_folder("emoji")
    (tmp_path / "emoji").symlink_to(folder)
    assert find_model_folder("emoji") == Path("emoji")
    for wrong in (5, b"folder", ["a"]):
        with pytest.raises(ValueError, match="must be a folder or a hub id"):
            find_model_folder(wrong)
