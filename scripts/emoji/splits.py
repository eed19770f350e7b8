"""Which images are trained on: a function of names alone, the same for the image tokenizer and the language model.

A *thing* is what remains of a label without skin tone, gender and direction ("firefighter"), a *cell* is a label in a
style ("woman firefighter" in noto, with all its skin tones), a *variant* is a label with a skin tone in all styles.
Held out are 5 % of the things, 10 % of the cells whose label is trained on in another style, and 10 % of the variants.
Another 3 % of the things are `unknown`: training shows them only to answer "I don't know".
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "unknown", "held_out_thing", "held_out_cell", "held_out_variant"]

HELD_OUT_THINGS = 0.05
UNKNOWN_THINGS = 0.03
HELD_OUT_CELLS = 0.10
HELD_OUT_VARIANTS = 0.10

SYMBOLS = {"#": " hash ", "*": " asterisk "}
"""Labels that differ in a symbol only: the keycaps."""
GENDER_WORDS = re.compile(r"\b(person|man|woman|people|men|women)\b(?!['\u2019])")
PAIRS_AND_FAMILIES = ("family", "kiss", "couple with heart")
"""Labels that go on with who is in the image ("kiss: woman, man")."""
SAME_THING = {
    "old man": "older person",
    "old woman": "older person",
    "prince": "person with crown",
    "princess": "person with crown",
    "merman": "merperson",
    "mermaid": "merperson",
    "woman and man holding hands": "people holding hands",
    "Mrs. Claus": "Santa Claus",
    "Mx Claus": "Santa Claus",
    "woman feeding baby": "breast-feeding",
    "man feeding baby": "breast-feeding",
    "person feeding baby": "breast-feeding",
}
"""Genders that English has words of their own for, and the label they belong to."""


def slug_of(label: str) -> str:
    """A label as a file name: "flag: C\u00f4te d\u2019Ivoire" becomes "flag-cote-divoire"."""
    for symbol, word in SYMBOLS.items():
        label = label.replace(symbol, word)
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "").lower()).strip("-")


def thing_of(label: str) -> str:
    """The thing that a label without skin tone shows, as a slug: the same for its genders and directions."""
    label = label.removesuffix(": facing right")
    for name in PAIRS_AND_FAMILIES:
        if label.split(":")[0] == name:
            return slug_of(name)
    label = SAME_THING.get(label, label)
    return slug_of(GENDER_WORDS.sub("", label)) or "person"


def share(*names: str) -> float:
    """A number in [0, 1) that the names decide."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(label: str, style: str, tone: str | None, *, styles: Iterable[str]) -> Split:
    """Where an image of a label without skin tone belongs; `styles` are all that have an image of the label."""
    thing, name = share("things", thing_of(label)), slug_of(label)
    if thing < HELD_OUT_THINGS:
        return "held_out_thing"
    if thing < HELD_OUT_THINGS + UNKNOWN_THINGS:
        return "unknown"
    is_known_elsewhere = any(share("cell", name, other) >= HELD_OUT_CELLS for other in set(styles) - {style})
    if is_known_elsewhere and share("cell", name, style) < HELD_OUT_CELLS:
        return "held_out_cell"
    if tone is not None and share("variant", name, tone) < HELD_OUT_VARIANTS:
        return "held_out_variant"
    return "train"
