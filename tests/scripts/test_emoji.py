"""Emoji data: what is held out stays out of tars and records, and every record says what is so."""

import json
import re
import tarfile
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from statistics import mean
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from scripts.emoji.build import add_member, augment, build, main, render
from scripts.emoji.records import LIT, MIXED, MIXED_COLORS, OTHER_COLORS, TRUE_COLORS, make_records, with_article
from scripts.emoji.sources import (
    KEYWORDS_PACKAGE,
    NOUNS_PACKAGE,
    STYLES,
    TEXTS_PACKAGE,
    Cell,
    Packages,
    read_cells,
    read_nouns,
    square_svg,
)
from scripts.emoji.splits import Split, slug_of, split_of, thing_of

NUM_OBJECTS, NUM_WORKERS = 150, 24
ALL_STYLES = ["noto", "flat"]
OTHER_NAMES = ["logical and", "gnu", "object003", "walnut tree"]
JOBS = ("draw", "draw_tones", "name", "odd_one_out", "restyle", "tone", "gender", "talk", "unknown")


WORDNET_DATA = """  1 a licence
00000001 09 n 01 idea 0 000 | a thought
00000002 05 n 02 gnu 0 zax 0 000 | an animal
00000003 20 n 01 walnut_tree 0 000 | a tree
"""
WORDNET_INDEX = """  1 a licence
gnu n 1 1 @ 1 1 00000002
idea n 1 1 @ 1 5 00000001
object003 n 1 2 @ ~ 1 1 00000003
walnut_tree n 2 2 @ #m 2 1 00000003 00000001
zax n 1 0 1 0 00000002
"""


def write_package(folder: Path, package: str, files: dict[str, object]) -> None:
    """A file as `npm pack` writes it."""
    name, _, version = package.rpartition("@")
    path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            add_member(tar, f"package/{member}", text.encode())


def made_up_entries() -> list[dict]:
    """Objects with keywords, and workers of three genders with all skin tones, in the layout of emojibase."""
    entries: list[dict] = []
    for n in range(NUM_OBJECTS):
        tags = [f"color{n % 7}", f"shape{n % 11}", f"size{n % 13}", f"object{n + 1:03}"]
        entries.append({"label": f"object{n:03}", "tags": tags, "group": 7, "subgroup": n % 4})
    genders: tuple[tuple[str, dict], ...] = (("", {}), ("man ", {"gender": 1}), ("woman ", {"gender": 0}))
    for n, (words, gender) in product(range(NUM_WORKERS), genders):
        label = f"{words}worker{n:03}"
        skins: list[dict] = [{"label": label, "tone": tone} for tone in (1, 2, 3, 4, 5, [1, 5])]
        entries.append({"label": label, "tags": [label], "group": 1, "subgroup": 5, "skins": skins, **gender})
    entries += [{"label": "bald", "group": 2, "subgroup": 6}, {"label": "regional indicator A"}]
    images = (image for entry in entries for image in (entry, *entry.get("skins", ())))
    for code_point, image in enumerate(images, start=0x1F000):
        image |= {"hexcode": f"{code_point:X}-FE0F", "emoji": chr(code_point)}
    return entries


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    entries = made_up_entries()
    groups = {"1": "people-body", "2": "component", "7": "objects"}
    texts = {"groups": groups, "subgroups": {str(number): f"kind{number}" for number in range(7)}}
    write_package(folder, TEXTS_PACKAGE, {"en/data.json": entries, "meta/groups.json": texts})
    oldest = {"default": ["oldest"], "tts": ["object000"]}
    annotations = {"annotations": {"\u2227": {"tts": ["logical and"]}, entries[0]["emoji"]: oldest}}
    write_package(folder, KEYWORDS_PACKAGE, {"annotations/en/annotations.json": {"annotations": annotations}})
    write_package(folder, NOUNS_PACKAGE, {"dict/data.noun": WORDNET_DATA, "dict/index.noun": WORDNET_INDEX})
    for style in (STYLES[name] for name in ALL_STYLES):
        images = [image for entry in entries for image in (entry, *entry.get("skins", ()))]
        characters = {image["hexcode"]: f"icon-{number}" for number, image in enumerate(images)}
        icons = {name: {"body": f'<path id="{code}"/>'} for code, name in characters.items()}
        icons["icon-1"] = icons["icon-0"]  # drawn once for two names
        icons = {"icons": icons, "width": 36, "height": 36}
        write_package(folder, style.package, {"chars.json": characters, "icons.json": icons})
    return folder


