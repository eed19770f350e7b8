"""A tokenizer with small, odd and unequal sizes, so that swapped axes fail."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import small_tokenizer_config
from tokenizer.config import UniTokConfig
from tokenizer.unitok import UniTok


@pytest.fixture
def small_config() -> UniTokConfig:
    deeper = {"stage_depths": (1, 2), "depth": 2, "decoder_depths": (2, 1), "projection_heads": 4, "embed_dim": 9}
    text = {"text_vocab_size": 31, "text_context": 8, "text_width": 12, "text_heads": 2, "text_layers": 2}
    return replace(small_tokenizer_config(), **deeper, **text)


@pytest.fixture
def small_model(small_config: UniTokConfig) -> UniTok:
    """Weights large enough that every part matters."""
    torch.manual_seed(0)
    model = UniTok(small_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pixels_B3HW() -> torch.Tensor:
    """Two images of 2 rows and 3 columns of positions."""
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
