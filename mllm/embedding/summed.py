"""The embedding of a position as the sum of one learned vector for each of its K codes.

The input side of class-conditional models in the LlamaGen manner (UniTok, arXiv:2502.20321, section 4.2). Positions do
not see each other here, so decoding needs no cache and equals the full forward by construction.

Letters: P image positions, R decoding rows, I images, K codebooks, C codes per codebook, D language model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.embedding.code_embedding import CodeEmbedding, EmbeddingCache
from tokenizer.model import UniTok


class SummedEmbedding(CodeEmbedding):
    """K learned tables of C vectors; the tables lie below each other in one."""

    def __init__(self, config: MLLMConfig) -> None:
        super().__init__(config)
        self.shape = (config.num_codebooks, config.codebook_size)
        self.codebooks = nn.Embedding(config.num_codebooks * config.codebook_size, config.hidden_size)

    def embed_images(self, codes_PK: Tensor, image_lengths_I: Tensor, *, isolated: bool) -> Tensor:
        return self.sum_vectors(codes_PK)

    def embed_next(self, codes_RK: Tensor, cache: EmbeddingCache, rows: Tensor) -> Tensor:
        return self.sum_vectors(codes_RK)

    def sum_vectors(self, codes_PK: Tensor) -> Tensor:
        """(P, D)."""
        num_codebooks, num_codes = self.shape
        offsets_K = torch.arange(num_codebooks, device=codes_PK.device) * num_codes
        return self.codebooks(codes_PK + offsets_K).sum(dim=1)

    def adopt(self, image_tokenizer: UniTok) -> None:
        """Nothing: all vectors are learned here."""
