"""Checkpoints: fewer bits, several devices, number formats; the released layout, out and back for any model, and
`mllm convert` as a person types it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

from mllm import checkpoint
from mllm.checkpoint import (
    FREE_SHARE,
    KEPT,
    RELEASED,
    convert_released,
    export_released,
    find_image_tokenizer,
    find_model_folder,
    our_shapes,
    require_room,
    spread,
)
from mllm.cli.main import main
from mllm.config import MLLMConfig, from_released
from mllm.engine.loop import Engine
from mllm.engine.request import GenerationRequest
from mllm.model import MLLMForConditionalGeneration
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from mllm.quantization import GROUP, MOST_PACKED_ROWS, Int4Linear, Int8Linear
from mllm.sampling import SamplingConfig
from mllm.sequence import plain_sequence
from tests.mllm.engine_helpers import build_model
from tests.mllm.golden_mllm import LLAMA_2_7B, write_released
from tests.mllm.tiny_folder import build_tiny_folder, write_text_tokenizer
from tests.train.launching import same, weights
from tokenizer.unitok import UniTok

Run = Callable[..., tuple[int, str, str]]


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
    images = pipeline.draw("a red circle", n=2, seed=1)
    assert isinstance(pipeline.ask(images[0], "What color is it?", max_new_tokens=5), str)
    ids = torch.tensor([[1, 300, 301, 302, 303]])
    with torch.inference_mode():
        ours, theirs = model(ids).logits.float(), plain.model(ids).logits.float()
    error = float((ours - theirs).norm() / theirs.norm())
    assert 0 < error < {"int8": 0.05, "int4": 0.4, "bnb8": 0.1, "nf4": 0.4}[name]


def test_packed_layers_are_the_product_with_the_nearest_weights_of_few_bits() -> None:
    """Against the definition."""
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
    large = 1000 * hidden  # of which sums of whole numbers, unscaled, are beyond float16
    in_half = Int8Linear(linear, torch.device("cpu"))(large.half()).float()
    torch.testing.assert_close(in_half / 1000, linear(large) / 1000, atol=0.02, rtol=0.02)
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
    for options in (
        *({"quantization": wrong} for wrong in ("int3", torch.float16)),
        *({"embedding_context": "wide"}, {"device_map": "balanced"}),
    ):
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
    (tmp_path / "tiny" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="mllm merge"):
        find_model_folder(tmp_path / "tiny")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "final").symlink_to(folder)
    with pytest.raises(FileNotFoundError, match="give run/final"):
        find_model_folder("run")
    (tmp_path / "emoji").symlink_to(folder)
    assert find_model_folder("emoji") == Path("emoji")
    for wrong in (5, b"folder"):
        with pytest.raises(ValueError):
            find_model_folder(wrong)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError):
        find_model_folder("nobody/nothing")


# ---- the released layout ----


def test_the_7b_model_has_the_released_tensors() -> None:
    """Their names are those of the golden model (test_golden.py)."""
    config = MLLMConfig.from_dict(from_released(LLAMA_2_7B))
    ours = our_shapes(MLLMForConditionalGeneration, config)
    assert all(tensor.is_meta for tensor in ours.values())
    theirs = RELEASED.to_theirs(ours, codebook_size=config.codebook_size)
    assert len(theirs) == 372
    assert theirs["model.multi_embedder.attn_projection.attn.qkv.weight"].shape == (3072, 64)
    assert theirs["ar_head.layers.2.mlp.down_proj.weight"].shape == (4096, 11008)
    buffers = sum(tensor.numel() for name, tensor in theirs.items() if name.endswith(("zero_k_bias", "vocab_usage")))
    assert buffers == 33_792 and sum(tensor.numel() for tensor in theirs.values()) - buffers == 7_508_651_264
    assert (config.prompt_style, config.begin_image_id, config.end_image_id) == ("unitok", 3, 4)
    assert (config.num_codebooks, config.codebook_size, config.positions_per_image) == (8, 4096, 256)
    sampling = (config.image_guidance, config.image_temperature, config.image_top_k, config.image_top_p)
    assert sampling == (5.0, 0.9, 2048, 0.96)
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.tasks == ["draw", "ask", "describe", "chat"]


CHOICES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"num_key_value_heads": 1}, {"num_codebooks": 1, "head_layers": 3, "head_num_heads": 2, "image_token_id": 5}),
    ({"tie_word_embeddings": True}, {"num_codebooks": 4, "embedding_context": "current", "prompt_style": "unitok"}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"image_top_k": 3, "image_guidance": 1.0}),
    (
        {"rms_norm_eps": 1e-5, "num_hidden_layers": 1, "head_dim": 6},
        {"image_layout": "grid", "new_line_id": 6, "first_row_size_id": 330, "first_column_size_id": 340}
        | {"max_grid_side": 4, "head_intermediate_size": 19, "image_size": 48},
    ),
)
"""Fields of the text config and of the model's: every choice that the layout can hold."""


