"""Numbers that others published, for the tables of a report. Nothing here was measured by this toolkit.

Source of all rows: the tables in the README of UniTok (github.com/FoundationVision/UniTok, September 2025), the code
of Ma et al., "UniTok: A Unified Tokenizer for Visual Generation and Understanding", arXiv 2502.20321. None: not
published there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "README of UniTok (arXiv 2502.20321)"
FLANT5 = "genai-bench-527@vqascore-clip-flant5-xxl"
IMAGENET = 50_000
"""Pictures of its validation set."""


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a table: which result has it."""

    title: str
    benchmark: str  # as in result.json
    score: str | None = None  # name of the score; None: the headline
    digits: int = 1
    scale: float = 1.0  # of our number, to the unit of the published ones
    protocol: str = ""  # how the protocol of a comparable result begins
    items: int | None = None  # of a comparable score


@dataclass(frozen=True, slots=True)
class Row:
    """One published row."""

    method: str
    about: Mapping[str, str]  # columns of words
    numbers: tuple[float | None, ...]  # in the order of the table's columns


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the paper."""

    title: str
    words: tuple[str, ...]  # titles of the columns of words
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


def _understanding(method: str, llm: str, resolution: int, *numbers: float | None) -> Row:
    return Row(method, {"LLM": llm, "Res.": str(resolution)}, numbers)


UNDERSTANDING = Table(
    "Understanding",
    ("LLM", "Res."),
    (
        Column("VQAv2", "vqav2"),
        Column("GQA", "gqa"),
        Column("TextVQA", "textvqa", protocol="textvqa@m4c-ocr-prompt"),
        Column("POPE", "pope"),
        Column("MME", "mme", "perception", digits=0),
        Column("MM-Vet", "mmvet", protocol="mmvet@judge-gpt-4-0613"),
    ),
    (
        _understanding("Show-o", "Phi-1.5-1.3B", 256, 59.3, 48.7, None, 73.8, 948, None),
        _understanding("Liquid", "Gemma-7B", 512, 71.3, 58.4, 42.4, 81.1, 1119, None),
        _understanding("VILA-U", "Llama-2-7B", 256, 75.3, 58.3, 48.3, 83.9, 1336, 27.7),
        _understanding("UniTok", "Llama-2-7B", 256, 76.8, 61.1, 51.6, 83.2, 1448, 33.9),
    ),
    note="VQAv2 was published on test-dev (EvalAI); ours is on the split of the annotations. MME is perception alone.",
)

GENERATION = Table(
    "Generation, GenAI-Bench (527 prompts, advanced)",
    ("Type",),
    (
        Column("Count", "genai-bench-527", "counting", digits=2, protocol=FLANT5),
        Column("Differ", "genai-bench-527", "differentiation", digits=2, protocol=FLANT5),
        Column("Compare", "genai-bench-527", "comparison", digits=2, protocol=FLANT5),
        Column("Negate", "genai-bench-527", "negation", digits=2, protocol=FLANT5),
        Column("Universal", "genai-bench-527", "universal", digits=2, protocol=FLANT5),
        Column("Overall", "genai-bench-527", "advanced", digits=2, protocol=FLANT5),
    ),
    (
        Row("Show-o", {"Type": "discrete diffusion"}, (0.70, 0.62, 0.71, 0.51, 0.65, 0.60)),
        Row("VILA-U", {"Type": "autoregressive"}, (0.70, 0.71, 0.74, 0.53, 0.66, 0.64)),
        Row("Liquid", {"Type": "autoregressive"}, (0.76, 0.73, 0.74, 0.46, 0.74, 0.65)),
        Row("UniTok", {"Type": "autoregressive"}, (0.76, 0.79, 0.74, 0.46, 0.73, 0.67)),
    ),
    note="Published rows were scored by CLIP-FlanT5-XXL.",
)


def _tokenizer(method: str, kind: str, tokens: int, fid: float | None, accuracy: float | None) -> Row:
    return Row(method, {"Kind": kind, "Tokens": str(tokens)}, (fid, accuracy))


TOKENIZERS = Table(
    "Tokenizers, ImageNet 256 x 256",
    ("Kind", "Tokens"),
    (
        Column("rFID", "tokenizer", "rFID", digits=2, items=IMAGENET),
        Column("Accuracy", "tokenizer", "zero-shot top-1", items=IMAGENET),
    ),
    (
        _tokenizer("VQ-GAN", "VQVAE", 256, 4.98, None),
        _tokenizer("RQ-VAE", "VQVAE", 256, 1.30, None),
        _tokenizer("VAR", "VQVAE", 680, 0.90, None),
        _tokenizer("CLIP", "CLIP", 256, None, 76.2),
        _tokenizer("SigLIP", "CLIP", 256, None, 80.5),
        _tokenizer("ViTamin", "CLIP", 256, None, 81.2),
        _tokenizer("TokenFlow (CLIP init)", "unified", 680, 1.37, None),
        _tokenizer("VILA-U (CLIP init)", "unified", 256, 1.80, 73.3),
        _tokenizer("UniTok", "unified", 256, 0.41, 70.8),
        _tokenizer("UniTok (CLIP init)", "unified", 256, 0.38, 78.6),
    ),
    note="CLIP init: the encoder began from weights of a pretrained CLIP.",
)

TABLES = (UNDERSTANDING, GENERATION, TOKENIZERS)
