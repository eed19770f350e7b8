"""Builds the embedding of image codes that a config asks for; the one place that knows all of them.

The interface is in mllm/embedding/code_embedding.py.
"""

from mllm.config import MLLMConfig
from mllm.embedding.code_embedding import CodeEmbedding
from mllm.embedding.projected import ProjectedEmbedding
from mllm.embedding.summed import SummedEmbedding


def build_embedding(config: MLLMConfig) -> CodeEmbedding:
    """The embedding of `config.code_embedder`."""
    match config.code_embedder:
        case "projected":
            return ProjectedEmbedding(config)
        case "summed":
            return SummedEmbedding(config)
        case _:
            raise ValueError(f"unknown code_embedder: found {config.code_embedder!r}; use projected or summed")
