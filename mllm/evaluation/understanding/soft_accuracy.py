"""Accuracy of an answer against ten people's answers, each person left out once (Antol et al. 2015).

In: answers that are already in one form. Out: 0 to 1. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

NUM_PEOPLE = 10
ENOUGH = 3  # as many people must agree for a full score


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """Mean over the people of min(1, how many of the others said the same / 3)."""
    same = [said == answer for said in people]
    shares = [min(1.0, (sum(same) - is_same) / ENOUGH) for is_same in same]
    return sum(shares) / len(shares)


def check_people(answers: Sequence[object], where: str) -> list[str]:
    """The ten answers of a question; another number has no defined score."""
    said = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    texts = [answer for answer in said if isinstance(answer, str)]
    if len(texts) != NUM_PEOPLE or len(said) != NUM_PEOPLE:
        raise ValueError(
            f"{where} needs {NUM_PEOPLE} human answers: found {len(texts)}; give the published annotations"
        )
    return texts
