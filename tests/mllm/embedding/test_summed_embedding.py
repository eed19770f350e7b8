"""Summed code embeddings: the plain sum, step by step = whole images, learned by every code."""

import torch

from mllm.embedding import SummedEmbedding
from tests.mllm.generation.generation_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model


def random_codes(num_positions: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (num_positions, NUM_CODEBOOKS), generator=generator)


def test_a_position_is_the_sum_of_its_codes_vectors() -> None:
    embedding = build_model(code_embedder="summed").code_embedding
    assert isinstance(embedding, SummedEmbedding)
    tables = embedding.codebooks.weight.view(NUM_CODEBOOKS, CODEBOOK_SIZE, -1)
    codes_PK = random_codes(5)
    expected = [sum(tables[k, code] for k, code in enumerate(codes_K)) for codes_K in codes_PK.tolist()]
    torch.testing.assert_close(embedding(codes_PK, torch.tensor([2, 3])), torch.stack(expected))


@torch.no_grad()
def test_steps_equal_whole_images_also_in_rows_at_different_places() -> None:
    embedding = build_model(code_embedder="summed", image_position_embedding=True).code_embedding
    for table in embedding.places.parameters(recurse=False):
        torch.nn.init.normal_(table)
    images = [random_codes(n, seed=n) for n in (5, 3)]
    whole = [embedding(codes_NK, torch.tensor([len(codes_NK)])) for codes_NK in images]
    cache, place = embedding.new_cache(2, 9), [0, 0]
    for rows in ([0, 1], [0], [1, 0], [1], [0], [0]):
        stepped = embedding.step(torch.stack([images[row][place[row]] for row in rows]), cache, rows=torch.tensor(rows))
        for row, embedded in zip(rows, stepped, strict=True):
            torch.testing.assert_close(embedded, whole[row][place[row]])
            place[row] += 1
    assert place == cache.num_seen_R.tolist() == [5, 3]


def test_only_the_vectors_of_the_codes_that_occur_learn() -> None:
    embedding = build_model(code_embedder="summed").code_embedding
    embedding(torch.tensor([[1, 2, 3]]), torch.tensor([1])).sum().backward()
    learned = embedding.codebooks.weight.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert learned == [1, CODEBOOK_SIZE + 2, 2 * CODEBOOK_SIZE + 3]
