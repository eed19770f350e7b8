"""Question files as LLaVA's evaluation has them: one JSON record a line, {"question_id", "image", "text", ...}.

In: the file and the folder of pictures. Out: items, checked: every record has its fields, no question comes twice, and
its picture exists. Pictures are opened when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mllm.evaluation.benchmark import Item
from mllm.json_files import Line, need_field, read_lines


def read_questions(
    questions: Path, images: Path | None, *, key_of: Callable[[int | str, str], str] = lambda id_, _: str(id_)
) -> list[Item]:
    """The items of a question file, in its order.

    Args:
        images: folder of the pictures; None: nothing is asked, only scored, so pictures are not looked for.
        key_of: (question id, prompt) -> what makes an item unique.
    """
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"there is no folder of pictures {images}; give the folder that the questions name")
    items: dict[str, Item] = {}
    for line in read_lines(questions):
        item = read_question(line, images, key_of)
        if item.key in items:
            raise ValueError(
                f"{item.where} asks a question twice: found id {item.question_id!r} again, first on "
                f"{items[item.key].where}; give every question its own id"
            )
        items[item.key] = item
    if not items:
        raise ValueError(f"{questions} holds no question: found an empty file; give a file with one record a line")
    return list(items.values())


def read_question(line: Line, images: Path | None, key_of: Callable[[int | str, str], str]) -> Item:
    """One record as an item."""
    question_id, text = need_field(line, "question_id"), need_field(line, "text")
    if not isinstance(question_id, int | str) or not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{line.where} is no question: found question_id {question_id!r} and text {text!r}; "
            "give a number or word, and words"
        )
    name = need_field(line, "image")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{line.where} has no picture: found image {name!r}; name its file")
    if images is not None and not (images / name).is_file():
        raise FileNotFoundError(
            f"{line.where} asks about a picture that is not there: found no {images / name}; get it"
        )
    fields = {key: value for key, value in line.record.items() if key not in ("question_id", "text")}
    pictures = () if images is None else (images / name,)
    return Item(
        key=key_of(question_id, text),
        where=line.where,
        question_id=question_id,
        prompt=text,
        images=pictures,
        fields=fields,
    )
