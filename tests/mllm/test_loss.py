"""The loss against plain loops, its weights, its sum over parts of a batch, and in slices."""

import math

import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.model import LOGIT_BYTES, LossParts, compute_loss, count_items

D, V, K, C = 6, 11, 3, 5
TEXT_CONFIG = {"model_type": "llama", "hidden_size": D, "vocab_size": V, "num_attention_heads": 2}
SIZES = {"num_codebooks": K, "codebook_size": C}
CONFIG = MLLMConfig(text_config=TEXT_CONFIG, z_loss_weight=0.1, text_loss_weight=2.5, **SIZES)


class Head(nn.Module):
    """Logits (R, K, C) that depend on the codes, as a depth transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(D, K * C), nn.Embedding(C, K * C)

    def forward(self, hidden_RD: Tensor, codes_RK: Tensor) -> Tensor:
        return (self.linear(hidden_RD) + self.embedding(codes_RK[:, 0])).unflatten(-1, (K, C))


def heads() -> tuple[nn.Linear, Head]:
    torch.manual_seed(0)
    return nn.Linear(D, V, bias=False), Head()


def inputs(num_text: int, num_learned: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(num_text)
    text = torch.randn(num_text, D).requires_grad_(), torch.randint(V, (num_text,))
    return text, (torch.randn(num_learned, D).requires_grad_(), torch.randint(C, (num_learned, K)))


def cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[target]


def test_all_parts_equal_plain_loops() -> None:
    (lm_head, code_head), (text, image) = heads(), inputs(4, 6)
    text_logits, code_logits = lm_head(text[0]).tolist(), code_head(*image).tolist()
    of_text = [cross_entropy(row, label) for row, label in zip(text_logits, text[1].tolist(), strict=True)]
    of_image = [[cross_entropy(code_logits[p][k], image[1][p, k].item()) for p in range(6)] for k in range(K)]
    z = [max(code_logits[p][k]) ** 2 for p in range(6) for k in range(K)]
    parts = compute_loss(lm_head, code_head, text, image, config=CONFIG)
    total = (2.5 * sum(of_text) + sum(map(sum, of_image)) + 0.1 * sum(z)) / (2.5 * 4 + 18)
    for found, expected in (
        (parts.total, total),
        (parts.text, sum(of_text) / 4),
        (parts.image, sum(map(sum, of_image)) / 18),
        (parts.z, 0.1 * sum(z) / 18),
        (parts.image_per_codebook_K, [sum(losses) / 6 for losses in of_image]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected))
    assert (parts.num_text, parts.num_image) == (4, 18)


def test_without_text_or_images_a_part_is_zero_and_nothing_is_nan() -> None:
    for num_text, num_positions in ((0, 3), (3, 0), (0, 0)):
        for code_head in (heads()[1], None) if num_positions == 0 else (heads()[1],):
            parts = compute_loss(heads()[0], code_head, *inputs(num_text, num_positions), config=CONFIG)
            values = torch.stack([parts.total, parts.text, parts.image, parts.z])
            assert values.isfinite().all() and parts.image_per_codebook_K.isfinite().all()
            assert (parts.text == 0) == (num_text == 0) and (parts.image == 0) == (num_positions == 0)


def test_items_of_a_batch() -> None:
    labels = torch.tensor([[5, 6, -100, -100], [-100, -100, -100, 2]])  # the first 5 has nothing before it
    count = count_items(labels, torch.tensor([True, False, True]), num_codebooks=3, text_weight=0.5)
    assert count.item() == 2 * 0.5 + 2 * 3


def gradients(parts: LossParts, *tensors: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(parts.total, tensors, allow_unused=True)
    return [torch.zeros_like(t) if gradient is None else gradient for t, gradient in zip(tensors, found, strict=True)]


def test_slices_give_the_loss_and_gradients_of_one() -> None:
    for num_text, num_learned in ((17, 8), (0, 9), (7, 0)):
        (lm_head, code_head), (text, image) = heads(), inputs(num_text, num_learned)
        learned = (text[0], image[0], *lm_head.parameters(), *code_head.parameters())
        for max_bytes in (1, 4 * V * 3, 4 * K * C * 4, 10**6):
            whole = compute_loss(lm_head, code_head, text, image, config=CONFIG, num_items=31.0)
            options = {"num_items": 31.0, "num_rows": 29, "max_bytes": max_bytes}
            sliced = compute_loss(lm_head, code_head, text, image, config=CONFIG, **options)
            for name in ("total", "text", "image", "z", "image_per_codebook_K", "num_text", "num_image"):
                torch.testing.assert_close(getattr(sliced, name), getattr(whole, name))
            torch.testing.assert_close(gradients(sliced, *learned), gradients(whole, *learned))


def test_logits_never_take_more_than_allowed_and_heads_run_as_often_on_every_process() -> None:
    calls: list[int] = []
    lm_head, code_head = heads()
    for head in (lm_head, code_head):
        head.register_forward_hook(lambda module, inputs, logits: calls.append(logits.numel() * LOGIT_BYTES))
    for rows in (1, 4, 13):
        max_bytes, numbers = rows * K * C * LOGIT_BYTES, set()
        for num_text, num_learned in ((29, 0), (1, 28), (0, 0), (11, 12)):  # of four processes
            calls.clear()
            options = {"num_rows": 29, "max_bytes": max_bytes}
            parts = compute_loss(lm_head, code_head, *inputs(num_text, num_learned), config=CONFIG, **options)
            parts.total.backward()
            assert max(calls) <= max_bytes
            numbers.add(len(calls))
        assert len(numbers) == 1