@pytest.fixture(scope="module")
def cells(packages: Path) -> list[Cell]:
    return read_cells(Packages(packages), ALL_STYLES)


@pytest.fixture(scope="module")
def records(packages: Path, cells: list[Cell]) -> dict[str, list[dict]]:
    assert read_nouns(Packages(packages)) == OTHER_NAMES[1:], "what can be drawn, and occurs in texts"
    return {job: list(made) for job, made in make_records(cells, other_names=OTHER_NAMES).items()}


def items_of(record: dict, kind: str, role: str | None = None) -> list[str]:
    messages = [message for message in record["messages"] if role in (None, message["role"])]
    key = "path" if kind == "image" else "text"
    return [item[key] for message in messages for item in message["content"] if item["type"] == kind]


def originals_of(path: str) -> list[str]:
    """What an image was made of: itself, or one or two images before augmentation."""
    if not path.startswith("augmented/"):
        return [path]
    _, _, style, names = path.removesuffix(".png").split("/")
    return [f"{style}/{name}.png" for name in names.split("+")]


def test_a_split_is_a_function_of_the_names() -> None:
    names = ["banana", "basketball", "octopus", "man firefighter"]
    found = [split_of(label, "noto", None, styles=ALL_STYLES) for label in names]
    assert found == ["held_out_thing", "unknown", "train", "held_out_cell"], "shipped weights rely on these splits"
    many = [f"thing {number}" for number in range(3000)]
    counts = Counter(split_of(label, style, None, styles=STYLES) for label in many for style in STYLES)
    for split, share in (("held_out_thing", 0.05), ("unknown", 0.03), ("held_out_cell", 0.092)):
        assert counts[split] / counts.total() == pytest.approx(share, abs=0.01)
    for alike in (
        ("man running: facing right", "woman running", "person running"),
        ("kiss: woman, man", "kiss"),
        ("mermaid", "merman"),
        ("man", "woman", "person"),
    ):
        assert len(set(map(thing_of, alike))) == 1, alike
    assert thing_of("woman's boot") == "womans-boot", "not a gender of a boot"
    assert slug_of("keycap: #") != slug_of("keycap: *")
    assert [with_article(name) for name in ("octopus", "clapping hands", "flag of Chad")] == [
        "an octopus",
        "clapping hands",
        "the flag of Chad",
    ]


def test_what_is_held_out_holds_for_all_that_goes_with_it(cells: list[Cell]) -> None:
    splits_of_thing, splits_of_cell, splits_of_variant = (defaultdict(set) for _ in range(3))
    for cell in cells:
        emoji = cell.emoji
        splits_of_thing[emoji.thing].add(cell.split)
        splits_of_cell[emoji.label, cell.style].add(cell.split)
        if cell.split in ("train", "held_out_variant"):
            splits_of_variant[emoji.label, emoji.tone].add(cell.split)
    for whole in ("held_out_thing", "unknown"):
        assert all(splits == {whole} for splits in splits_of_thing.values() if whole in splits)
    assert all(splits == {"held_out_cell"} for splits in splits_of_cell.values() if "held_out_cell" in splits)
    assert all(len(splits) == 1 for splits in splits_of_variant.values()), "in every style alike"
    assert set().union(*splits_of_thing.values()) == set(get_args(Split))
    known, labels = {cell.emoji.label for cell in cells if cell.split == "train"}, {cell.emoji.label for cell in cells}
    assert all(cell.emoji.label in known for cell in cells if cell.split == "held_out_cell"), "in another style"
    assert not labels & {"bald", "regional indicator A", "object001"}, "no emoji, or drawn as another one"


