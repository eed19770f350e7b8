"""Model folders that many tests share: one of random weights, and the released MLLM in small with its golden weights,
as a person has it: the released folder, and what `mllm convert` makes of it."""

from pathlib import Path

import pytest

from mllm.cli.main import main
from mllm.pipeline import Pipeline
from mllm.processor import MLLMProcessor
from tests.mllm.golden_mllm import GOLDEN_FIELDS, golden_weights, write_released
from tests.mllm.tiny_folder import build_tiny_folder, write_text_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights; nothing may be written into it."""
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), context=400)


@pytest.fixture(scope="session")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="session")
def processor(folder: Path) -> MLLMProcessor:
    return MLLMProcessor.from_pretrained(folder)


@pytest.fixture(scope="session")
def golden_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the way that the weights came: "released", or "converted" with the command."""
    folder = tmp_path_factory.mktemp("golden_mllm")
    released = write_released(folder / "released", golden_weights(), GOLDEN_FIELDS, ending="bin", num_shards=3)
    write_text_tokenizer(released / "tokenizer.model")
    words = ["convert", "unitok-mllm", str(released), str(folder / "converted"), "--shard-size", "0.03"]
    assert main(words) == 0
    return {"released": released, "converted": folder / "converted"}


@pytest.fixture(scope="session", params=["released", "converted"])
def golden_folder(golden_folders: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return golden_folders[request.param]
