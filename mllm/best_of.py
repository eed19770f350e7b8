"""Best of N: draw every picture several times and keep the one with the highest score. Knows no model.

Candidate j of a picture with seed s has seed s + j * STRIDE. So candidate 0 is the picture without best-of, the
candidates for a smaller N are the first of those for a larger N, and neighbouring seeds share none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

STRIDE = 1_000_003
"""Larger than the pictures of any benchmark, and prime, so that seeds stay apart where 32 bits of them count."""

Score = Callable[[Sequence[Image.Image]], list[float]]


def check_best_of(best_of: int) -> None:
    """Refuse what is no number of candidates."""
    if not isinstance(best_of, int) or best_of < 1:
        raise ValueError(f"best_of is no number of candidates: found {best_of!r}; use a whole number, 1 or more")


def candidate_seeds(seed: int, best_of: int) -> list[int]:
    """The seeds of the candidates for one picture."""
    return [seed + index * STRIDE for index in range(best_of)]


def index_of_best(scores: Sequence[float]) -> int:
    """Where the highest score is; of equal ones the first."""
    return max(range(len(scores)), key=scores.__getitem__)


def keep_best(candidates: Sequence[Image.Image], scores: Sequence[float], *, best_of: int) -> list[Image.Image]:
    """One picture of every `best_of` candidates; its `info` holds its score and how many it was chosen from."""
    kept = []
    for start in range(0, len(candidates), best_of):
        index = start + index_of_best(scores[start : start + best_of])
        picture = candidates[index]
        picture.info.update(score=scores[index], best_of=best_of)
        kept.append(picture)
    return kept