def test_records_show_and_name_nothing_that_is_held_out(cells: list[Cell], records: dict[str, list[dict]]) -> None:
    assert set(records) == set(JOBS) and all(records.values())
    split = {cell.path: cell.split for cell in cells}
    splits = ("held_out_thing", "unknown")
    held_out, unknown = ({cell.emoji.plain_name for cell in cells if cell.split == name} for name in splits)
    for job, made in records.items():
        for record in made:
            allowed = {"unknown"} if job == "unknown" else {"train"}
            assert {split[each] for path in items_of(record, "image") for each in originals_of(path)} <= allowed
            words = set(re.findall(r"[\w-]+", " ".join(items_of(record, "text"))))
            assert not words & held_out
            assert job in ("unknown", "talk") or not words & unknown

    def images(job: str, role: str) -> set[str]:
        return {path for record in records[job] for path in items_of(record, "image", role)}

    training = {cell.path for cell in cells if cell.split == "train"}
    assert images("draw", "assistant") | images("draw_tones", "assistant") == training
    assert {path for path in images("name", "user") if not path.startswith("augmented/")} == training
    assert images("draw_tones", "assistant") == {path for path in training if "skin-tone" in path}
    assert not images("unknown", "assistant")
    refused = " ".join(text for record in records["unknown"] for text in items_of(record, "text"))
    assert "logical and" in refused and "a walnut tree" in refused and "object003" not in refused
    asked_for = [record for record in records["unknown"] if not items_of(record, "image")]
    answers = [items_of(record, "text", "assistant")[0] for record in asked_for]
    declined = [answer.split(" draw ")[-1].split(" know ")[-1] for answer in answers]
    assert 0.3 < mean(name.startswith(("a ", "an ")) for name in declined) < 0.9, "no article gives a refusal away"
    talked = {len(items_of(record, "image", "assistant")) for record in records["talk"]}
    assert talked == set(range(6)), "small talk alone, and up to five images"
    said = (text for record in records["talk"] for text in items_of(record, "text", "assistant"))
    refusals = [text for text in said if "I don't" in text]
    assert refusals and all(any(name in text for name in [*unknown, *OTHER_NAMES]) for text in refusals)


def test_a_drawing_is_of_what_is_asked_for(cells: list[Cell], records: dict[str, list[dict]]) -> None:
    by_path = {cell.path: cell for cell in cells}
    all_keywords = {keyword for cell in cells for keyword in cell.emoji.keywords}
    by_keywords = 0
    for record in [*records["draw"], *records["draw_tones"]]:
        (asked,), (path,) = items_of(record, "text"), items_of(record, "image")
        emoji = by_path[path].emoji
        assert by_path[path].style in asked or by_path[path].style == ALL_STYLES[0]
        if emoji.plain_name in asked.replace("A man", "a man"):
            assert emoji.tone is None or f"{emoji.tone} skin tone" in asked
            continue
        words = set(re.findall(r"[\w-]+", asked))
        assert not words & {cell.emoji.label for cell in cells}, "keywords that are names ask for others"
        keywords = words & all_keywords
        matching = {cell.emoji.label for cell in cells if keywords <= set(cell.emoji.keywords)}
        assert matching == {emoji.label}, f"{asked!r} asks for one of {matching}"
        by_keywords += 1
    assert by_keywords


def test_a_change_changes_one_thing(cells: list[Cell], records: dict[str, list[dict]]) -> None:
    by_path = {cell.path: cell for cell in cells}
    for job in ("restyle", "tone", "gender"):
        for record in records[job]:
            paths, asked = items_of(record, "image"), items_of(record, "text")[0]
            assert len({path.split("/")[1] for path in paths if path.startswith("augmented/")}) < 2, "alike"
            for before, after in zip(*map(originals_of, paths), strict=True):
                before, after = by_path[before], by_path[after]
                one, other = before.emoji, after.emoji
                assert (before.style != after.style) == (job == "restyle") and one.thing == other.thing
                assert (one.tone != other.tone) == (job == "tone") and (one.gender != other.gender) == (job == "gender")
                assert job != "restyle" or after.style in asked
                assert job != "gender" or (other.gender or "person") in asked
                if job == "tone":
                    tone = other.tone
                    assert tone.casefold() in asked.casefold() if tone else "ellow" in asked or "out" in asked
        assert any(len(originals_of(path)) == 2 for record in records[job] for path in items_of(record, "image"))