def build_case(number: int) -> MLLMForConditionalGeneration:
    text, fields = CHOICES[number]
    sizes = {"vocab_size": 350 + number, "hidden_size": 24, "intermediate_size": 29, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 80}
    codes = {"num_codebooks": 3, "codebook_size": 13, "code_width": 5, "image_size": 32, "head_layers": 1}
    torch.manual_seed(number)
    text_config = LlamaConfig(initializer_range=0.3, **{**sizes, **heads, **text})
    config = MLLMConfig(text_config=text_config, embedder_width=21, embedder_heads=3, **{**codes, **fields})
    model = MLLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in (*model.parameters(), model.code_embedding.codebook_usage):
            value.add_(torch.rand_like(value) * 0.1)
    return model


def greedy_codes(model: MLLMForConditionalGeneration) -> np.ndarray:
    """Codes of an image drawn from a few tokens, guided."""
    prompt, other = (plain_sequence(ids, num_codebooks=model.config.num_codebooks) for ids in ([1, 20, 31, 12], [1, 9]))
    image = SamplingConfig(greedy=True, guidance=3.0)
    request = GenerationRequest(prompt=prompt, unconditional=other, mode="image", image=image)
    return Engine(model).generate([request])[0].images[0].codes_KN


def fields_of(config: MLLMConfig) -> dict[str, Any]:
    """What a config says, without where it came from."""
    fields = json.loads(config.to_json_string(use_diff=False))
    for part in (fields, fields["text_config"]):
        for name in ("architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            part.pop(name, None)
    return fields


def export(model: MLLMForConditionalGeneration, folder: Path) -> Path:
    model.save_pretrained(folder / "ours")
    write_text_tokenizer(folder / "ours" / "tokenizer.model")
    export_released(folder / "ours", folder / "theirs", max_shard_bytes=5000)
    return folder / "theirs"


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_any_model_goes_out_and_back_bit_equal_and_draws_the_same(number: int, tmp_path: Path) -> None:
    dtype = (torch.float32, torch.bfloat16)[number % 2]
    model = build_case(number).to(dtype)
    export(model, tmp_path)
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    convert_released(tmp_path / "theirs", tmp_path / "again", max_shard_bytes=7000)
    codes_KN = greedy_codes(MLLMForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype=dtype))
    for folder in ("theirs", "again"):
        loaded = MLLMForConditionalGeneration.from_pretrained(tmp_path / folder, dtype=dtype)
        assert type(loaded.config) is MLLMConfig
        assert same(loaded.state_dict(), model.state_dict())
        assert fields_of(loaded.config) == fields_of(model.config)
        assert (greedy_codes(loaded) == codes_KN).all()
    convert_released(tmp_path / "theirs", tmp_path / "single", dtype=torch.float16)
    single = MLLMForConditionalGeneration.from_pretrained(tmp_path / "single", dtype="auto")
    assert single.dtype == torch.float16
    assert [path.name for path in (tmp_path / "single").glob("*.safetensors")] == ["model.safetensors"]


