"""How a model of emoji is asked, and what a checkpoint of emoji names as its planner (mllm/pipeline.py).

A thing that was learned in one style can be drawn in another by way of the first: drawn in that, and then restyled.
`EmojiPlanner` finds the thing and the style in a request, and says what to ask about a drawing of it and what to ask
for in its place. The sentences are some of those that scripts/emoji/records.py trains on. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mllm.config import MLLMConfig

DRAW = "Draw {name}, {style} style."
NAME, STYLE, IS_IT = "What is this?", "Which style is this?", "Is this {name}?"
RESTYLE, TONE, GENDER = "Draw it in {style} style.", "Make the skin {tone}.", "Make it a {gender}."

ASKS = re.compile(
    r"^((hi|hello|hey|please|pls|now|then|and|ok|okay|so|just|can you|could you|would you|will you|i would like"
    r"|i'd like|i want|i need|let me see|to|draw|show|sketch|paint|create|generate|render|me|us|another picture of"
    r"|an? (picture|drawing|image|emoji|icon) of)\b[ ,]*)+"
)
"""Words before the thing that is asked for."""
ARTICLE = re.compile(r"^(an?|the|some) ")
OTHER = re.compile(
    r"\b(it|its|this|that|these|those|them|same|instead|again|another|one|skin|tone|emoji|something|style|picture|image)\b"
)
"""Words that refer to an image, or ask for a thing that they do not name: of these nothing is checked."""
LONGEST_NAME = 120  # characters; nothing is called by more
SKIN_TONE = re.compile(r" with \S+ skin tone\b")
ASKED_TONE = re.compile(r"\b(medium[- ]light|medium[- ]dark|light|medium|dark|yellow|without|no)\b")
GENDERS = re.compile(r"\b(man|woman|person)\b")
AS_ANOTHER = re.compile(r"\b(it|instead|same|as|but)\b")
FILLERS = re.compile(
    r"\b(please|now|draw|make|show|do|redo|turn|change|it|this|that|the|same|in|to|into|but|version|thing)\b|\W"
)
"""Words beside a style where nothing but the style is asked for."""


class NamedThing(NamedTuple):
    """What a request asks to draw."""

    phrase: str  # as it was said, perhaps with an article
    style: str

    @property
    def name(self) -> str:
        return ARTICLE.sub("", self.phrase)


class EmojiPlanner:
    """The `Planner` of models of emoji; without styles in the config nothing is checked."""

    name = "emoji"
    sure, unsure, known, unknown, certain = 0.5, 0.1, 0.001, 1e-4, 0.3
    """Of things that it was trained to draw about 80 % score more than the second, and all more than the fourth."""
    temperature = 0.4
    describes = (NAME, STYLE)

    def __init__(self, config: MLLMConfig) -> None:
        self.styles = config.styles or []

    def draft(self, prompt: str) -> str:
        return ""  # it writes no plans

    def can_check(self, plan: str) -> bool:
        return False

    def agrees(self, plan: str, description: str | None) -> bool:
        return True

    def declines(self, words: str) -> bool:
        return True  # whatever it says, it does not draw

    def read(self, prompt: str) -> NamedThing | None:
        """The thing and the style that a prompt names; None where it does not ask for a drawing of one thing."""
        words, named = self._find_style(prompt)
        words = re.sub(r",? please$", "", words, flags=re.IGNORECASE)
        phrase = words[asked.end() :] if (asked := ASKS.match(words.lower())) else words
        is_name = phrase.strip() and len(phrase) <= LONGEST_NAME and not OTHER.search(SKIN_TONE.sub("", phrase.lower()))
        if not self.styles or not is_name:
            return None
        return NamedThing(phrase, named or self.styles[0])

    def _find_style(self, prompt: str) -> tuple[str, str | None]:
        """The prompt without the style that it names, and that."""
        words, named = " ".join(prompt.split()).strip(" .!?"), None
        for style in self.styles:
            said = rf"(^|,? )(in )?(the |an? )?{re.escape(style)}( style)?(?=$|,| please)"
            shortened = re.sub(said, "", words, flags=re.IGNORECASE)
            if shortened != words:
                words, named = shortened, named or style
        return words, named

    def questions(self, prompt: str) -> Sequence[tuple[str, str]]:
        """The name and the style; of a prompt that says these in no known way, whether the image is that."""
        found = self.read(prompt)
        return [(NAME, found.name), (STYLE, found.style)] if found else [(IS_IT.format(name=prompt.strip(" .")), "yes")]

    def detours(self, prompt: str) -> Sequence[tuple[str, str]]:
        found = self.read(prompt)
        if found is None:
            return []
        others = [style for style in self.styles if style != found.style]
        change = RESTYLE.format(style=found.style)
        return [(DRAW.format(name=found.phrase, style=style), change) for style in others]

    def changed(self, words: str, seen: Sequence[str]) -> Sequence[str]:
        name, style = seen
        rest, asked_style = self._find_style(words)
        rest = rest.lower()
        found, tone = GENDERS.search(rest), ASKED_TONE.search(rest)
        (said_tone,) = SKIN_TONE.findall(name)[:1] or [""]
        base = SKIN_TONE.sub("", name)
        if asked_style and not FILLERS.sub("", rest):
            names, style = [name], asked_style
        elif "skin" in rest and tone:
            plain = tone[0] in ("yellow", "without", "no")
            names = [base if plain else f"{base} with {tone[0].replace(' ', '-')} skin tone"]
        elif found and AS_ANOTHER.search(rest):
            names = [GENDERS.sub(found[0], base) if GENDERS.search(base) else f"{found[0]} {base}"]
            if found[0] == "person" and " " in base:
                names.append(" ".join(GENDERS.sub("", base).split()))
            names = [f"{each}{said_tone}" for each in names]
        else:
            return []
        return [DRAW.format(name=each, style=style) for each in names]
