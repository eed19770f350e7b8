"""Layouts of raw rows as data: which columns make which kind of record, under all the names they go by.

A layout is known by its columns; the first that fits counts. `--map caption=prompt,image=img_path` gives columns the
names of here. A column may lie inside another one (Task2.Caption). Layouts with an order of their own (chats, LLaVA's,
interleaved documents, codes) have a function each; the others are a question and its answer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import numpy as np

from mllm.conversation import CodesPart, Message, Role, TextPart
from mllm.files import parse_json
from train.data import records
from train.data.raw_files import read_items
from train.data.records import BadRecord, Record, RecordPart, find_image, message, short

Row = Mapping[str, Any]
MARKER = "<image>"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
BYTES_KEYS = ("bytes", "base64")
IMAGE_KEYS = ("image", "path", "url", "image_url", *BYTES_KEYS)
UNUSED = "no"  # what an unused field of Liquid and UniTok holds
CODES_PREFIX = "vqcode_"
IMAGE_ALONE = {"image", "subfolder"}  # what is known of an image of a folder without a caption
MAX_CODE = 65_535  # shards hold uint16
MAX_TRIES = 100  # records at the beginning of a file that may be invalid before its format cannot be told

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": tuple("jpg png webp jpeg file_name image_path img_path path image_file img images".split()),
    "link": ("url", "URL", "image_url"),
    "caption": ("Task2.Caption", "txt", "text", "prompt", "captions"),
    "alt": ("caption", "TEXT", "alt_text"),
    "source": ("source_image", "source_img", "src_img", "original_image", "input_image"),
    "target": ("target_image", "target_img", "edited_image", "edited_img", "output_image"),
    "instruction": ("edit_prompt", "edited_prompt_list", "edit_instruction", "prompt"),
    "question": ("query", "instruction"),
    "answer": ("multiple_choice_answer", "answers", "output", "response", "label"),
    "input": ("context",),
    "class": ("cls", "label"),
    "text": ("content",),
}
"""A column and the other names that it goes by in the field."""


def find(row: Row, column: str) -> Any:
    """The value of a column under any of its names; None where there is none."""
    names = (column, *COLUMNS.get(column, ()))
    return next((value for name in names if (value := _inside(row, name)) is not None), None)


def _inside(value: Any, name: str) -> Any:
    """The value of `name`, or of a path such as texts.0.user."""
    if isinstance(value, Mapping) and name in value:
        return value[name]
    first, _, rest = name.partition(".")
    if isinstance(value, list) and first.isdecimal() and int(first) < len(value):
        return _inside(value[int(first)], rest)
    if rest and isinstance(value, Mapping):
        return _inside(value.get(first), rest)
    return None


def dialogue(question: tuple[str, ...], answer: tuple[str, ...]) -> Callable[[Row, Path], Record]:
    """A reader of records of one question and its answer, out of these columns in this order."""

    def read(row: Row, folder: Path) -> Record:
        def turn(role: Role, columns: tuple[str, ...]) -> Message:
            return message(role, *(part for column in columns for part in _parts(column, find(row, column), folder)))

        return records.chat_record([turn("user", question), turn("assistant", answer)])

    return read


def read_instruct(row: Row, folder: Path) -> Record:
    """Later records of a file may have images, where the first has none."""
    shown = ("image",) if has_value(row, "image") else ()
    return dialogue((*shown, "question", "input"), ("answer",))(row, folder)


def _parts(column: str, value: Any, folder: Path) -> Iterator[RecordPart]:
    if column in ("image", "source", "target"):
        yield from (find_image(image, folder) for image in (value if isinstance(value, list) else [value]))
    elif value is not None and (words := _words(value, column).replace(MARKER, "").strip()):
        yield TextPart(words)


def _words(value: Any, column: str) -> str:
    """A text; of several answers to one question the most common one."""
    match value:
        case str():
            return value
        case int() | float():
            return str(value)
        case [_, *_]:
            return mode(_words(one, column) for one in value)
        case {"answer": said} | {"text": said}:
            return _words(said, column)
    raise BadRecord(f"{column} must be a text, got {short(value)}; fix the record")


def read_cauldron(row: Row, folder: Path) -> Record:
    """Questions and answers about one list of images, which come before the first question."""
    images, texts = _lists(row, "images", "texts")
    parts: list[RecordPart] = [find_image(image, folder) for image in images]
    turns: list[Message] = []
    for text in _objects(texts, "texts"):
        turns.append(message("user", *parts, TextPart(_words(text.get("user"), "user"))))
        turns.append(message("assistant", TextPart(_words(text.get("assistant"), "assistant"))))
        parts = []
    return records.chat_record(turns)


def read_chat(row: Row, folder: Path) -> Record:
    """A single assistant message is a document."""
    messages, images = _lists({"images": [], **{k: v for k, v in row.items() if v is not None}}, "messages", "images")
    left = iter(images)
    listed = (find_image(image, folder) for image in left)
    said = [
        (turn.get("role"), tuple(_content_parts(turn.get("content"), listed, folder, marked=bool(images))))
        for turn in _objects(messages, "messages")
    ]
    if num_left := len(list(left)):
        raise BadRecord(f"messages must show all images, got {num_left} that none shows; add their items")
    made = [message(role, *parts) for role, parts in _after_system(said)]
    if [turn.role for turn in made] == ["assistant"]:
        return records.document_record(made[0].parts)
    return records.chat_record(made)


def _after_system(said: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Role, Any]]:
    """Who says what; what a system says is put before the next question."""
    system = None
    for speaker, content in said:
        match SPEAKERS.get(str(speaker)):
            case "system":
                system = content if system is None else system + content
            case "user":
                yield "user", content if system is None else system + content
                system = None
            case "assistant":
                yield "assistant", content
            case _:
                raise BadRecord(f"a speaker must be one of {', '.join(SPEAKERS)}, got {short(speaker)}; fix it")


def _content_parts(content: Any, listed: Iterator[RecordPart], folder: Path, *, marked: bool) -> Iterator[RecordPart]:
    """Text and image items; in a string, each <image> is one, as LLaMA-Factory and ms-swift write them."""
    if isinstance(content, str):
        yield from _marked_parts(content, listed) if marked and MARKER in content else [TextPart(content)]
        return
    for item in _objects(content, "content that is no string"):
        match item:
            case {"type": "text", "text": str(text)}:
                yield TextPart(text)
            case {"type": "image" | "image_url"}:
                # Parquet files hold every key in every item, mostly empty
                named = (item if key in BYTES_KEYS else item[key] for key in IMAGE_KEYS if item.get(key))
                image = next(named, None)
                yield find_image(image, folder) if image else _next_of(listed)
            case _:
                raise BadRecord(f"items of a message must be of type text or image, got {short(item)}; fix it")


def read_llava(row: Row, folder: Path) -> Record:
    """`image` is one path or a list of them; without it the dialogue is text."""
    named = row.get("images") if row.get("image") is None else row["image"]
    names = [] if named is None else named if isinstance(named, list) else [named]
    return records.chat_record(_llava_turns(row.get("conversations"), [find_image(name, folder) for name in names]))


def _llava_turns(conversation: Any, images: list[Any]) -> list[Message]:
    """Turns of LLaVA's list, with the images at their markers."""
    turns = _objects(conversation, "conversations")
    speakers = [turn.get("from", turn.get("role")) for turn in turns]
    values = [str(turn.get("value", turn.get("content", ""))) for turn in turns]
    num_markers = sum(value.count(MARKER) for value in values)
    if not num_markers and values:  # as in ShareGPT4V: before the first question
        first = next((n for n, speaker in enumerate(speakers) if SPEAKERS.get(str(speaker)) == "user"), 0)
        values[first], num_markers = MARKER * len(images) + values[first], len(images)
    if num_markers != len(images):
        raise BadRecord(
            f"a dialogue must have one <image> per image, got {num_markers} for {len(images)}; "
            "add or remove <image> so that they match"
        )
    texts = [f"{v.strip()}\n" if who == "system" else v for who, v in zip(speakers, values, strict=True)]
    left = iter(images)
    said = _after_system(zip(speakers, texts, strict=True))
    return [message(role, *_marked_parts(text, left)) for role, text in said]


