"""What says how well a picture shows a text. One interface, three kinds, chosen by a word:

    self              the model that is measured, by its own P("yes"); or another model of this toolkit
    hf:NAME           any image-text model of transformers, by its P("Yes") (mllm/evaluation/generation/hub_scorer.py)
    clip-flant5-xxl   the one of published numbers, in its own environment (mllm/evaluation/generation/t2v_scorer.py)

Knows no benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

T2V_MODELS = ("clip-flant5-xxl", "clip-flant5-xl")
HUB_PREFIX = "hf:"


class ImageTextScorer(Protocol):
    """Scores pairs of a picture and a text."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Name, version and question: what decides the scores, for the result. Has `name`."""
        ...

    @property
    def batch_size(self) -> int:
        """How many pairs it likes at once."""
        ...

    def __call__(self, pictures: Sequence[Path], texts: Sequence[str]) -> list[float]:
        """A score from 0 to 1 for each pair."""
        ...


def find_scorer(name: str, *, model: str | None, device: str | None, python: Path | None) -> ImageTextScorer:
    """The scorer that a person named.

    Args:
        model: folder of the model for "self"; None is the bundled one.
        python: interpreter of the environment that t2v-metrics is installed in.
    """
    if name == "self":
        from mllm.evaluation.generation.self_scorer import SelfScorer

        return SelfScorer.load(model, device=device)
    if name.startswith(HUB_PREFIX):
        from mllm.evaluation.generation.hub_scorer import HubScorer

        return HubScorer.load(name.removeprefix(HUB_PREFIX), device=device)
    if name in T2V_MODELS:
        from mllm.evaluation.generation.t2v_scorer import T2VScorer

        return T2VScorer(name, python=python)
    raise ValueError(f"there is no scorer {name!r}; use self, {HUB_PREFIX}NAME, {' or '.join(T2V_MODELS)}")
