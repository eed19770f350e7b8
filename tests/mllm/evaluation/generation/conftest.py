"""The model of random weights that draws for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mllm.tiny_folder import build_tiny_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for their longest prompts."""
    return build_tiny_folder(tmp_path_factory.mktemp("tiny"), context=400)
