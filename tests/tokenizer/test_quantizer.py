"""The quantizer against plain loops; its gradients; its care for dead entries."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer import quantizer as quantizer_module
from tokenizer.quantizer import MultiCodebookQuantizer, nearest_entries


@pytest.fixture
def quantizer() -> MultiCodebookQuantizer:
    torch.manual_seed(0)
    quantizer = MultiCodebookQuantizer(3, 11, 5)
    torch.nn.init.normal_(quantizer.codebooks)
    return quantizer


@pytest.fixture
def features_BNZ() -> Tensor:
    return torch.randn(2, 7, 15, generator=torch.Generator().manual_seed(1))


def codes_by_loop(quantizer: MultiCodebookQuantizer, features_BNZ: Tensor) -> Tensor:
    codes_BKN = torch.empty(2, 3, 7, dtype=torch.int64)
    for b in range(2):
        for k in range(3):
            for n in range(7):
                feature_E = features_BNZ[b, n, 5 * k : 5 * k + 5]
                codes_BKN[b, k, n] = F.cosine_similarity(feature_E[None], quantizer.codebooks[k]).argmax()
    return codes_BKN


def test_codes_are_the_nearest_entries_by_cosine_and_looked_up_as_unit_vectors(
    quantizer: MultiCodebookQuantizer, features_BNZ: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes_BKN = quantizer.quantize(features_BNZ)
    assert torch.equal(codes_BKN, codes_by_loop(quantizer, features_BNZ))
    vectors_BNZ = quantizer.lookup(codes_BKN.to(torch.int32))
    for b, k, n in [(0, 0, 0), (1, 2, 6), (0, 1, 4)]:
        expected_E = F.normalize(quantizer.codebooks[k, codes_BKN[b, k, n]], dim=0)
        torch.testing.assert_close(vectors_BNZ[b, n, 5 * k : 5 * k + 5], expected_E)
    assert torch.equal(quantizer.quantize(vectors_BNZ), codes_BKN)
    trained = quantizer(features_BNZ)
    assert torch.equal(trained.codes_BKN, codes_BKN)
    torch.testing.assert_close(trained.vectors_BNZ, vectors_BNZ)
    monkeypatch.setattr(quantizer_module, "CPU_TILE", 40)  # three rows at a time
    assert torch.equal(quantizer.quantize(features_BNZ), codes_BKN)
    table_KCE = torch.ones(1, 4, 2)  # the first of equal entries
    assert nearest_entries(torch.ones(1, 3, 2), table_KCE).tolist() == [[0, 0, 0]]


def test_losses_are_means_and_gradients_pass_through(quantizer: MultiCodebookQuantizer, features_BNZ: Tensor) -> None:
    quantizer.entropy_temperature = 0.7
    features_BNZ.requires_grad_()
    quantized = quantizer(features_BNZ, with_entropy=True)
    slices_BNKE = F.normalize(features_BNZ.unflatten(-1, (3, 5)), dim=-1)
    losses, entropies, is_used_KC = [], [], torch.zeros(3, 11, dtype=torch.bool)
    for k in range(3):
        entry_CE, codes_BN = F.normalize(quantizer.codebooks[k], dim=-1), quantized.codes_BKN[:, k]
        losses.append(1.25 * (slices_BNKE[:, :, k] - entry_CE[codes_BN]).square().mean())
        p = (-torch.cdist(slices_BNKE[:, :, k].reshape(-1, 5), entry_CE).square() / 0.7).softmax(-1)
        entropies.append(-(p * p.log()).sum(-1).mean() + (p.mean(0) * p.mean(0).log()).sum())
        is_used_KC[k, codes_BN.flatten()] = True
    torch.testing.assert_close(quantized.vq_loss, torch.stack(losses).mean())
    torch.testing.assert_close(quantized.entropy_loss, torch.stack(entropies).mean(), atol=1e-5, rtol=1e-4)
    assert quantizer(features_BNZ).entropy_loss == 0
    weights_BNZ = torch.randn(2, 7, 15)
    through, codebooks = torch.autograd.grad(
        (quantizer(features_BNZ).vectors_BNZ * weights_BNZ).sum(),
        (features_BNZ, quantizer.codebooks),
        allow_unused=True,
    )
    (expected,) = torch.autograd.grad((slices_BNKE.flatten(2) * weights_BNZ).sum(), features_BNZ, retain_graph=True)
    torch.testing.assert_close(through, expected)
    assert codebooks is None  # only the loss moves the codebooks, and of them the entries that were used
    quantized.vq_loss.backward()
    assert torch.equal(quantizer.codebooks.grad.abs().sum(-1) > 0, is_used_KC)


def test_running_usage_copies_first_and_forgets_slowly_later(quantizer: MultiCodebookQuantizer) -> None:
    first, second = torch.randn(1, 9, 15), torch.randn(1, 4, 15)
    quantizer.eval()(first)
    assert quantizer.num_updates == 0 and not quantizer.usage.any()
    quantizer.train()
    shares = []
    for features_BNZ in (first, second):
        codes_KM = quantizer.quantize(features_BNZ)[0]
        shares.append(torch.stack([torch.bincount(codes_M, minlength=11) / codes_M.numel() for codes_M in codes_KM]))
        quantizer(features_BNZ)
    torch.testing.assert_close(quantizer.usage, 0.9 * shares[0] + 0.1 * shares[1])
    quantizer.num_updates.fill_(quantizer_module.FAST_UPDATES)
    before = quantizer.usage.clone()
    quantizer(second)
    torch.testing.assert_close(quantizer.usage, 0.99 * before + 0.01 * shares[1])


def test_revival_moves_dead_entries_only(quantizer: MultiCodebookQuantizer, features_BNZ: Tensor) -> None:
    quantizer.usage.fill_(1 / 11)
    quantizer.usage[0, 3] = quantizer.usage[2, 10] = 0.0
    before = quantizer.codebooks.detach().clone()
    assert quantizer.revive(features_BNZ, threshold=0.1) == 2
    moved_KC = (quantizer.codebooks != before).any(-1)
    assert moved_KC.nonzero().tolist() == [[0, 3], [2, 10]]
    rows = F.normalize(features_BNZ[..., :5].reshape(-1, 5), dim=-1)
    assert (F.normalize(quantizer.codebooks[0, 3], dim=0) @ rows.T).max() > 1 - 1e-5
    assert quantizer.codebooks[0, 3].norm().item() == pytest.approx(before.norm(dim=-1).mean().item(), rel=1e-4)
    assert quantizer.revive(features_BNZ, threshold=0.1) == 0


def test_codebooks_start_on_the_data() -> None:
    torch.manual_seed(0)
    centers_KCE = F.normalize(torch.randn(2, 4, 5), dim=-1)
    picks_KM = torch.randint(0, 4, (2, 300))
    slices = torch.stack([centers_KCE[k, picks_KM[k]] for k in range(2)], dim=1) + 0.01 * torch.randn(300, 2, 5)
    features_BNZ = slices.flatten(1).unflatten(0, (3, 100))
    quantizer = MultiCodebookQuantizer(2, 40, 5)
    torch.nn.init.uniform_(quantizer.codebooks, -0.01, 0.01)
    quantizer.initialise_from(features_BNZ)
    assert quantizer.eval()(features_BNZ).vq_loss < 1e-3
    assert quantizer.codebooks.norm(dim=-1).max() < 0.03  # the length of the first entries is kept
