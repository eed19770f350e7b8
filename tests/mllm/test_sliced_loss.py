"""The loss in slices: the same numbers and gradients as from all logits at once, and never more logits than allowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.model import FLOAT32, LossParts, SlicedHeads, compute_loss

D, V, K, C = 6, 11, 3, 5
NUM_PLACES = 29
TEXT_CONFIG = {"model_type": "llama", "hidden_size": D, "vocab_size": V, "num_attention_heads": 2}


class Head(nn.Module):
    """Logits (R, K, C) that depend on the codes, as a depth transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(D, K * C), nn.Embedding(C, K * C)

    def forward(self, hidden_RD: Tensor, codes_RK: Tensor) -> Tensor:
        return (self.linear(hidden_RD) + self.embedding(codes_RK[:, 0])).unflatten(-1, (K, C))


@pytest.fixture
def config() -> MLLMConfig:
    sizes = {"num_codebooks": K, "codebook_size": C, "z_loss_weight": 0.1, "text_loss_weight": 2.0}
    return MLLMConfig(text_config=TEXT_CONFIG, **sizes)


@pytest.fixture
def heads() -> tuple[nn.Linear, Head]:
    torch.manual_seed(0)
    return nn.Linear(D, V, bias=False), Head()


def inputs(num_text: int, num_learned: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(num_text)
    hidden_LD, hidden_MD = torch.randn(num_text, D), torch.randn(num_learned, D)
    return (
        hidden_LD.requires_grad_(),
        torch.randint(V, (num_text,)),
        hidden_MD.requires_grad_(),
        torch.randint(C, (num_learned, K)),
    )


def gradients(parts: LossParts, *tensors: Tensor) -> list[Tensor]:
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(tensors, torch.autograd.grad(parts.total, tensors, allow_unused=True), strict=True)
    ]


@pytest.mark.parametrize("max_bytes", [1, 4 * V * 3, 4 * K * C * 4, 10**6])
@pytest.mark.parametrize(("num_text", "num_learned"), [(17, 8), (0, 9), (7, 0)])
def test_slices_give_the_loss_and_gradients_of_all_logits_at_once(
    config: MLLMConfig, heads: tuple[nn.Linear, Head], max_bytes: int, num_text: int, num_learned: int
) -> None:
    lm_head, code_head = heads
    hidden_LD, labels_L, hidden_MD, codes_MK = inputs(num_text, num_learned)
    learned = (hidden_LD, hidden_MD, *lm_head.parameters(), *code_head.parameters())
    sliced = SlicedHeads(lm_head, code_head, NUM_PLACES, max_bytes).loss(
        hidden_LD, labels_L, hidden_MD, codes_MK, config, 31.0
    )
    whole = compute_loss(
        lm_head(hidden_LD),
        labels_L,
        code_head(hidden_MD, codes_MK),
        codes_MK,
        z_weight=config.z_loss_weight,
        text_weight=config.text_loss_weight,
        num_items=31.0,
    )
    for name in ("total", "text", "image", "z", "image_per_codebook_K"):
        torch.testing.assert_close(getattr(sliced, name), getattr(whole, name))
    assert (sliced.num_text, sliced.num_image) == (whole.num_text, whole.num_image) == (num_text, num_learned * K)
    for one, other in zip(gradients(sliced, *learned), gradients(whole, *learned), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rows", [1, 4, 13])
def test_logits_never_take_more_than_allowed_and_heads_run_as_often_on_every_process(
    config: MLLMConfig, heads: tuple[nn.Linear, Head], rows: int
) -> None:
    calls: list[int] = []
    for head in heads:
        head.register_forward_hook(lambda module, inputs, logits: calls.append(logits.numel() * FLOAT32))
    max_bytes = rows * K * C * FLOAT32
    numbers = set()
    for num_text, num_learned in ((NUM_PLACES, 0), (1, NUM_PLACES - 1), (0, 0), (11, 12)):  # of four processes
        calls.clear()
        parts = SlicedHeads(*heads, NUM_PLACES, max_bytes).loss(*inputs(num_text, num_learned), config, None)
        parts.total.backward()
        assert max(calls) <= max_bytes
        numbers.add(len(calls))
    assert len(numbers) == 1
