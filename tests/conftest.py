"""What tests of several packages share: no network, and a whole model folder with random weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenizer.config import UniTokConfig

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may ask the hub
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process of tests; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def random_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as the pipeline loads it, very small, 48 x 48 pixels, with random weights."""
    from tests.mllm.tiny_folder import build_tiny_folder

    return build_tiny_folder(tmp_path_factory.mktemp("random_model"), image_size=48)


def small_tokenizer_config() -> UniTokConfig:
    from tokenizer.config import UniTokConfig

    encoder = {"stem_width": 6, "stage_widths": (10, 14), "stage_depths": (1, 1), "conv_expansion": 2}
    decoder = {"decoder_depth": 1, "decoder_widths": (14, 6), "decoder_depths": (1, 1), "decoder_expansion": 2}
    blocks = {"width": 24, "depth": 1, "num_heads": 3, "drop_path": 0.0}
    codes = {"num_codebooks": 3, "codebook_size": 11, "code_width": 5, "projection_heads": 3, "embed_dim": 0}
    return UniTokConfig(image_size=48, **encoder, **decoder, **blocks, **codes)
