"""Code embedding: images do not see each other, no position sees a later one; steps are in test_engine.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model


def random_codes(num_positions: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (num_positions, NUM_CODEBOOKS), generator=generator)


@pytest.mark.parametrize("context", ["prefix", "bidirectional"])
@torch.no_grad()
def test_images_together_equal_each_alone(context: str) -> None:
    embedding = build_model(embedding_context=context).code_embedding
    for lengths in ([7], [4, 4, 4], [5, 1, 8]):
        codes_PK = random_codes(sum(lengths))
        alone = [embedding(codes, torch.tensor([len(codes)])) for codes in codes_PK.split(lengths)]
        torch.testing.assert_close(embedding(codes_PK, torch.tensor(lengths)), torch.cat(alone))
    changed_PK = codes_PK.clone()
    changed_PK[3] = (changed_PK[3] + 1) % CODEBOOK_SIZE  # of the first image
    difference_PD = embedding(changed_PK, torch.tensor(lengths)) - embedding(codes_PK, torch.tensor(lengths))
    first_seen = 0 if context == "bidirectional" else 3
    assert difference_PD.abs().amax(dim=1).gt(1e-5).nonzero().flatten().tolist() == list(range(first_seen, 5))


@torch.no_grad()
def test_rows_and_columns_are_those_of_each_image() -> None:
    """Beside a loop over rows and columns, whole and step by step, for images of different shapes."""
    embedding = build_model(layout="grid", image_position_embedding=True).code_embedding
    for table in embedding.places.parameters(recurse=False):
        torch.nn.init.normal_(table)  # they are zero
    shapes = [(2, 5), (3, 3), (5, 1)]
    images = [random_codes(rows * columns, seed=columns) for rows, columns in shapes]
    lengths_I = torch.tensor([len(codes_NK) for codes_NK in images])
    columns = [columns for _, columns in shapes]
    codes_PK = torch.cat(images)
    found_PD = embedding(codes_PK, lengths_I, columns_I=torch.tensor(columns))

    places = embedding.places
    content_PD = places.norm(embedding.embed_images(codes_PK, lengths_I))
    where = [(r, c, r + (c == columns - 1)) for rows, columns in shapes for r in range(rows) for c in range(columns)]
    added = [places.row[r] + places.column[c] + places.next_row[after] for r, c, after in where]
    torch.testing.assert_close(found_PD, content_PD + torch.stack(added))

    for image, width, expected_ND in zip(images, columns, found_PD.split(lengths_I.tolist()), strict=True):
        cache, index_1N = embedding.new_cache(num_rows=1, num_positions=10), torch.arange(len(image))[None]
        (stepped_ND,) = embedding.step(image[None], index_1N, torch.tensor([width]), cache, torch.arange(1))
        torch.testing.assert_close(stepped_ND, expected_ND)


def test_a_position_is_the_sum_of_its_codes_vectors() -> None:
    embedding, codes_PK = build_model(code_embedder="summed").code_embedding, random_codes(5)
    tables = embedding.codebooks.weight.view(NUM_CODEBOOKS, CODEBOOK_SIZE, -1)
    expected = [sum(tables[k, code] for k, code in enumerate(codes_K)) for codes_K in codes_PK.tolist()]
    torch.testing.assert_close(embedding(codes_PK, torch.tensor([2, 3])), torch.stack(expected))
    embedding = build_model().code_embedding
    with pytest.raises(ValueError):
        embedding(codes_PK, torch.tensor([2, 4]))
    with pytest.raises(ValueError):
        embedding.adopt(SimpleNamespace(quantizer=SimpleNamespace(codebooks=torch.zeros(2, 3, 4))))