def _marked_parts(text: str, images: Iterator[RecordPart]) -> Iterator[RecordPart]:
    for index, words in enumerate(text.split(MARKER)):
        if index:
            yield _next_of(images)
        if words.strip():
            yield TextPart(words.strip())


def _next_of(images: Iterator[RecordPart]) -> RecordPart:
    image = next(images, None)
    if image is None:
        raise BadRecord("an image item must have an image, got no path and none left in `images`; add it")
    return image


def read_captions(row: Row, folder: Path) -> Record:
    image = find(row, "image")
    caption = find(row, "caption" if image is not None or "alt" not in row else "alt")
    captions = caption if isinstance(caption, list) else [caption]
    if not captions or not all(isinstance(text, str) for text in captions):
        remedy = "write a .txt of the same name next to it" if row.keys() <= IMAGE_ALONE else "add it, or use --map"
        raise BadRecord(f"an image must have a caption, got {short(caption)} in {_names(row)}; {remedy}")
    return records.pair_record(captions, find_image(find(row, "link") if image is None else image, folder))


def read_classes(row: Row, folder: Path) -> Record:
    """A class and ten views of its image, as LlamaGen crops them, or the codes of any number of views."""
    label = find(row, "class")
    label = row.get("subfolder") if label is None else label
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise BadRecord(f"a class must be an integer >= 0, got {label!r}; put images into one sub-folder per class")
    views: list[RecordPart]
    if isinstance(codes := row.get("codes"), list | np.ndarray):
        views = [_codes_part(codes_KN, "codes", row) for codes_KN in codes]
    else:
        views = [replace(find_image(find(row, "image"), folder), has_views=True)]
    return Record("class", (message("user", TextPart(str(label))), message("assistant", *views)))


