"""A saved folder is ready to publish: its card, and what a program without this package is told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub import ModelCard

from mllm.checkpoint import BUNDLED
from mllm.config import AUTO_MAP, SHIM, MLLMConfig
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor
from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), tasks=["draw", "ask"], image_guidance=2.5)


def test_a_saved_model_has_a_card_that_says_what_its_config_says(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "any-to-any")
    for fact in ("draw, ask", "32x32", "3 codes of 17 choices", "image_guidance | 2.5", "image_top_k | off"):
        assert fact in card.text
    assert "## Scores" not in card.text, "those of a bundled model are in test_bundle.py"


def test_a_model_is_pushed_with_its_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the hub is not the real one: nothing leaves this machine."""
    hub = Mock()
    hub.create_repo.return_value.repo_id = "someone/tiny"
    for module in ("transformers.utils.hub", "mllm.model"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: hub)
    MLLMForConditionalGeneration.from_pretrained(folder).push_to_hub("someone/tiny")
    sent, card = hub.create_commit.call_args.kwargs["operations"], hub.upload_file.call_args.kwargs
    assert {"config.json", "model.safetensors"} <= {each.path_in_repo for each in sent}
    assert (card["path_in_repo"], card["path_or_fileobj"]) == ("README.md", (folder / "README.md").read_bytes())


LOADING = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

folder, alone, root = sys.argv[1:]
sys.modules["mllm"] = None  # as if it were not installed
for kind in (AutoConfig, AutoModel, AutoProcessor):
    try:
        kind.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        assert str(error).startswith("mllm-toolkit must be installed"), error
    else:
        raise AssertionError("it cannot be loaded without the package")
    try:
        kind.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
del sys.modules["mllm"]
sys.path.insert(0, root)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__module__ == "mllm.config"
assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)) is type(model)
for place in (folder, alone):
    processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
    assert AutoTokenizer.from_pretrained(place, trust_remote_code=True).get_vocab() == processor.tokenizer.get_vocab()
    print(model(**processor(text="a red circle", return_tensors="pt")).logits.shape[-1], flush=True)
model.save_pretrained(alone + "-again")
processor.save_pretrained(alone + "-again")
"""


@pytest.mark.slow
def test_a_folder_loads_in_a_program_that_never_imported_us(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    processor = MLLMProcessor.from_pretrained(folder)
    processor.save_pretrained(alone)
    assert MLLMProcessor.from_pretrained(alone).config.to_dict() == processor.config.to_dict()
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOADING, str(folder), str(alone), str(root)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "HF_MODULES_CACHE": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [word for word in done.stdout.split() if word.isdigit()] == [str(processor.config.vocab_size)] * 2
    again = {path.name for path in (tmp_path / "alone-again").iterdir()}
    assert f"{SHIM}.py" in again and len([name for name in again if name.endswith(".py")]) == 1


def test_the_bundled_folder_has_what_a_saved_one_has(tmp_path: Path) -> None:
    config = MLLMConfig.from_pretrained(BUNDLED)
    assert json.loads((BUNDLED / "config.json").read_text())["auto_map"] == AUTO_MAP
    config.save_pretrained(tmp_path)
    MLLMProcessor.from_pretrained(BUNDLED).save_pretrained(tmp_path)
    for name in ("processor_config.json", "chat_template.jinja", f"{SHIM}.py"):
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes()
