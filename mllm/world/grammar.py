"""A small grammar for sentences as people type them, and somebody who words and types what is meant.

In: rules (phrases/people.yaml) and a random generator. Out: text. A rule is a choice of lines; within a line [a|b*3|]
chooses (an empty alternative says nothing), <name> is another rule and {slot} what the caller says there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from operator import attrgetter
from random import Random
from typing import NamedTuple, TypeVar

from mllm.world.language import NUMBER_WORDS, UnsayableError, join, need, phrases, pick
from mllm.world.scene import SIDES, Scene, SceneObject, is_clear, main_relation, offset, stated_places
from mllm.world.spec import Filter

TOKENS = re.compile(r"[\[\]|]|<[^<>]+>|\{[^{}]+\}|[^\[\]|<{]+")
WEIGHT = re.compile(r"\*([0-9.]+)$")
LETTERS = "qwertyuiopasdfghjklzxcvbnm"
NEAR = "wa qes wrd etf ryg tuh yij uok ipl ol qsz adw sfe dgr fht gjy hku jli ko asx zsc xdv cfb vgn bhm nj".split()
SOUNDS = [
    (re.compile(sound), letters)
    for pair in r"""ph=f ck=k c(?=[aou])=k ee=ea ea=ee ie=ei le\b=el ([a-z])\1=\1 qu=k or=er er\b=a ow\b=o ou=u igh=i
    e\b= ar=a ur=er oo=u s\b=z (?<=[a-z])h= i=e x=cks c(?=[ei])=s th=t a(?=[rn])=o v=w gh=g u=oo y\b=ie""".split()
    for sound, _, letters in [pair.rpartition("=")]
]
"""Spellings of words by their sound: what is replaced, and by which letters."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = (*NUMBER_WORDS, "five", "six", "seven", "eight", "nine", "ten")
ARTICLE = re.compile(r"\b(?:a|an|the) (?=\w)")
PHRASE = re.compile(r"(?<= )(?:a|an|one|two|three|four|and|on|with|in|the|to the) ")
ASKING = re.compile("(can|could|would|will|may|is|are|do|does|did|what|which|how|where|who|have|any)\\b")
MARKS = (",", "comma"), (".", "period", "full stop", "dot"), ("?", "question mark"), ("!", "exclamation mark")
MARKS_SAID = {mark: said for mark, *said in (*MARKS, (":", "colon"))}
"""What a machine writes down of punctuation that is dictated."""
MARK = re.compile(r"[,.?!:](?=\s|$)")
T = TypeVar("T")


class Choice(NamedTuple):
    """Alternatives, each a sequence of literals, names of rules ("<name>"), slots ("{name}") and choices."""

    alternatives: list[list[str | Choice]]
    bounds: list[float]  # sums of their weights up to each


def alternatives(text: str) -> Choice:
    """A rule that is written out."""
    return _read_choice(iter(TOKENS.findall(text)))


def _read_choice(tokens: Iterator[str]) -> Choice:
    """Alternatives up to the bracket that closes them, or the end."""
    found: list[list[str | Choice]] = [[]]
    for token in tokens:
        if token == "]":
            break
        if token == "|":
            found.append([])
        else:
            found[-1].append(_read_choice(tokens) if token == "[" else token)
    weights = []
    for parts in found:
        last = parts[-1] if parts and isinstance(parts[-1], str) else ""
        weight = WEIGHT.search(last)
        weights.append(float(weight[1]) if weight else 1.0)
        if weight:
            parts[-1] = last[: weight.start()]
    return Choice(found, list(accumulate(weights)))


@cache
def rule(name: str) -> Choice:
    r"""A rule of the grammar by its name; each of its lines is an alternative, and "\n" within it begins a new line."""
    rules = phrases("asides") if name in phrases("asides") else phrases("people")
    return alternatives("|".join(map(str.strip, rules[name].strip().splitlines())).replace(r"\n", "\n"))


