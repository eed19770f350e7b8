"""Files: written completely or not at all, and by one process at a time; JSON read with errors that name the line.

Also fingerprints of files, and which versions of which packages computed something. In: paths. Out: plain values.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL import Image
    from pydantic import ValidationError

logger = logging.getLogger(__name__)

TOOLKIT = "mllm-toolkit"
PACKAGES = (TOOLKIT, "torch", "transformers", "pillow", "numpy")
"""What every number depends on."""
ABSENT = "(not installed)"
TEXT_ENDINGS = (".txt", ".json", ".jsonl")
TOO_DEEP = "nested too deeply"
UNFINISHED = ".unfinished"
"""Ending of a file's name while it is written."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the path to write to, in the same folder; at the end of the block the file gets its own name.

    Its content has reached the disk by then, so that a power cut cannot leave the name without it. After an error, an
    older file of that name is what it was. A link stays, and the file that it names is written.
    """
    named, path = path, path.resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"{named} must be a regular file to write, got {kind_of(path)}; name another file")
    unfinished = unfinished_name(path)
    with errors_that_name(named):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder to fill; at the end of the block it takes the place of the folder of that name."""
    named, path = path, path.resolve()
    unfinished, former = unfinished_name(path), unfinished_name(path)
    with errors_that_name(named):
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            if path.exists():
                os.replace(path, former)
            os.replace(unfinished, path)
        finally:
            if former.exists() and not path.exists():
                os.replace(former, path)
            for folder in (unfinished, former):
                shutil.rmtree(folder, ignore_errors=True)


def require_new(path: Path) -> None:
    """Never overwrite: a memory-mapped source would be destroyed while it is read."""
    if any(path.iterdir()) if path.is_dir() else path.exists():
        raise ValueError(f"{path} must not exist; remove it first, or choose a different output")


def unfinished_name(path: Path) -> Path:
    """A name beside the file's that nobody else has."""
    return path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}{UNFINISHED}")


def counted(number: int, noun: str) -> str:
    """A number with its noun, as messages have it: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def kind_of(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "a device or a pipe"


@contextmanager
def errors_that_name(path: Path) -> Iterator[None]:
    """Within, the error of a full disk and its kind is an OSError with the path that is written, whoever raised it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or UNFINISHED in str(error.filename)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    except Exception as error:  # safetensors and torch have errors of their own
        code = errno.EFBIG if "File too large" in str(error) else errno.ENOSPC
        if code == errno.EFBIG or "No space left" in str(error) or "PytorchStreamWriter" in str(error):
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


@contextmanager
def only_writer(folder: Path, *, lock_name: str = ".lock") -> Iterator[None]:
    """Within, no other process may write this folder; refuses to wait for one that does."""
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} must be a folder to write into, got {kind_of(folder)}; name another")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / lock_name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{folder} must be written by one run at a time, got a second one; wait for the first, stop it, or choose "
            "another folder"
        ) from error
    except (NotImplementedError, OSError) as error:  # a file system without locks
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        logger.warning("%s cannot be locked (%s); start only one run at a time", folder, error)
    try:
        yield
    finally:
        lock.release()


class Line(NamedTuple):
    where: str  # "file, line 3", for messages
    record: dict[str, Any]


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    try:
        return need_file(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got {error}; convert the file") from error


def text_lines(path: Path) -> list[str]:
    """The lines of a file; only a newline ends one, and no other character that Unicode calls a separator."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines if lines[-1] else lines[:-1]


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; too deep a nesting is an error of the text like any other."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); give the file as it was published") from error


def read_lines(path: Path) -> list[Line]:
    """The records of a file of JSON lines, empty lines left out."""
    lines = []
    for number, text in enumerate(text_lines(path), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = parse_json(text)
            if "\\ud" in text.lower():  # half of a surrogate pair is valid JSON, but no text
                as_line(record).encode()
        except ValueError as error:
            raise ValueError(f"{where} is not valid JSON ({error}); fix or remove the line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where} must be an object, got {type(record).__name__}; write {{...}} on each line")
        lines.append(Line(where, record))
    return lines


def need_file(path: Path) -> Path:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(f"{path} must be a file, got {kind}; correct the path")
    return path


def need_field(line: Line, name: str) -> Any:
    if name not in line.record:
        found = ", ".join(line.record) or "no field"
        raise ValueError(f"{line.where} must have a field {name!r}, got {found}; add it to every record")
    return line.record[name]


def wrong_value(error: ValidationError, *, advice: str) -> str:
    """The first thing that pydantic found wrong, as one sentence; `advice`: what to do."""
    wrong = error.errors()[0]
    # names of fields and numbers of items, without the kinds that a value may have
    where = ".".join(str(key) for key in wrong["loc"] if key not in ("str", "list[str]"))
    if wrong["type"] == "value_error":  # said by a check of ours, with its own advice
        reason = wrong["msg"].removeprefix("Value error, ")
        return f"{where}: {reason}" if where else reason
    got, words = ascii(wrong["input"])[:80], re.sub(r", (got|unable to) .*| after validation", "", wrong["msg"])
    match wrong["type"]:
        case "missing":
            return f"{where} must be given, got none; {advice}"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{where} must be left out, as there is no such key, got {got}; {advice}"
        case "dataclass_type" | "dict_type" | "model_type":
            words = "must be a mapping of keys to values"
        case "list_type" | "tuple_type":
            words = "must be a list"
    return f"{where} {re.sub('^[A-Z][a-z]+ should', 'must', words)}, got {got}; {advice}"


def write_text(path: Path, text: str) -> None:
    """Write a whole file of text, or nothing."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Write a whole image, in the format that its ending names, or nothing."""
    from PIL import Image

    stream = io.BytesIO()
    image.save(stream, Image.registered_extensions()[path.suffix.lower()], **options)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(stream.getvalue())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_lines(path: Path, records: Iterable[Any]) -> None:
    write_text(path, "".join(as_line(record) for record in records))


def append_lines(path: Path, records: Iterable[Any]) -> None:
    """Add to a file of JSON lines; what is added is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with errors_that_name(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(as_line(record) for record in records))
        file.flush()
        os.fsync(file.fileno())


def kept_lines(path: Path) -> list[Line]:
    """What was added to a file of JSON lines so far; nothing where there is none."""
    drop_torn_line(path)
    return read_lines(path) if path.is_file() else []


def drop_torn_line(path: Path) -> None:
    """Take away the end of a line that a kill cut off, so that the next one begins on its own line."""
    if path.is_file() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def fingerprint_of(path: Path) -> str:
    """16 hex digits of the hash of a file, or of a folder: of the names and contents of its files of text and JSON.

    A folder without any of these, such as one of images, is identified by the names and sizes of its files.
    """
    digest = hashlib.sha256()
    if not path.is_dir():
        digest.update(need_file(path).read_bytes())
        return digest.hexdigest()[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    texts = [file for file in files if file.suffix in TEXT_ENDINGS]
    for file in texts or files:
        digest.update(str(file.relative_to(path)).encode())
        digest.update(file.read_bytes() if texts else str(file.stat().st_size).encode())
    return digest.hexdigest()[:16]


def version_of(package: str) -> str:
    """The installed version; a source tree that is not installed has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def tool_versions(*more: str) -> dict[str, str]:
    """Python and the packages, by name, and further ones that had a part in it."""
    return {"python": platform.python_version(), **{package: version_of(package) for package in (*PACKAGES, *more)}}
