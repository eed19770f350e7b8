"""Records of Liquid and UniTok, whose pictures are codes already: `data_type`, `text`, `vqcode_*`.

    T2I              `text` (short) or `InVL_caption` (long) to the picture
    I2T              the picture to `InVL_caption` or `text`
    image_text       either way (Liquid)
    mllm_pretrain, mllm_finetune     `text` is a JSON list of LLaVA turns
    anything else    `text` is a document

An unused field holds the string "no". Codes are a JSON string of K lists of N numbers (or one list: one codebook).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from mllm.conversation import CodesPart, TextPart
from train.data.importers.llava import turns_of
from train.data.records import BadRecord, Record, Turn, chat_record, document_record, pair_record

UNUSED = "no"
CODES_PREFIX = "vqcode_"
LARGEST_CODE = 65_535  # shards hold uint16


def read_codes_record(fields: dict[str, Any]) -> Record:
    """The record of one line."""
    kind = fields.get("data_type")
    captions = [str(fields[key]) for key in ("text", "InVL_caption") if fields.get(key, UNUSED) not in (UNUSED, None)]
    codes = read_codes(fields)
    match kind:
        case "T2I" | "image_text" | "I2T" if codes is None:
            raise BadRecord(f"a record of kind {kind} has no codes: found {sorted(fields)}; add {CODES_PREFIX}256")
        case "T2I":
            return pair_record(captions, codes, kind="draw")
        case "image_text":
            return pair_record(captions, codes)
        case "I2T":
            if not captions:
                raise BadRecord("a picture has no caption: found 'no' in text and InVL_caption; write one")
            return chat_record([Turn("user", (codes,)), Turn("assistant", (TextPart(captions[-1]),))])
        case "mllm_pretrain" | "mllm_finetune":
            return chat_record(turns_of(_from_json(fields.get("text"), "text"), [] if codes is None else [codes]))
        case _:
            return document_record([TextPart(caption) for caption in captions[:1]])


def read_codes(fields: dict[str, Any]) -> CodesPart | None:
    """The codes of a record, with their grid."""
    names = [name for name in fields if name.startswith(CODES_PREFIX) and fields[name] not in (UNUSED, None, "", [])]
    if not names:
        return None
    values = fields[names[0]]
    try:
        codes = np.atleast_2d(np.array(_from_json(values, names[0]) if isinstance(values, str) else values))
    except ValueError as error:
        raise BadRecord(f"{names[0]} is no table of codes: {error}; give K lists of the same length") from error
    if (
        codes.ndim != 2
        or codes.dtype.kind not in "iu"
        or codes.min(initial=0) < 0
        or codes.max(initial=0) > LARGEST_CODE
    ):
        raise BadRecord(f"{names[0]} is no table of codes: found shape {codes.shape}; give K lists of whole numbers")
    return CodesPart(codes.astype(np.uint16), _grid(codes.shape[1], fields))


def _grid(num_positions: int, fields: dict[str, Any]) -> tuple[int, int]:
    """A square, or the shape of `width` and `height` in pixels."""
    side = math.isqrt(num_positions)
    if side * side == num_positions:
        return side, side
    try:
        width, height = int(fields["width"]), int(fields["height"])
        patch = math.isqrt(width * height // num_positions)
        rows, columns = height // patch, width // patch
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        rows = columns = 0
    if rows * columns != num_positions:
        raise BadRecord(
            f"{num_positions} positions are no square: found width {fields.get('width')!r} and height "
            f"{fields.get('height')!r}; give both in pixels"
        )
    return rows, columns


def _from_json(text: Any, name: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{name} is no JSON: {error}; mend the record") from error