def expand(choice: Choice, rng: Random, slots: Mapping[str, str]) -> str:
    """One sentence of it."""
    words = []
    for part in rng.choices(choice.alternatives, cum_weights=choice.bounds)[0]:
        if isinstance(part, Choice):
            words.append(expand(part, rng, slots))
        elif part.startswith("<"):
            words.append(expand(rule(part[1:-1]), rng, slots))
        else:
            words.append(slots[part[1:-1]] if part.startswith("{") else part)
    return "".join(words)


def tidy(text: str) -> str:
    """Spaces, commas and conjunctions in order, "an" before a vowel."""
    text = re.sub(r"[ ]+", " ", text)
    text = re.sub(r" ([,.!?;:])", r"\1", text)
    text = re.sub(r"([,.!?;:])(?:\s*[,;])+", r"\1", text)
    text = re.sub(r",([.!?;:])", r"\1", text)
    text = re.sub(r"\b(and|but) (?:and|but)\b", r"\1", text)
    text = re.sub(r"([!?])\.(?=\s|$)", r"\1", text)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text.strip(" ,")


@dataclass(frozen=True, slots=True)
class Typing:
    """How somebody types."""

    case: str  # "sentence", "lower", "upper"
    marks: bool  # full stops and question marks
    apostrophes: bool
    typos: float  # share of the words that are mistyped
    fillers: float  # how often a sentence begins with one
    articles: float = 0.0  # share of the articles that are left out
    pauses: float = 0.0  # share of the phrases before which there is an "um"
    says_marks: bool = False  # "red circle comma blue square period"

    @classmethod
    def of(cls, rng: Random) -> Typing:
        case = pick({"sentence": 50, "lower": 46, "upper": 4}, rng)
        careful = case == "sentence"
        return cls(
            case,
            marks=rng.random() < (0.85 if careful else 0.35),
            apostrophes=careful or rng.random() < 0.4,
            typos=pick({0.0: 62, 0.03: 18, 0.1: 14, 0.25: 6}, rng),
            fillers=pick({0.03: 70, 0.25: 30}, rng),
            articles=pick({0.0: 90, 0.4: 5, 1.0: 5}, rng),
            pauses=pick({0.0: 94, 0.15: 4, 0.4: 2}, rng),
            says_marks=rng.random() < 0.02,
        )

    def __call__(self, text: str, rng: Random) -> str:
        """The sentence as it is typed."""
        asks = ASKING.match(re.split("[.?!:] ", text)[-1]) is not None
        if rng.random() < self.fillers:
            text = expand(rule("opening"), rng, {"x": text})
        text = tidy(text)
        if self.articles:
            text = ARTICLE.sub(lambda found: "" if rng.random() < self.articles else found[0], text)
        if self.pauses:
            text = PHRASE.sub(lambda found: self._pause(rng) + found[0], text)
            text += expand(rule("spoken end"), rng, {}) if rng.random() < self.pauses else ""
        if not self.apostrophes:
            text = text.replace("'", "")
        if self.typos:
            text = re.sub(r"[A-Za-z]{3,}", lambda found: self._mistype(found[0], rng), text)
            if rng.random() < 0.05 and (spaces := [found.start() for found in re.finditer(" ", text)]):
                place = rng.choice(spaces)  # two words become one
                text = text[:place] + text[place + 1 :]
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
        elif self.marks and text[-1:] not in ".!?":
            text += rng.choice(("?", "?", "??") if asks else (".", ".", ".", "!"))
        if self.says_marks:
            text = text.replace("\n", " new line ")
            text = MARK.sub(lambda found: f" {rng.choice(MARKS_SAID[found[0]])}", text)
        return text + rng.choice((" :)", " \U0001f60a", " lol", "!!", " \u2764")) if rng.random() < 0.012 else text

    def _pause(self, rng: Random) -> str:
        return expand(rule("pause"), rng, {}) + " " if rng.random() < self.pauses else ""

    def _mistype(self, word: str, rng: Random) -> str:
        if rng.random() >= self.typos:
            return word
        kind = rng.choice(("swap", "swap", "drop", "double", "near", "sound", "sound"))
        sounds = [each for each in SOUNDS if each[0].search(word)] if kind == "sound" else ()
        if sounds:
            sound, spelled = rng.choice(sounds)
            return sound.sub(spelled, word, count=1)
        is_first = len(word) == 3 or rng.random() < 0.1
        place = rng.randrange(len(word) - 1) if is_first else rng.randrange(1, len(word))
        before, letter, after = word[:place], word[place], word[place + 1 :]
        if kind == "swap" and after:
            return before + after[0] + letter + after[1:]
        if kind == "drop" and len(word) > 3:
            return before + after
        if kind == "near" and len(word) > 3:
            return before + rng.choice(NEAR[LETTERS.index(letter)] if letter in LETTERS else letter) + after
        return before + letter + letter + after