def test_tars_hold_the_training_split_and_building_again_changes_nothing(
    cells: list[Cell], packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUGMENTED_CHANGES_PER_CELL", "MIXED_CHANGES_PER_CELL"):  # each is a file to wait for
        monkeypatch.setattr(f"scripts.emoji.records.{name}", 1)
    for cell in cells:  # what is there is not drawn again, so nothing else is needed
        path = tmp_path / "images" / cell.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), "red").save(path)
    written: list[dict[Path, bytes]] = []
    for _ in range(2):
        build(tmp_path, styles=ALL_STYLES, size=2, packages=packages, num_processes=1)
        written.append({path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()})
    assert written[0] == written[1]
    names = [name for path in (tmp_path / "tokenizer").glob("*.tar") for name in tarfile.open(path).getnames()]
    training = [cell.path.removesuffix(".png").replace("/", "-") for cell in cells if cell.split == "train"]
    assert sorted(names) == sorted(f"{key}.{suffix}" for key in training for suffix in ("png", "txt"))
    attribution = (tmp_path / "ATTRIBUTION.md").read_text()
    assert all(style.license in attribution and style.author in attribution for style in map(STYLES.get, ALL_STYLES))


def test_an_augmentation_is_the_same_for_every_image() -> None:
    left, right = Image.new("RGB", (128, 128), "red"), Image.new("RGB", (128, 128), "blue")
    for image in (left, right):
        image.paste("white", (64, 0, 128, 128))
    seen = set()
    for number in (*LIT, *TRUE_COLORS, *OTHER_COLORS):
        found = [np.asarray(augment([image], number)) for image in (left, right)]
        drawn = [(image != 255).any(-1) for image in found]
        assert (drawn[0] == drawn[1]).all() and drawn[0].any(), "white stays white, all else is drawn at one place"
        assert number not in TRUE_COLORS or (found[0][drawn[0]] == (255, 0, 0)).all()
        assert number not in LIT or drawn[0][:, :50].any(), "not mirrored"
        seen.add(found[0].tobytes())
    assert len(seen) > 0.8 * (OTHER_COLORS.stop - LIT.start)


def test_a_mixture_has_parts_of_two_images_at_the_same_places_in_every_style() -> None:
    red, blue, green, white = (Image.new("RGB", (128, 128), color) for color in ("red", "blue", "lime", "white"))
    shares = []
    for number in (*MIXED[::4], *MIXED_COLORS[::4]):
        mixed, alike, alone = (np.asarray(augment((first, blue), number)) for first in (red, green, white))
        is_second = (alone < 128).any(-1)
        assert (mixed[is_second] == alike[is_second]).all(), "the second image is where it is in all mixtures"
        if number in MIXED:
            pure = (mixed == (255, 0, 0)).all(-1) | (mixed == (0, 0, 255)).all(-1) | (mixed == 255).all(-1)
            assert pure.mean() > 0.9, "each side shows one of both, on white"
        shares.append(is_second.mean())
    assert 0.2 < np.mean(shares) < 0.6 and np.std(shares) > 0.05


def test_images_are_square_and_on_white(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    render(square_svg('<path fill="red" d="M0 0h4v2H0z"/>', 4, 2), tmp_path / "wide.png", 8)
    with Image.open(tmp_path / "wide.png") as opened:
        image = opened.convert("RGB")
    assert image.size == (8, 8)
    assert image.getpixel((4, 0)) == (255, 255, 255) and image.getpixel((4, 4)) == (255, 0, 0)


def test_a_broken_package_is_one_sentence(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in packages.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 400 if path.name.startswith("emojibase") else None])
    assert main([str(tmp_path / "out"), "--packages", str(tmp_path), "--styles", *ALL_STYLES]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "emojibase-data-17.0.0.tgz must hold" in said and "delete the file" in said
