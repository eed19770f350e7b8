"""Emoji as chat messages: every job of the model, from the images that may be trained on.

In: cells with their splits. Out: records by job, for `mllm prepare`. Only the split "train" is shown, drawn and named;
things of the split "unknown" are asked for and shown so that the answer is "I don't know". Nothing else is mentioned.
Every record is a function of its cell. Renders nothing and reads no files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from itertools import combinations, product
from random import Random
from typing import NamedTuple

from scripts.emoji.sources import TONES, Cell, Emoji
from scripts.emoji.splits import PAIRS_AND_FAMILIES


class Augmented(NamedTuple):
    """The image of a cell, or of two of a style, after one of the augmentations (`augment` in build.py)."""

    cell: Cell
    augmentation: int
    beside: Cell | None = None

    @property
    def path(self) -> str:
        second = f"+{self.beside.emoji.slug}" if self.beside else ""
        return f"augmented/{self.augmentation:02}/{self.cell.path.removesuffix('.png')}{second}.png"


Item = str | Cell | Augmented
"""Of a message: a text or an image."""
Turn = tuple[list[Item], list[Item]]
"""A question and its answer."""

SEED = 0
DRAWINGS_PER_CELL = 4
DIALOGUES_PER_CELL = 4
TALKS_PER_CELL = 2
MAX_IMAGES_OF_TALK = 5
SHOWN_IN_TALKS = 0.35
"""Of the things that a conversation turns to, how many the user shows and does not ask for."""
AUGMENTED_CHANGES_PER_CELL, MIXED_CHANGES_PER_CELL = 8, 4
AUGMENTED_DIALOGUES_PER_CELL = 1
LIT, TRUE_COLORS, OTHER_COLORS = range(64), range(64, 128), range(128, 192)
"""Numbers of augmentations: shifted and lit, shifted and perhaps mirrored, the same with colors exchanged."""
MIXED, MIXED_COLORS = range(192, 320), range(320, 448)
"""Parts of two images, each turned, scaled and shifted; the same with colors exchanged."""
QUESTIONS_PER_DIALOGUE = 4
KEYWORD_COMBINATIONS = 40
"""Combinations of keywords that are tried for one that names a single emoji."""

DRAW = ("Draw {}.", "{}", "Please draw {}.", "Can you draw {}?", "Show me {}.", "I would like {}.", "A picture of {}.")
IN_STYLE = ("{}, {} style", "{} in {} style", "{}, {}", "{} in the {} style")
KEYWORDS = ("something with {}", "{}", "an emoji for {}", "something about {}")
NAME = ("What is this?", "What do you see?", "What does the picture show?", "Name this.", "What is it called?")
WHICH_STYLE = ("Which style is this?", "In which style is it drawn?", "What style is it?")
WHICH_GROUP = ("Which group does it belong to?", "What kind of thing is it?", "Which category is this?")
BOTH = ("What is this, and in which style?", "Name the thing and the style.")
IS_IT = ("Is this {}?", "Is it {}?", "Does the picture show {}?")
IS_STYLE = ("Is this {} style?", "Is it drawn in {} style?")
ODD = ("Which one is the odd one out?", "One of these does not belong to the others. Which one?")
PLACES = ("first", "second", "third", "fourth")
RESTYLE = (
    "Draw it in {} style.",
    "In {} style, please.",
    "The same in {} style.",
    "Now {} style.",
    "Make it {} style.",
)
TONE = ("Make the skin {}.", "With {} skin tone.", "Change the skin tone to {}.", "{} skin, please.")
NO_TONE = ("Make the skin yellow.", "Without a skin tone.", "Back to the yellow skin.")
GENDER = ("Make it a {}.", "A {} instead.", "Now as a {}.", "The same, but a {}.")
HELLO = (("Hello!", "Hello! What should I draw?"), ("Hi", "Hi! Ask me to draw something."), ("Good morning!",) * 2)
THANKS = (("Thank you!", "You are welcome."), ("Thanks", "My pleasure."), ("Great!", "I am glad that you like it."))
BYE = (("Goodbye!", "Goodbye!"), ("See you", "See you!"))
ABOUT = (
    ("What can you do?", "I draw emoji in several styles ({styles}), and I say what a picture shows."),
    ("What can you draw?", "Emoji: faces, people, animals, food, places, things, symbols and flags."),
    ("Which styles do you know?", "I know {styles}."),
    ("Who are you?", "I am a small model that draws and names emoji."),
    ("Who drew what you learned from?", "The authors of Noto Emoji, Twemoji and Fluent Emoji."),
)
CANNOT_DRAW = ("I don't know how to draw {}.", "I don't know {}.", "I have not learned to draw {}.")
CANNOT_NAME = ("I don't know what this is. It belongs to {}.", "I don't know its name. It is one of {}.")


def make_records(cells: list[Cell], *, other_names: list[str]) -> dict[str, Iterator[dict]]:
    """The records of every job; `other_names` are asked for and refused, where no style has an image of them."""
    writer = RecordWriter(cells, other_names=other_names)
    makers: dict[str, Callable[[], Iterator[list[Turn]]]] = {
        "draw": lambda: writer.drawings(toned=False),
        "draw_tones": lambda: writer.drawings(toned=True),
        "name": writer.questions,
        "odd_one_out": writer.odd_ones,
        "restyle": lambda: writer.changes("restyle", writer._restyling),
        "tone": lambda: writer.changes("tone", writer._tone),
        "gender": lambda: writer.changes("gender", writer._gender),
        "talk": writer.talks,
        "unknown": writer.unknowns,
    }
    return {job: map(as_record, make()) for job, make in makers.items()}


def as_record(turns: list[Turn]) -> dict:
    """Chat messages; images by their paths below the folder of images."""

    def content(item: Item) -> dict:
        return {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "path": item.path}

    said = (part for turn in turns for part in zip(("user", "assistant"), turn, strict=True))
    return {"messages": [{"role": role, "content": list(map(content, items))} for role, items in said]}


def with_article(name: str) -> str:
    """ "a red apple", "the flag of Chad", "clapping hands"."""
    if name.startswith(("flag of", "Statue of")):
        return f"the {name}"
    head = name.split(" with ")[0]
    if (head.endswith("s") and not head.endswith(("ss", "us"))) or head[0].isdigit() or head.startswith("keycap"):
        return name
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def group_name(emoji: Emoji) -> str:
    return emoji.group.replace("-", " and ")


class RecordWriter:
    """Makes dialogues about the cells that are trained on; a generator for every job and cell."""

    def __init__(self, cells: list[Cell], *, other_names: list[str]) -> None:
        self.training = [cell for cell in cells if cell.split == "train"]
        self.unknown = [cell for cell in cells if cell.split == "unknown"]
        self.styles = list(dict.fromkeys(cell.style for cell in cells))
        self.of_image = {(cell.emoji.slug, cell.style): cell for cell in self.training}
        self.of_label: dict[tuple[str, str], list[Cell]] = defaultdict(list)
        self.of_thing: dict[tuple[str, str, str | None, bool], list[Cell]] = defaultdict(list)
        self.of_group: dict[tuple[str, str], list[Cell]] = defaultdict(list)
        self.in_subgroup: dict[str, list[str]] = defaultdict(list)
        for cell in self.training:
            emoji = cell.emoji
            self.of_label[emoji.label, cell.style].append(cell)
            if not emoji.label.startswith(PAIRS_AND_FAMILIES):
                self.of_thing[emoji.thing, cell.style, emoji.tone, faces_right(emoji)].append(cell)
            if emoji.tone is None:
                self.of_group[emoji.group, cell.style].append(cell)
                self.in_subgroup[emoji.subgroup].append(emoji.plain_name)
        self.names = sorted({name for names in self.in_subgroup.values() for name in names})
        # of all cells, so that keywords name one emoji even beside those that are held out
        self.labels = {cell.emoji.label for cell in cells}
        self.labels_of_keyword: dict[str, set[str]] = defaultdict(set)
        for cell in cells:
            for keyword in cell.emoji.keywords:
                self.labels_of_keyword[keyword].add(cell.emoji.label)
        self.other_names = [name for name in other_names if not self.knows(name)]
        self.unknown_names = [*(cell.emoji.name for cell in self.unknown), *self.other_names]

    def knows(self, name: str) -> bool:
        """Whether an emoji, held out or not, is called so or has this keyword."""
        return name in self.labels or name in self.labels_of_keyword

    def rng(self, job: str, cell: Cell) -> Random:
        return Random(f"{job}/{SEED}/{cell.path}")

    def drawings(self, *, toned: bool) -> Iterator[list[Turn]]:
        """An image of what is asked for; those with a skin tone apart, as they are many and much alike."""
        for cell in self.training:
            if (cell.emoji.tone is not None) != toned:
                continue
            rng = self.rng("draw", cell)
            for number in range(DRAWINGS_PER_CELL):
                yield [self._drawing(cell, rng, by_keywords=number == DRAWINGS_PER_CELL - 1)]

    def _drawing(self, cell: Cell, rng: Random, *, by_keywords: bool = False) -> Turn:
        keywords = self._naming_keywords(cell.emoji, rng) if by_keywords else None
        if keywords:
            what = rng.choice(KEYWORDS).format(" and ".join(keywords) if rng.random() < 0.5 else ", ".join(keywords))
        else:
            what = with_article(cell.emoji.name) if rng.random() < 0.6 else cell.emoji.name
        if cell.style != self.styles[0] or rng.random() < 0.7:  # without a word about it, the first style is meant
            what = rng.choice(IN_STYLE).format(what, cell.style)
        return [rng.choice(DRAW).format(what)], [cell]

    def _naming_keywords(self, emoji: Emoji, rng: Random) -> list[str] | None:
        """A few keywords that no other label has all of; the label of something else is none, it asks for that."""
        if emoji.tone:  # keywords do not say the skin tone
            return None
        known = [keyword for keyword in emoji.keywords if keyword not in self.labels]
        found = [some for size in (1, 2, 3) for some in combinations(known, size)]
        for keywords in rng.sample(found, min(len(found), KEYWORD_COMBINATIONS)):
            if set.intersection(*(self.labels_of_keyword[keyword] for keyword in keywords)) == {emoji.label}:
                return list(keywords)
        return None

    def questions(self) -> Iterator[list[Turn]]:
        """An image and several questions about it: as it is, and augmented, where its style is not asked for."""
        of_thing = [self._group, self._is_it, self._is_it]
        kinds = [self._style, self._both, self._is_style, *of_thing]
        for cell in self.training:
            rng = self.rng("name", cell)
            for copy in range(DIALOGUES_PER_CELL + AUGMENTED_DIALOGUES_PER_CELL):
                is_augmented = copy >= DIALOGUES_PER_CELL
                others = rng.sample(of_thing if is_augmented else kinds, QUESTIONS_PER_DIALOGUE - 1)
                turns = [ask(cell, rng) for ask in rng.sample([self._name, *others], QUESTIONS_PER_DIALOGUE)]
                turns[0][0].insert(0, Augmented(cell, rng.choice(LIT)) if is_augmented else cell)
                yield turns

    def _name(self, cell: Cell, rng: Random) -> Turn:
        return [rng.choice(NAME)], [cell.emoji.name]

    def _style(self, cell: Cell, rng: Random) -> Turn:
        return [rng.choice(WHICH_STYLE)], [cell.style]

    def _group(self, cell: Cell, rng: Random) -> Turn:
        return [rng.choice(WHICH_GROUP)], [group_name(cell.emoji)]

    def _both(self, cell: Cell, rng: Random) -> Turn:
        return [rng.choice(BOTH)], [f"{cell.emoji.name}, {cell.style} style"]

    def _is_it(self, cell: Cell, rng: Random) -> Turn:
        near = self.in_subgroup[cell.emoji.subgroup] if rng.random() < 0.5 else self.names
        asked = rng.choice(near) if rng.random() < 0.5 and near else cell.emoji.plain_name
        return [rng.choice(IS_IT).format(with_article(asked))], ["yes" if asked == cell.emoji.plain_name else "no"]

    def _is_style(self, cell: Cell, rng: Random) -> Turn:
        asked = cell.style if rng.random() < 0.5 else rng.choice(self.styles)
        return [rng.choice(IS_STYLE).format(asked)], ["yes" if asked == cell.style else "no"]

    def odd_ones(self) -> Iterator[list[Turn]]:
        """Three images of one group and one of another."""
        for cell in self.training:
            rng = self.rng("odd", cell)
            group = cell.emoji.group
            mates = [mate for mate in self.of_group[group, cell.style] if mate.emoji.label != cell.emoji.label]
            others = [other for other, style in self.of_group if style == cell.style and other != group]
            if cell.emoji.tone or len(mates) < 2 or not others or rng.random() < 0.5:
                continue
            odd = rng.choice(self.of_group[rng.choice(sorted(others)), cell.style])
            shown = rng.sample([cell, *rng.sample(mates, 2), odd], 4)
            yield [([*shown, rng.choice(ODD)], [f"the {PLACES[shown.index(odd)]} one, {odd.emoji.name}"])]

    def changes(self, job: str, change: Callable[[Cell, Random], Turn | None]) -> Iterator[list[Turn]]:
        """Every image with a change of this kind, where there is one: as it is, and augmented like its answer.

        The answer to an augmented image cannot be known by heart: it has to be made of what is shown. In parts of two
        images it is less of use, too, to recognize what they show.
        """
        augmentations, mixtures = [*TRUE_COLORS], [*MIXED]
        if job == "restyle":  # of other changes the colors of skin matter
            augmentations, mixtures = [*TRUE_COLORS, *OTHER_COLORS], [*MIXED, *MIXED_COLORS]
        alike: dict[Hashable, list[tuple[Cell, Cell]]] = defaultdict(list)  # what is shown, and what it becomes
        found = []
        for cell, copy in product(self.training, range(1 + AUGMENTED_CHANGES_PER_CELL + MIXED_CHANGES_PER_CELL)):
            if (turn := change(cell, self.rng(f"{job}/{copy}" if copy else job, cell))) is not None:
                question, (answer,) = turn
                found.append((cell, copy, question, answer))
                alike[kind_of_change(job, cell, answer)].append((cell, answer))
        for cell, copy, question, answer in found:
            # by the label, so that both directions of a change share their images
            rng = Random(f"augment/{SEED}/{cell.emoji.label}/{copy}")
            if copy > AUGMENTED_CHANGES_PER_CELL:
                second, its_answer = rng.choice(alike[kind_of_change(job, cell, answer)])
                number = rng.choice(mixtures)
                pair = [Augmented(cell, number, second), Augmented(answer, number, its_answer)]
            elif copy:
                number = rng.choice(augmentations)
                pair = [Augmented(cell, number), Augmented(answer, number)]
            else:
                pair = [cell, answer]
            yield [([pair[0], *question], [pair[1]])]

    def _restyling(self, cell: Cell, rng: Random) -> Turn | None:
        targets = [self.of_image.get((cell.emoji.slug, style)) for style in self.styles if style != cell.style]
        return choose(targets, lambda target: rng.choice(RESTYLE).format(target.style), rng)

    def _tone(self, cell: Cell, rng: Random) -> Turn | None:
        def words(target: Cell) -> str:
            tone = target.emoji.tone
            text = rng.choice(TONE).format(tone) if tone in TONES else rng.choice(NO_TONE)
            return text[:1].upper() + text[1:]

        mates = self.of_label[cell.emoji.label, cell.style]
        targets = [mate for mate in mates if mate.emoji.tone != cell.emoji.tone]
        return choose(targets, words, rng)

    def _gender(self, cell: Cell, rng: Random) -> Turn | None:
        emoji = cell.emoji
        mates = self.of_thing[emoji.thing, cell.style, emoji.tone, faces_right(emoji)]
        targets = [mate for mate in mates if mate.emoji.gender != emoji.gender]
        return choose(targets, lambda target: rng.choice(GENDER).format(target.emoji.gender or "person"), rng)

    def talks(self) -> Iterator[list[Turn]]:
        """Conversations: drawings one after another, changes, questions, refusals, and what people say besides."""
        styles = ", ".join(self.styles)
        for first, copy in product(self.training, range(TALKS_PER_CELL)):
            rng = self.rng(f"talk/{copy}", first)
            turns = [said(*rng.choice(HELLO), rng)] if rng.random() < 0.3 else []
            if rng.random() < 0.1:
                turns.append(said(*(text.format(styles=styles) for text in rng.choice(ABOUT)), rng))
            cell, num_images = first, rng.randint(0, MAX_IMAGES_OF_TALK)
            while num_images:
                # shown by the user, it is augmented like all that becomes of it, which cannot be known by heart either
                number = rng.choice(LIT) if num_images > 1 and rng.random() < SHOWN_IN_TALKS else None
                shown: list[Item] = [] if number is None else [Augmented(cell, number)]
                if number is None:
                    turns.append(self._drawing(cell, rng))
                num_images -= 1
                while num_images and rng.random() < (0.8 if shown else 0.4):
                    change = rng.choice([self._restyling, self._tone, self._gender])
                    if (turn := change(cell, rng)) is not None:
                        cell = next(item for item in turn[1] if isinstance(item, Cell))
                        turns.append(([*shown, *turn[0]], [cell if number is None else Augmented(cell, number)]))
                        num_images, shown = num_images - 1, []
                if shown or rng.random() < 0.25:
                    question, answer = rng.choice([self._name, self._style, self._group, self._both])(cell, rng)
                    turns.append(([*shown, *question], answer))
                if rng.random() < 0.2:
                    turns.append(said(*rng.choice(THANKS), rng))
                if rng.random() < 0.25:
                    turns.append(self._refusal(rng.choice(self.unknown_names), rng))
                cell = rng.choice(self.training)
            if not turns or rng.random() < 0.1:
                turns.append(said(*rng.choice(BYE if turns else (*THANKS, *BYE)), rng))
            yield turns

    def unknowns(self) -> Iterator[list[Turn]]:
        """What the model does not know, asked for and shown."""
        for cell in self.unknown:
            rng = self.rng("unknown", cell)
            yield [self._refusal(cell.emoji.name, rng)]
            answer = rng.choice(CANNOT_NAME).format(group_name(cell.emoji))
            yield [([cell, rng.choice(NAME)], [answer]), self._group(cell, rng), self._style(cell, rng)]
        for number, name in enumerate(self.other_names):
            yield [self._refusal(name, Random(f"unknown/{SEED}/{number}"))]

    def _refusal(self, name: str, rng: Random) -> Turn:
        asked = what = with_article(name) if rng.random() < 0.6 else name  # as often as in what can be drawn
        if rng.random() < 0.7:
            asked = rng.choice(IN_STYLE).format(what, rng.choice(self.styles))
        return [rng.choice(DRAW).format(asked)], [rng.choice(CANNOT_DRAW).format(what)]


def choose(targets: list[Cell | None] | list[Cell], words: Callable[[Cell], str], rng: Random) -> Turn | None:
    """A change that leads to one of these images, if there is one."""
    possible = [target for target in targets if target is not None]
    if not possible:
        return None
    target = rng.choice(possible)
    return [words(target)], [target]


def kind_of_change(job: str, cell: Cell, answer: Cell) -> Hashable:
    """The same for changes that the same words ask for."""
    value = {"restyle": answer.style, "tone": answer.emoji.tone, "gender": answer.emoji.gender}[job]
    return cell.style, value


def said(question: str, answer: str, rng: Random) -> Turn:
    """Small talk, typed with care or without."""
    question = question.lower() if rng.random() < 0.4 else question
    return [question.rstrip(".!?") if rng.random() < 0.3 else question], [answer]


def faces_right(emoji: Emoji) -> bool:
    return emoji.label.endswith("facing right")