def test_what_the_released_layout_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    others = {"head_type": "mlp", "head_shared_output": False, "image_position_embedding": True}
    others["image_source_embedding"] = True
    for name, value in {**others, "code_embedder": "summed"}.items():
        build_model(**{name: value}).save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="layout"):
            export_released(tmp_path / name, tmp_path / "theirs")
        assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("auto_class", "ending", "num_shards"),
    [(AutoModel, "safetensors", 1), (AutoModelForCausalLM, "bin", 1), (AutoModel, "safetensors", 4)],
)
def test_auto_classes_read_the_released_folder(tmp_path: Path, auto_class: type, ending: str, num_shards: int) -> None:
    model = build_case(1)
    exported = export(model, tmp_path)
    theirs = RELEASED.to_theirs(dict(model.state_dict()), codebook_size=model.config.codebook_size)
    del theirs["lm_head.weight"]  # tied
    theirs["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)  # as old programs saved it
    tensors = {name: tensor.contiguous() for name, tensor in theirs.items()}
    fields = json.loads((exported / "config.json").read_text())
    folder = write_released(tmp_path / "folder", tensors, fields, ending=ending, num_shards=num_shards)
    loaded = auto_class.from_pretrained(folder)
    assert type(loaded) is MLLMForConditionalGeneration and type(AutoConfig.from_pretrained(folder)) is MLLMConfig
    assert MLLMProcessor.from_pretrained(exported).preparation == "understanding", "as upstream prepares images"
    assert same(loaded.state_dict(), model.state_dict())
    # nothing hangs on the files any more, and what is saved has our own layout
    for path in folder.glob("*model*"):
        path.write_bytes(b"")
    loaded.save_pretrained(tmp_path / "saved")
    assert same(MLLMForConditionalGeneration.from_pretrained(tmp_path / "saved").state_dict(), model.state_dict())
    options = {"device_map": {"": "cpu"}, "dtype": torch.bfloat16, "embedding_context": "current"}
    changed = auto_class.from_pretrained(exported, **options)
    assert (changed.dtype, changed.config.embedding_context) == (torch.bfloat16, "current")


# ---- `mllm convert` ----


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["convert", *map(str, words)])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    fields = {"prompt_style": "unitok", "tasks": ["draw", "ask", "describe", "chat"]}
    build_tiny_folder(folder, context=400, **fields)
    (folder / "processor_config.json").write_text(json.dumps({"preparation": "understanding"}))
    return folder


@pytest.fixture(scope="module")
def released(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the released layout, the image tokenizer's file beside the model."""
    folder = tmp_path_factory.mktemp("released") / "folder"
    assert main(["convert", "export-unitok-mllm", str(ours), str(folder), "--shard-size", "0.00002"]) == 0
    assert (folder / "unitok_tokenizer.pth").is_file()
    assert (folder / "tokenizer.model").is_file() and not (folder / "image_tokenizer").exists()
    return folder


def images_and_answers(folder: Path) -> list[Any]:
    pipeline = Pipeline.load(folder, device="cpu")
    images = pipeline.draw("a red circle", seed=3)
    looked_at = Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3))
    return [*(np.asarray(image).tolist() for image in images), pipeline.ask(looked_at, "What is it?", seed=1)]


