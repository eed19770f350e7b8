"""A small grammar for sentences as people type them, and what happens to a sentence on the way to the keyboard.

In: rules (phrases/people.yaml) and a random generator. Out: text. A rule is a choice of lines; within a line [a|b*3|]
chooses (an empty alternative says nothing), <name> is another rule and {slot} what the caller says there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random

from mllm.world.language import phrases

Slot = str | Callable[[], str]
TOKENS = re.compile(r"[\[\]|]|<[^<>]+>|\{[^{}]+\}|[^\[\]|<>{}]+|[<>{}]")
WEIGHT = re.compile(r"\*([0-9.]+)$")
NEIGHBORS = dict(
    zip(
        "qwertyuiopasdfghjklzxcvbnm",
        "wa qes wrd etf ryg tuh yij uok ipl ol qsz adw sfe dgr fht gjy hku jli ko asx zsc xdv cfb vgn bhm nj".split(),
        strict=False,
    )
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Alternatives, each a sequence of literals, names of rules ("<name>"), slots ("{name}") and choices."""

    alternatives: tuple[tuple[str | Choice, ...], ...]
    weights: tuple[float, ...]


def parse_choice(tokens: list[str]) -> Choice:
    """Read alternatives up to the bracket that closes them, or the end."""
    alternatives: list[list[str | Choice]] = [[]]
    while tokens:
        token = tokens.pop(0)
        if token == "]":
            break
        if token == "|":
            alternatives.append([])
        else:
            alternatives[-1].append(parse_choice(tokens) if token == "[" else token)
    weights = []
    for parts in alternatives:
        found = WEIGHT.search(parts[-1]) if parts and isinstance(parts[-1], str) else None
        weights.append(float(found[1]) if found else 1.0)
        if found:
            parts[-1] = WEIGHT.sub("", parts[-1])
    return Choice(tuple(map(tuple, alternatives)), tuple(weights))


@lru_cache(maxsize=4096)
def alternatives(text: str) -> Choice:
    """A rule that is written out."""
    return parse_choice(TOKENS.findall(text))


@cache
def rule(name: str) -> Choice:
    """A rule of the grammar by its name; each of its lines is an alternative."""
    lines = phrases("people")[name].strip().splitlines()
    return alternatives("|".join(map(str.strip, lines)))


def expand(choice: Choice, rng: Random, slots: Mapping[str, Slot]) -> str:
    """One sentence of it."""
    words = []
    for part in rng.choices(choice.alternatives, choice.weights)[0]:
        if isinstance(part, Choice):
            words.append(expand(part, rng, slots))
        elif part[:1] == "<" and part[-1:] == ">":
            words.append(expand(rule(part[1:-1]), rng, slots))
        elif part[:1] == "{" and part[-1:] == "}":
            said = slots[part[1:-1]]
            words.append(said if isinstance(said, str) else said())
        else:
            words.append(part)
    return "".join(words)


def tidy(text: str) -> str:
    """Spaces and commas in order, "an" before a vowel."""
    text = re.sub(r"[ ]+", " ", text)
    text = re.sub(r" ([,.!?;:])", r"\1", text)
    text = re.sub(r"([,.!?;:])(?:\s*[,;])+", r"\1", text)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text.strip(" ,")


# ---- on the way to the keyboard ----


@dataclass(frozen=True, slots=True)
class Typing:
    """How somebody types."""

    case: str  # "sentence", "lower", "upper"
    marks: bool  # full stops and question marks
    apostrophes: bool
    typos: float  # share of the words that are mistyped
    fillers: float  # how often a sentence begins with one

    @classmethod
    def of(cls, rng: Random) -> Typing:
        case = rng.choices(("sentence", "lower", "upper"), (50, 46, 4))[0]
        careful = case == "sentence"
        return cls(
            case,
            rng.random() < (0.85 if careful else 0.35),
            careful or rng.random() < 0.4,
            rng.choices((0.0, 0.03, 0.1, 0.25), (62, 18, 14, 6))[0],
            rng.choices((0.03, 0.25), (70, 30))[0],
        )

    def __call__(self, text: str, rng: Random, *, asks: bool = False) -> str:
        """The sentence as it is typed."""
        if rng.random() < self.fillers:
            opener = "filler" if rng.random() < 0.6 else "greeting"
            mark = rng.choice((",", ",", "", "!" if opener == "greeting" else ","))
            text = f"{expand(rule(opener), rng, {})}{mark} {text}"
        text = tidy(text)
        if not self.apostrophes:
            text = text.replace("'", "")
        if self.typos:
            text = re.sub(r"[A-Za-z]{3,}", lambda found: self._mistype(found[0], rng), text)
        if rng.random() < 0.03:  # a WORD that matters
            loud = rng.choice(text.split() or [""])
            text = text.replace(loud, loud.upper(), 1)
        if self.case == "upper":
            text = text.upper()
        elif self.case == "sentence":
            text = re.sub(r"(^|[.!?]\s+)([a-z])", lambda found: found[1] + found[2].upper(), text)
            text = re.sub(r"\bi\b(?=['\s])", "I", text)
        if not self.marks and rng.random() < 0.6:
            text = re.sub(r"[,.?!](?=\s|$)", "", text)
        elif text[-1:] not in ".!?":
            text += rng.choice(("?", "?", "??") if asks else (".", ".", ".", "!")) if self.marks else ""
        return text + rng.choice((" :)", " \U0001f60a", " lol", "!!", " \u2764")) if rng.random() < 0.012 else text

    def _mistype(self, word: str, rng: Random) -> str:
        if rng.random() >= self.typos:
            return word
        place = rng.randrange(1, len(word)) if len(word) > 3 else rng.randrange(len(word) - 1)
        kind = rng.choice("swap swap drop double near".split())
        before, letter, after = word[:place], word[place], word[place + 1 :]
        if kind == "swap" and after:
            return before + after[0] + letter + after[1:]
        if kind == "drop" and len(word) > 3:
            return before + after
        if kind == "near" and len(word) > 3:
            return before + rng.choice(NEIGHBORS.get(letter, letter)) + after
        return before + letter + letter + after


def listed(parts: Sequence[str], rng: Random) -> str:
    """Several things in a row."""
    if len(parts) == 1:
        return parts[0]
    style = rng.choices(("and", "oxford", "ands", "plus", "commas", "bullets", "numbers"), (55, 8, 14, 5, 9, 5, 2))[0]
    match style:
        case "and":
            return f"{', '.join(parts[:-1])} and {parts[-1]}"
        case "oxford":
            return f"{', '.join(parts[:-1])}, and {parts[-1]}"
        case "ands":
            return " and ".join(parts)
        case "plus":
            return rng.choice((" + ", " & ", " plus ", ", and also ", " together with ")).join(parts)
        case "commas":
            return rng.choice((", ", ", ", ". ", "; ", " ")).join(parts)
        case "bullets":
            return "\n" + "\n".join(f"{rng.choice(('-', '-', '*'))} {part}" for part in parts)
        case _:
            return " ".join(f"{number}{mark} {part}" for number, part in enumerate(parts, 1) for mark in ")")
