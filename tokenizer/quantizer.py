"""Multi-codebook vector quantizer on the unit sphere (UniTok, arXiv:2502.20321, section 3.2).

Features come in as K slices of E numbers; each slice is replaced by the nearest entry (by cosine) of its own codebook.
Everything here is float32. The last functions share tensors between training processes, with gradients that flow
between them. Knows no images and no optimizer.

Letters: B batch, N positions, M = B * N rows, K codebooks, C entries per codebook, E width of an entry, Z = K * E,
G rows of all processes.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

CPU_TILE = 2**18  # similarities held at a time: 1 MB, stays in cache (2.7 times faster than all at once)
GPU_TILE = 2**26
KMEANS_ITERATIONS = 10
FAST_UPDATES = 100  # the usage average forgets 10 % per update before, 1 % after (upstream)


class Quantized(NamedTuple):
    """What the quantizer returns in training."""

    vectors_BNZ: Tensor  # code vectors; gradients pass straight through to the features
    codes_BKN: Tensor
    vq_loss: Tensor  # commitment and codebook terms, averaged over the codebooks
    entropy_loss: Tensor  # mean entropy of single positions minus entropy of the mean; 0 unless asked for


class MultiCodebookQuantizer(nn.Module):
    """K codebooks of C entries, each on its own slice of the features."""

    usage: Tensor  # running share of the rows that take each entry, (K, C)
    num_updates: Tensor  # how often the running usage was updated

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        code_width: int,
        *,
        beta: float = 0.25,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.entropy_temperature = entropy_temperature
        self.codebooks = nn.Parameter(torch.empty(num_codebooks, codebook_size, code_width))
        self.register_buffer("usage", torch.zeros(num_codebooks, codebook_size))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def unit_entries(self) -> Tensor:
        """The codebooks on the unit sphere, (K, C, E)."""
        return F.normalize(self.codebooks.float(), dim=-1)

    def slice_features(self, features_BNZ: Tensor) -> Tensor:
        """Each codebook's slice of every row, not normalised, (K, M, E)."""
        num_codebooks, _, code_width = self.codebooks.shape
        return features_BNZ.float().reshape(-1, num_codebooks, code_width).transpose(0, 1)

    @torch.no_grad()
    def quantize(self, features_BNZ: Tensor) -> Tensor:
        """Codes (B, K, N) of features (B, N, Z); the first of equally near entries wins."""
        codes_KM = nearest_entries(self.slice_features(features_BNZ), self.unit_entries())
        return codes_KM.unflatten(1, features_BNZ.shape[:2]).transpose(0, 1).contiguous()

    def lookup(self, codes_BKN: Tensor) -> Tensor:
        """Code vectors (B, N, Z): every slice has length 1."""
        codes_KM = codes_BKN.transpose(0, 1).flatten(1).long()
        entries_KME = F.normalize(gather_entries(self.codebooks.float(), codes_KM), dim=-1)  # of no others
        vectors_MZ = entries_KME.transpose(0, 1).flatten(1)
        return vectors_MZ.unflatten(0, (codes_BKN.shape[0], -1))

    def forward(self, features_BNZ: Tensor, *, with_entropy: bool = False) -> Quantized:
        """Quantize with gradients and losses; in training mode the usage statistics are updated."""
        with torch.autocast(features_BNZ.device.type, enabled=False):
            features_KME = F.normalize(self.slice_features(features_BNZ), dim=-1)
            table_KCE = self.unit_entries()
            codes_KM = nearest_entries(features_KME.detach(), table_KCE.detach())
            entries_KME = gather_entries(table_KCE, codes_KM)
            commitment = F.mse_loss(features_KME, entries_KME.detach())
            vq_loss = self.beta * commitment + F.mse_loss(entries_KME, features_KME.detach())
            entropy_loss = self._entropy_loss(features_KME, table_KCE) if with_entropy else vq_loss.new_zeros(())
            straight_through_KME = features_KME + (entries_KME - features_KME).detach()
            if self.training:
                self._update_usage(codes_KM)
        vectors_BNZ = straight_through_KME.transpose(0, 1).reshape(features_BNZ.shape)
        codes_BKN = codes_KM.unflatten(1, features_BNZ.shape[:2]).transpose(0, 1)
        return Quantized(vectors_BNZ, codes_BKN, vq_loss, entropy_loss)

    def _entropy_loss(self, features_KME: Tensor, table_KCE: Tensor) -> Tensor:
        distances_KMC = 2.0 - 2.0 * features_KME @ table_KCE.transpose(1, 2)
        log_p_KMC = F.log_softmax(-distances_KMC / self.entropy_temperature, dim=-1)
        p_KMC = log_p_KMC.exp()
        single = -(p_KMC * log_p_KMC).sum(-1).mean()
        mean_KC = mean_over_ranks(p_KMC.mean(1))
        overall = -(mean_KC * (mean_KC + 1e-7).log()).sum(-1).mean()
        return single - overall

    @torch.no_grad()
    def _update_usage(self, codes_KM: Tensor) -> None:
        """Let the running usage take in the codes of all processes."""
        counts_KC = torch.zeros_like(self.usage, dtype=torch.float32)
        counts_KC.scatter_add_(1, codes_KM, torch.ones_like(codes_KM, dtype=torch.float32))
        if num_ranks() > 1:
            distributed.all_reduce(counts_KC)
        share_KC = counts_KC / counts_KC.sum(-1, keepdim=True)
        keep = torch.where(self.num_updates < FAST_UPDATES, 0.9, 0.99) * (self.num_updates > 0)
        self.usage.copy_(self.usage * keep + share_KC * (1.0 - keep))
        self.num_updates += 1

    @torch.no_grad()
    def initialise_from(self, features_BNZ: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Place the entries on real features by spherical k-means, starting from random rows."""
        features_KME = F.normalize(self.slice_features(features_BNZ), dim=-1)
        table_KCE = pick_rows(features_KME, self.codebooks.shape[1], generator=generator)
        for _ in range(KMEANS_ITERATIONS):
            codes_KM = nearest_entries(features_KME, table_KCE)
            sums_KCE = torch.zeros_like(table_KCE)
            sums_KCE.scatter_add_(1, codes_KM[..., None].expand_as(features_KME), features_KME)
            is_empty_KC1 = sums_KCE.abs().sum(-1, keepdim=True) == 0
            table_KCE = F.normalize(torch.where(is_empty_KC1, table_KCE, sums_KCE), dim=-1)
        self.codebooks.copy_(table_KCE * self._mean_norm())
        self.usage.fill_(1.0 / self.codebooks.shape[1])

    def dead_entries(self, *, threshold: float) -> Tensor:
        """Entries whose running usage is below this share of the mean usage, bool (K, C)."""
        return self.usage < threshold / self.codebooks.shape[1]

    @torch.no_grad()
    def revive(self, features_BNZ: Tensor, *, threshold: float, generator: torch.Generator | None = None) -> int:
        """Move dead entries onto random features of this batch; returns how many."""
        codebook_size, is_dead_KC = self.codebooks.shape[1], self.dead_entries(threshold=threshold)
        features_KME = F.normalize(self.slice_features(features_BNZ), dim=-1)
        fresh_KCE = pick_rows(features_KME, codebook_size, generator=generator) * self._mean_norm()
        self.codebooks.copy_(torch.where(is_dead_KC[..., None], fresh_KCE, self.codebooks))
        self.usage.masked_fill_(is_dead_KC, 1.0 / codebook_size)  # so that they are not dead again at once
        return int(is_dead_KC.sum())

    def _mean_norm(self) -> Tensor:
        """Length of new entries: that of the old ones, so that the optimizer rotates them equally fast."""
        return self.codebooks.norm(dim=-1).mean()


def nearest_entries(features_KME: Tensor, table_KCE: Tensor) -> Tensor:
    """Index of the entry with the largest inner product, (K, M): by cosine, as the entries have length 1."""
    tile = CPU_TILE if features_KME.device.type == "cpu" else GPU_TILE
    rows = max(1, tile // table_KCE.shape[1])
    codes = [
        torch.cat([(rows_ME @ table_CE.T).argmax(-1) for rows_ME in features_ME.split(rows)])
        for features_ME, table_CE in zip(features_KME, table_KCE, strict=True)
    ]
    return torch.stack(codes)


def gather_entries(table_KCE: Tensor, codes_KM: Tensor) -> Tensor:
    """The table's rows at these codes, (K, M, E)."""
    return table_KCE.gather(1, codes_KM[..., None].expand(-1, -1, table_KCE.shape[-1]))


def pick_rows(features_KME: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """`count` random rows, the same for every codebook; each at most once while the supply lasts."""
    num_rows = features_KME.shape[1]
    repeats = -(-count // num_rows)
    order = torch.cat([torch.randperm(num_rows, generator=generator) for _ in range(repeats)])[:count]
    return features_KME[:, order.to(features_KME.device)]


def num_ranks() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if num_ranks() > 1 else 0


def gather_rows(rows_B: Tensor) -> Tensor:
    """The rows of all processes in their order, (G, ...); gradients go back to where the rows came from.
    `DistributedDataParallel` averages gradients over the processes; with that, a loss on gathered rows has the gradient
    of the same loss on one process with the whole batch."""
    return _GatherRows.apply(rows_B) if num_ranks() > 1 else rows_B


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of the processes' values; its gradient goes to all of them."""
    return gather_rows(value[None]).mean(0) if num_ranks() > 1 else value


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_B: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_B, memory_format=torch.contiguous_format) for _ in range(num_ranks())]
        distributed.all_gather(parts, rows_B.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_G: Tensor) -> Tensor:
        gradient_G = gradient_G.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient_G)
        return gradient_G.chunk(num_ranks())[rank()]
