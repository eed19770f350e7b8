"""The loss against plain loops, its weights, and its sum over parts of a batch."""

import math

import torch
from torch import Tensor

from mllm.model import compute_loss, count_items

NUM_CODEBOOKS, NUM_CODES, VOCABULARY = 3, 5, 7


def random_case(num_text: int, num_positions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_text)
    return (
        torch.randn(num_text, VOCABULARY, generator=generator),
        torch.randint(VOCABULARY, (num_text,), generator=generator),
        torch.randn(num_positions, NUM_CODEBOOKS, NUM_CODES, generator=generator) * 3,
        torch.randint(NUM_CODES, (num_positions, NUM_CODEBOOKS), generator=generator),
    )


def cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[target]


def test_all_parts_equal_plain_loops() -> None:
    text_logits, labels, code_logits, codes = random_case(4, 6)
    text = [cross_entropy(row, label) for row, label in zip(text_logits.tolist(), labels.tolist(), strict=True)]
    image = [
        [cross_entropy(code_logits[p, k].tolist(), codes[p, k].item()) for p in range(6)] for k in range(NUM_CODEBOOKS)
    ]
    z = [max(code_logits[p, k].tolist()) ** 2 for p in range(6) for k in range(NUM_CODEBOOKS)]
    parts = compute_loss(text_logits, labels, code_logits, codes, z_weight=0.01, text_weight=2.5)
    total = (2.5 * sum(text) + sum(map(sum, image)) + 0.01 * sum(z)) / (2.5 * 4 + 18)
    torch.testing.assert_close(parts.total, torch.tensor(total))
    torch.testing.assert_close(parts.text, torch.tensor(sum(text) / 4))
    torch.testing.assert_close(parts.image, torch.tensor(sum(map(sum, image)) / 18))
    torch.testing.assert_close(parts.z, torch.tensor(0.01 * sum(z) / 18))
    torch.testing.assert_close(parts.image_per_codebook_K, torch.tensor([sum(losses) / 6 for losses in image]))
    assert (parts.num_text, parts.num_image) == (4, 18)


def test_without_text_or_images_a_part_is_zero_and_nothing_is_nan() -> None:
    for num_text, num_positions in ((0, 3), (3, 0), (0, 0)):
        parts = compute_loss(*random_case(num_text, num_positions), z_weight=0.1)
        values = torch.stack([parts.total, parts.text, parts.image, parts.z])
        assert values.isfinite().all() and parts.image_per_codebook_K.isfinite().all()
        assert (parts.text == 0) == (num_text == 0) and (parts.image == 0) == (num_positions == 0)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    """Uneven parts, each divided by the items of all, sum to the loss of all: every token counts alike."""
    whole = random_case(9, 7)
    reference = compute_loss(*whole, z_weight=0.1, text_weight=3.0).total
    num_items = 3.0 * 9 + 7 * NUM_CODEBOOKS
    total = torch.zeros(())
    for text, image in ((slice(0, 8), slice(0, 1)), (slice(8, 9), slice(1, 7))):
        part = (whole[0][text], whole[1][text], whole[2][image], whole[3][image])
        total += compute_loss(*part, z_weight=0.1, text_weight=3.0, num_items=num_items).total
    torch.testing.assert_close(total, reference)


def test_items_of_a_batch() -> None:
    labels = torch.tensor([[5, 6, -100, -100], [-100, -100, -100, 2]])  # the first 5 has nothing before it
    count = count_items(labels, torch.tensor([True, False, True]), num_codebooks=3, text_weight=0.5)
    assert count.item() == 2 * 0.5 + 2 * 3
