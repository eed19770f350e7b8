"""The words that MM-Vet's judge is asked with (Yu et al. 2023), and how its answer is read. Pure functions of strings.

The few-shot prompt is the published one to the letter: another wording gives other scores.
"""

from __future__ import annotations

_MEME = "Can you explain this meme?"
_MEME_TRUTH = (
    "This meme is poking fun at the fact that the names of the countries Iceland and Greenland are misleading. Despite "
    "its name, Iceland is known for its beautiful green landscapes, while Greenland is mostly covered in ice and snow. "
    "The meme is saying that the person has trust issues because the names of these countries do not accurately "
    "represent their landscapes."
)
_SHORT_ANSWER = (
    "The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is not very icy "
    "and Greenland isn't very green."
)
_LONG_ANSWER = (
    "The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. Iceland, despite "
    "its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text 'This is why I "
    "have trust issues' is a playful way to suggest that these contradictions can lead to distrust or confusion. The "
    "humor in this meme is derived from the unexpected contrast between the names of the countries and their actual "
    "physical characteristics."
)
_EQUATION = "What is x in the equation?"
_EXAMPLES = (
    (_EQUATION, "-1 <AND> -5", "x = 3", "0.0"),
    (_EQUATION, "-1 <AND> -5", "x = -1", "0.5"),
    (_EQUATION, "-1 <AND> -5", "x = -5", "0.5"),
    (_EQUATION, "-1 <AND> -5", "x = -5 or 5", "0.5"),
    (_EQUATION, "-1 <AND> -5", "x = -1 or x = -5", "1.0"),
    (_MEME, _MEME_TRUTH, _SHORT_ANSWER, "0.4"),
    (_MEME, _MEME_TRUTH, _LONG_ANSWER, "1.0"),
)
_TASK = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in "
    "the ground truth means it is totally right only when all elements in the ground truth are present in the "
    "prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score."
)
FEW_SHOT = "\n".join(
    (
        _TASK,
        "",
        "Question | Ground truth | Prediction | Correctness",
        "--- | --- | --- | ---",
        *(" | ".join(example) for example in _EXAMPLES),
        "",
    )
)
ASK_AGAIN = "\nPredict the correctness of the answer (digit): "
"""Added where the first answer was no number."""


def judge_question(question: str, truth: str, prediction: str, *, again: bool = False) -> str:
    """What the judge is asked about one prediction."""
    spaced = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return FEW_SHOT + "\n" + " | ".join((question, spaced, prediction, "")) + (ASK_AGAIN if again else "")


def read_grade(content: str) -> float | None:
    """The first word as a score from 0 to 1; None where it is none."""
    try:
        grade = float(content.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None