def test_released_folder_and_its_conversion_draw_and_answer_as_the_model_they_come_from(
    ours: Path, released: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released model may be on the hub."""
    monkeypatch.setattr("mllm.checkpoint.fetch_from_hub", lambda name: released)
    code, out, err = run("unitok-mllm", "someone/model", tmp_path / "model", "--shard-size", "0.00003")
    assert (code, err) == (0, "")
    assert "3 codebooks of 17, images of 32 pixels, full attention" in out
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    assert "trained for: draw, ask, describe, chat" in (tmp_path / "model" / "README.md").read_text()
    found = [images_and_answers(folder) for folder in (ours, released, tmp_path / "model")]
    assert found[0] == found[1] == found[2]


def test_image_tokenizer_goes_in_and_out_by_command(ours: Path, released: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("unitok", released / "unitok_tokenizer.pth", tmp_path / "unitok")
    assert code == 0
    assert out == f"{tmp_path}/unitok: 3 codebooks of 17, images of 32 pixels, full attention\n"
    assert same(weights(ours / "image_tokenizer"), weights(tmp_path / "unitok"))
    names = (tmp_path / "unitok", released, released / "unitok_tokenizer.pth")  # a folder, a model, the released file
    found = [find_image_tokenizer(str(name)).quantizer.codebooks for name in names]
    assert found[0].equal(found[1]) and found[0].equal(found[2])
    assert run("export-unitok", tmp_path / "unitok", tmp_path / "back.pth")[0] == 0
    options = ("--dtype", "bfloat16", "--attention", "causal")
    assert run("unitok", tmp_path / "back.pth", tmp_path / "half", *options)[0] == 0
    half = UniTok.from_pretrained(tmp_path / "half")
    assert (half.dtype, half.config.projection_attention) == (torch.bfloat16, "causal")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    code, out, _ = run("probe", tmp_path / "back.pth", "--images", tmp_path / "red.png")
    assert code == 0 and out.splitlines()[3].startswith("undecided"), "weights are random"


def test_types_and_a_separate_image_tokenizer(released: Path, tmp_path: Path, run: Run) -> None:
    copy = Path(shutil.copytree(released, tmp_path / "copy"))
    (copy / "unitok_tokenizer.pth").unlink()
    code, out, _ = run("unitok-mllm", copy, tmp_path / "bare", "--dtype", "bfloat16")
    assert code == 0 and "no image tokenizer" in out
    assert {tensor.dtype for tensor in load_file(tmp_path / "bare" / "model.safetensors").values()} == {torch.bfloat16}
    words = ("unitok-mllm", copy, tmp_path / "full", "--image-tokenizer", released / "unitok_tokenizer.pth")
    assert run(*words)[0] == 0 and (tmp_path / "full" / "image_tokenizer" / "model.safetensors").is_file()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[-1]
    save_file(change(load_file(path)), path)


def swap_codebooks(folder: Path) -> None:
    """Another image tokenizer of the same sizes."""
    path = folder / "unitok_tokenizer.pth"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["trainer"]["unitok"]
    state["quantizer.codebooks.0.codebook.weight"] = -state["quantizer.codebooks.0.codebook.weight"]
    torch.save(checkpoint, path)


def test_damaged_folders_are_refused_in_one_line(released: Path, tmp_path: Path, run: Run) -> None:
    config = json.loads((released / "config.json").read_text())
    damages: list[tuple[Callable[[Path], object], str]] = [
        (lambda folder: rewrite(folder, lambda tensors: dict([*tensors.items()][1:])), "1 missing: "),
        (lambda folder: rewrite(folder, lambda tensors: tensors | {"model.tower": torch.zeros(2)}), "model.tower"),
        (lambda folder: rewrite(folder, lambda tensors: {n: torch.zeros(2, 7) for n in tensors}), "(2, 7)"),
        (lambda folder: sorted(folder.glob("model-*.safetensors"))[1].unlink(), ""),
        (lambda folder: (folder / "config.json").write_text(json.dumps({**config, "model_type": "llava"})), "llava"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "text tokenizer"),
        (swap_codebooks, "codebooks"),
        (lambda folder: (folder / "unitok_tokenizer.pth").write_text("a page that says: log in first"), ""),
    ]
    for number, (damage, named) in enumerate(damages):
        copy = Path(shutil.copytree(released, tmp_path / f"copy-{number}"))
        damage(copy)
        code, out, err = run("unitok-mllm", copy, tmp_path / "out")
        assert code == 2 and out == ""
        assert err.startswith("mllm: ") and len(err.splitlines()) == 1 and named in err, err
        assert not (tmp_path / "out" / "config.json").exists()
        if number < 3:
            with pytest.raises(ValueError):
                Pipeline.load(copy)
    with pytest.raises(ValueError):  # a full disk is noticed before the first byte
        require_room(tmp_path, 10**18)