def read_codes(row: Row, folder: Path) -> Record:
    """T2I: `text` (short) or `InVL_caption` (long) to the image; I2T: the image to one of them; image_text: both ways;
    mllm_pretrain, mllm_finetune: `text` is a JSON list of LLaVA's turns; anything else: `text` is a document."""
    kind = row.get("data_type")
    captions = [str(row[key]) for key in ("text", "InVL_caption") if row.get(key, UNUSED) not in (UNUSED, None)]
    named = [name for name in row if name.startswith(CODES_PREFIX) and row[name] not in (UNUSED, None, "", [])]
    codes = _codes_part(row[named[0]], named[0], row) if named else None
    match kind:
        case "T2I" | "image_text" | "I2T" if codes is None:
            raise BadRecord(f"a record of kind {kind} must have codes, got {sorted(row)}; add {CODES_PREFIX}256")
        case "T2I" | "image_text":
            return records.pair_record(captions, codes, kind="draw" if kind == "T2I" else "pair")
        case "I2T":
            if not captions:
                raise BadRecord("an image must have a caption, got 'no' in text and InVL_caption; write one")
            return records.chat_record([message("user", codes), message("assistant", TextPart(captions[-1]))])
        case "mllm_pretrain" | "mllm_finetune":
            turns = _from_json(row.get("text"), "text")
            return records.chat_record(_llava_turns(turns, [] if codes is None else [codes]))
        case _:
            return records.document_record([TextPart(caption) for caption in captions[:1]])


def _codes_part(values: Any, name: str, row: Row) -> CodesPart:
    """Codes of K lists of N numbers, or of one list (one codebook), perhaps in a JSON string."""
    values = _from_json(values, name) if isinstance(values, str) else values
    try:
        codes_KN = np.atleast_2d(np.array(values))
    except ValueError as error:
        raise BadRecord(f"{name} must be K lists of the same length: {error}; fix the record") from error
    is_table = codes_KN.ndim == 2 and codes_KN.dtype.kind in "iu"
    if not is_table or codes_KN.min(initial=0) < 0 or codes_KN.max(initial=0) > MAX_CODE:
        raise BadRecord(f"{name} must be K lists of integers from 0 to {MAX_CODE}, got shape {codes_KN.shape}; fix it")
    return CodesPart(codes_KN.astype(np.uint16), _grid(codes_KN.shape[1], row))


def _grid(num_positions: int, row: Row) -> tuple[int, int]:
    """A square, or the shape of `width` and `height` in pixels."""
    side = math.isqrt(num_positions)
    if side * side == num_positions:
        return side, side
    try:
        width, height = int(row["width"]), int(row["height"])
        patch = math.isqrt(width * height // num_positions)
        rows, columns = height // patch, width // patch
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        rows = columns = 0
    if rows * columns != num_positions:
        sizes = row.get("width"), row.get("height")
        raise BadRecord(
            f"width and height must be those of an image of {num_positions} positions, got {sizes}; give both in pixels"
        )
    return rows, columns


def _from_json(text: Any, name: str) -> Any:
    try:
        return parse_json(text)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{name} must be valid JSON: {error}; fix the record") from error


def read_mmc4(row: Row, folder: Path) -> Record:
    """Each image comes before the text that it matches; of equal indices the order in `image_info` holds."""
    texts, images = _lists(row, "text_list", "image_info")
    before: dict[int, list[RecordPart]] = {}
    for info in images:
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(texts):
            raise BadRecord(
                f"matched_text_index must be below the number of texts, {len(texts)}, got {index!r}; fix image_info"
            )
        before.setdefault(index, []).append(find_image(info.get("image_name") or info.get("raw_url"), folder))
    parts: list[RecordPart] = []
    for index, text in enumerate(texts):
        parts += [*before.get(index, []), TextPart(str(text))]
    return records.document_record(parts)


def read_obelics(row: Row, folder: Path) -> Record:
    """At each index of the two lists a text or an image."""
    texts, images = _lists(row, "texts", "images")
    if len(texts) != len(images):
        raise BadRecord(f"texts and images must have one length, got {len(texts)} and {len(images)}; fill with null")
    parts: list[RecordPart] = []
    for index, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            raise BadRecord(f"texts and images must hold one of the two at index {index}, got both or none; fix them")
        parts.append(TextPart(str(text)) if image is None else find_image(image, folder))
    return records.document_record(parts)


def _lists(row: Row, *names: str) -> list[list[Any]]:
    for name in names:
        if not isinstance(row.get(name), list):
            raise BadRecord(f"{name} must be a list, got {type(row.get(name)).__name__}; fix the record")
    return [row[name] for name in names]


def _objects(values: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadRecord(f"{name} must be a list of objects, got {short(values)}; fix the record")
    return values


def read_text(row: Row, folder: Path) -> Record:
    text = find(row, "text")
    if not isinstance(text, str):
        raise BadRecord(f"text must be a string, got {type(text).__name__}; fix the record")
    return records.document_record([TextPart(text)])


class Layout(NamedTuple):
    """Columns by which a row is known, in several ways, and what becomes of it."""

    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Row, Path], Record]  # a row and the folder of relative image paths to a record


