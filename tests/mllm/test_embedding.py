"""Code embedding: step by step = whole images, images do not see each other, no position sees a later one."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mllm.embedding import CodeEmbedding, SummedEmbedding
from tests.mllm.engine_helpers import CODEBOOK_SIZE, NUM_CODEBOOKS, build_model


@pytest.fixture(scope="module")
def embedding() -> CodeEmbedding:
    return build_model().code_embedding


def with_positions(**fields: object) -> CodeEmbedding:
    """As without, and with tables that are not zero."""
    embedding = build_model(image_position_embedding=True, **fields).code_embedding
    embedding.load_state_dict(build_model(**fields).code_embedding.state_dict(), strict=False)
    assert embedding.places is not None
    for table in embedding.places.parameters(recurse=False):
        torch.nn.init.normal_(table)
    return embedding


def random_codes(num_positions: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (num_positions, NUM_CODEBOOKS), generator=generator)


@torch.no_grad()
def test_images_together_equal_each_alone(embedding: CodeEmbedding) -> None:
    for lengths in ([7], [4, 4, 4], [5, 1, 8]):
        codes_PK = random_codes(sum(lengths))
        alone = [embedding(codes, torch.tensor([len(codes)])) for codes in codes_PK.split(lengths)]
        torch.testing.assert_close(embedding(codes_PK, torch.tensor(lengths)), torch.cat(alone))


@pytest.mark.parametrize("fields", [None, {}, {"code_embedder": "summed"}])
@torch.no_grad()
def test_cached_steps_equal_the_full_forward_also_in_rows_at_different_positions(fields: dict[str, str] | None) -> None:
    embedding = build_model().code_embedding if fields is None else with_positions(**fields)
    images = [random_codes(n, seed=n) for n in (7, 4, 6)]
    whole = [embedding(codes_NK, torch.tensor([len(codes_NK)])) for codes_NK in images]
    cache, columns_R = embedding.new_cache(num_rows=3, num_positions=8), torch.full((3,), 3)
    place = [0, 0, 0]
    # some positions are guessed wrong first and written again; a row without a position writes nothing that is seen
    for new in ((1, 1, 1), (2, 0, 3), (2, 1, 0), (0, 2, 2), (2, 0, 0)):
        codes_RWK, index_RW = random_codes(9, seed=50).view(3, 3, -1), torch.full((3, 3), -1)
        for row, count in enumerate(new):
            codes_RWK[row, :count] = images[row][place[row] : place[row] + count]
            index_RW[row] = torch.arange(place[row], place[row] + 3).where(torch.arange(3) <= count, torch.tensor(-1))
        stepped_RWD = embedding.step(codes_RWK, index_RW, columns_R, cache, torch.arange(3))
        for row, count in enumerate(new):
            torch.testing.assert_close(stepped_RWD[row, :count], whole[row][place[row] : place[row] + count])
            place[row] += count
    assert place == [7, 4, 6]


@torch.no_grad()
def test_steps_of_current_context_embed_each_position_alone() -> None:
    embedding, codes_PK = build_model(embedding_context="current").code_embedding, random_codes(6)
    assert embedding.new_cache(num_rows=1, num_positions=6) is None
    (stepped,) = embedding.step(codes_PK[None], torch.arange(6)[None], torch.tensor([3]), None, torch.arange(1))
    torch.testing.assert_close(stepped, embedding(codes_PK, torch.ones(6, dtype=torch.int64)))
    assert (stepped[5] - embedding(codes_PK, torch.tensor([6]))[5]).abs().max() > 1e-4, "trained with all before it"


def test_wrong_lengths_and_codebooks_are_refused(embedding: CodeEmbedding) -> None:
    with pytest.raises(ValueError):
        embedding(random_codes(5), torch.tensor([2, 4]))
    with pytest.raises(ValueError):
        embedding.adopt(SimpleNamespace(quantizer=SimpleNamespace(codebooks=torch.zeros(2, 3, 4))))


@torch.no_grad()
def test_rows_and_columns_are_those_of_each_image() -> None:
    """Beside a loop over rows and columns, whole and step by step, for images of different shapes."""
    embedding = with_positions(layout="grid")
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
    embedding = build_model(code_embedder="summed").code_embedding
    assert isinstance(embedding, SummedEmbedding)
    tables = embedding.codebooks.weight.view(NUM_CODEBOOKS, CODEBOOK_SIZE, -1)
    codes_PK = random_codes(5)
    expected = [sum(tables[k, code] for k, code in enumerate(codes_K)) for codes_K in codes_PK.tolist()]
    torch.testing.assert_close(embedding(codes_PK, torch.tensor([2, 3])), torch.stack(expected))