class Speaker:
    """Somebody who words what is meant, in a way of their own."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.typing = rng, Typing.of(rng)
        is_foreign = self.typing.articles > 0
        self.puts_nouns_first = self.maybe(0.4 if is_foreign else 0.015)  # "circle red small"
        self.drops_plurals = self.maybe(0.3 if is_foreign else 0.01)  # "two circle"
        self.is_wordy = self.maybe(0.36)
        self.instead: Mapping[str, str] = {}  # words that are said instead of those of rules, to ask for what is not
        self.exceeds = False  # asks for more objects than an image can have

    def say(self, name: str, **slots: str) -> str:
        """A rule of the grammar; what it is at length, where there is such a rule and the person is wordy."""
        if self.is_wordy and f"{name} at length" in phrases("people") and self.maybe(0.75):
            name = f"{name} at length"
        return self.instead.get(name) or expand(rule(name), self.rng, slots)

    def briefly(self) -> Speaker:
        """The same person, who comes to the point."""
        other = copy(self)
        other.is_wordy = False
        return other

    def asking_beyond(self, instead: Mapping[str, str] | None = None, *, exceeds: bool = False) -> Speaker:
        """The same person, asking for what cannot be drawn: in some words, or in the number of objects."""
        other = copy(self)
        other.instead, other.exceeds = instead or {}, exceeds
        return other

    def how_many(self, numbers: Sequence[int]) -> int:
        """How many objects are asked for; more than there can be, where that is what is meant."""
        return self.rng.choice((5, 5, 5, 6, 6, 7, 8) if self.exceeds else numbers)

    def type(self, text: str) -> str:
        return self.typing(text, self.rng)

    def pick(self, weights: Mapping[T, float]) -> T:
        return pick(weights, self.rng)

    def attempt(self, forms: Mapping[Callable[..., T], float], *about: object) -> T:
        """What one of the forms makes of something; another one, where it raises UnsayableError."""
        while True:
            with suppress(UnsayableError):
                return self.pick(forms)(self, *about)

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share

    def noun(self, item: Filter, *, plural: bool = False, long: bool = False) -> str:
        """ "small red circle" and what else it may be called; a long one may have something behind the noun."""
        shape = self.say(item.shape or "shape")
        if plural:
            shape += "es" if shape.endswith(("s", "x")) else "s"
        size, color = (self.say(name) if name else "" for name in (item.size, item.color))
        verb = "are" if plural else "is"
        if item.not_color:
            return f"{shape} that {verb} not {item.not_color}"
        if self.puts_nouns_first and (color or size) and self.maybe(0.85):
            return tidy(f"{shape} {color} {size}" if self.maybe(0.5) else f"{shape} {size} {color}")
        name = f"{'long ' * long}noun{' size' * bool(size)}{' color' * bool(color)}"
        behind = self.say(f"size {item.size}") if item.size else ""
        return self.say(name, n=shape, s=size, c=color, z=behind, verb=verb)

    def number(self, count: int, *, plain: bool = False) -> str:
        if count == 2 and not plain and self.maybe(0.08):
            return self.rng.choice(("a pair of", "a couple of"))
        return NUMBERS[count] if self.maybe(0.6) else str(count)

    def some(self, item: Filter, count: int = 1, *, long: bool = False) -> str:
        """With an article or a number."""
        if count == 1:
            return tidy(f"{self.say('article')} {self.noun(item, long=long)}")
        if self.maybe(0.04):
            return f"{count}{self.rng.choice(('x', ' x', ' times'))} {self.noun(item)}"
        is_plural = not self.drops_plurals or self.maybe(0.3)
        return f"{self.number(count)} {self.noun(item, plural=is_plural, long=long)}"

    def refer(self, scene: Scene, item: SceneObject, *, without: str | None = None) -> str:
        """ "the small circle", "the one on the left": words that single out one object, `without` giving an attribute
        away; UnsayableError where there are none."""
        others = [other for other in scene.objects if other is not item]
        choices: dict[str, float] = {}
        for attributes, weight in phrases("people")["weights"]["references"].items():
            names = attributes.split()
            named = Filter.of(item, names)
            if without not in names and named.find_one(scene):
                is_one = "shape" not in names and self.maybe(0.6)
                one = " ".join(self.say(getattr(item, name)) for name in names) + " one"
                is_long = "color" in names and not is_one and self.maybe(0.12)
                noun = self.noun(replace(named, color=None) if is_long else named)
                noun = self.say("of a color", n=noun, c=self.say(item.color)) if is_long else noun
                choices[one if is_one else noun] = weight
        if others and without != "size" and all(other.size != item.size for other in others):
            choices[self.say(f"most {item.size}")] = 2
        kind = self.say(item.shape) if without != "shape" and self.maybe(0.4) else "one"
        for relation, side in SIDES.items():
            if others and all(offset(relation, item, other) > 0.15 for other in others):
                choices[self.say(f"at the very {side}", kind=kind)] = 1.2
        corner = next((place for place in CORNERS if place in stated_places(item)), None)
        if corner and not any(corner in stated_places(other) for other in others):
            choices[self.say(f"in the corner {corner}", kind=kind)] = 1.2
        if place := between_edges(scene, item):
            choices[self.say(place, kind=kind)] = 1.5
        for other in others if without is None else ():
            nearest = main_relation(item, other)
            if nearest and Filter(other.shape).find_one(scene):
                if sum(is_clear(nearest, each, other) for each in scene.objects) == 1:
                    choices[f"one {self.say(nearest)} the {self.say(other.shape)}"] = 0.3
        return f"the {self.pick(need(choices))}"

    def listed(self, parts: Sequence[str]) -> str:
        """Several things in a row."""
        if len(parts) == 1:
            return parts[0]
        style = self.pick({"and": 55, "oxford": 8, "ands": 14, "plus": 5, "commas": 9, "bullets": 5, "numbers": 2})
        match style:
            case "bullets":
                return "\n" + "\n".join(f"{self.rng.choice(('-', '-', '*'))} {part}" for part in parts)
            case "numbers":
                return " ".join(f"{number}) {part}" for number, part in enumerate(parts, 1))
            case "and" | "oxford":
                return join(parts, " and " if style == "and" else ", and ")
            case _:
                return self.say(f"mark of {style}").join(parts)


def between_edges(scene: Scene, item: SceneObject) -> str | None:
    """The rule that says an object is the middle one, or the second from a side; None where it is neither."""
    inner = {}
    for axis, side in (("x", "left"), ("y", "top")):
        ordered = sorted(scene.objects, key=attrgetter(axis))
        if len(ordered) > 2 and all(getattr(b, axis) - getattr(a, axis) > 0.12 for a, b in pairwise(ordered)):
            inner[side] = ordered[1:-1]
    sides = [side for side, items in inner.items() if item in items]
    if len(scene.objects) == 3:
        return "the middle" if sides and len({*map(tuple, inner.values())}) == 1 else None
    return f"number {inner[sides[0]].index(item) + 2} from {sides[0]}" if sides else None