LAYOUTS = {
    "codes": Layout((("data_type",), ("vqcode_256",), ("vqcode_512",), ("vqcode_multi768",)), read_codes),
    "llava": Layout((("conversations",),), read_llava),
    "chat": Layout((("messages",),), read_chat),
    "mmc4": Layout((("text_list", "image_info"),), read_mmc4),
    "cauldron": Layout((("images", "texts.0.user"),), read_cauldron),
    "obelics": Layout((("texts", "images"),), read_obelics),
    "edit": Layout((("source", "instruction", "target"),), dialogue(("source", "instruction"), ("target",))),
    "vqa": Layout((("image", "question", "answer"),), dialogue(("image", "question"), ("answer",))),
    "captions": Layout((("image", "caption"), ("image", "alt"), ("link", "alt")), read_captions),
    "classes": Layout((("image", "class"), ("codes", "class")), read_classes),
    "instruct": Layout((("question", "answer"),), read_instruct),
    "text": Layout((("text",),), read_text),
}
ALIASES = {"webdataset": "captions"}  # names of layouts in tasks of older versions


def has_value(row: Row, column: str) -> bool:
    """Whether a row has a column, and not an empty list in it."""
    value = find(row, column)
    return value is not None and not (isinstance(value, list) and not value)


def format_of(row: Row) -> str:
    """The name of the first layout whose columns a row has."""
    for name, layout in LAYOUTS.items():
        if any(all(has_value(row, column) for column in columns) for columns in layout.columns):
            return name
    if row.keys() <= IMAGE_ALONE and "image" in row:
        raise BadRecord(
            f"an image must have a caption or a class, got {short(row['image'])} alone; write a .txt of the same name "
            "next to it, or use --format classes for images in one sub-folder per class"
        )
    raise BadRecord(
        f"the columns must be those of a known layout, got {_names(row)}; name its columns with --map, such as "
        "caption=COLUMN,image=COLUMN"
    )


def read_record(name: str, row: Row, folder: Path) -> Record:
    """The record of a row of this layout; relative image paths are below `folder`."""
    record = LAYOUTS[ALIASES.get(name, name)].read(row, folder)
    for text in (part.text for part in record.parts if isinstance(part, TextPart)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise BadRecord(f"text must be Unicode, got half of a surrogate pair ({half!r}); fix it") from error
    return record


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """A row with the column names of --map."""
    values = {name: _inside(row, column) for name, column in columns.items()}
    if missing := [columns[name] for name, value in values.items() if value is None]:
        raise BadRecord(f"column {missing[0]} of --map must have a value, got the columns {_names(row)}; correct it")
    return {**row, **values} if values else row


def find_format(path: Path, columns: Mapping[str, str] | None = None) -> str:
    """The layout of a file, by its first valid record; that of an empty file does not matter. Raises ValueError where
    none of the first records is of a known layout."""
    error: BadRecord | None = None
    for item in islice(read_items(path), MAX_TRIES):
        if item.is_blank:
            continue
        try:
            return format_of(renamed(item.row(), columns or {}))
        except BadRecord as found:
            error = error or BadRecord(f"{item.place}: {found}")
    if error is None:
        return "text"
    raise ValueError(f"the layout of {path} is unknown: {error}") from error


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
