"""The work of a preparation: the records of one unit to the rows of one shard.

Pictures are opened and resized by threads while the image tokenizer encodes those before them. Which pictures share a
batch depends on the unit alone, so a unit that is made again comes out the same.

Letters: B pictures, H W pixels, K codebooks, N positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mllm.conversation import CodesPart, Message
from mllm.sizes import Size, nearest_size
from tokenizer.image_processor import ImageProcessor
from tokenizer.model import UniTok
from train.data.importers.containers import Item, is_entered_anywhere, read_items
from train.data.importers.formats import IMPORTERS
from train.data.prepare_plan import Unit
from train.data.records import BadRecord, Picture, Record
from train.data.shard_format import LeftOut, Row

RECORDS_AT_ONCE = 256
"""Records without pictures that are read before the next are begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitOptions:
    """How records are read and pictures are encoded."""

    sizes: tuple[Size, ...]
    """(width, height) that pictures may be encoded at; each takes the one nearest to its shape."""
    preparation: str = "cover"
    """How a picture gets to its size; a name in tokenizer/image_processor.py."""
    pictures: Path | None = None
    """Folder of relative picture paths. None: the folder of the record file."""
    skip_broken: bool = False
    """Leave broken records out and count them; otherwise the first one ends the preparation."""
    batch_size: int = 64
    num_workers: int = 4
    """Threads that open pictures."""


Loaded = tuple[np.ndarray, Size]
Draft = tuple[Item, Record, list[Future[Loaded]]]


class UnitPreparer:
    """Makes rows of units with one image tokenizer."""

    def __init__(self, tokenizer: UniTok, options: UnitOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.reading: tuple[str, int, Iterator[Item]] | None = None  # file, number of its next item, items

    def prepare(
        self, unit: Unit, *, advance: Callable[[int], object] = lambda count: None
    ) -> tuple[list[Row], list[LeftOut]]:
        """The rows of a unit, in order, and what was left out.

        Args:
            advance: is told how many more records are done.

        Raises:
            ValueError: a broken record, with its file and place, unless `skip_broken`.
        """
        rows: list[Row] = []
        left_out: list[LeftOut] = []
        with ThreadPoolExecutor(self.options.num_workers) as pool:
            waiting: list[Draft] = []
            for drafts in self._drafts(unit, pool, left_out):  # while these are opened, those before are encoded
                rows += self._finish(waiting, unit, left_out)
                advance(len(waiting))
                waiting = drafts
            rows += self._finish(waiting, unit, left_out)
        return rows, left_out

    def _drafts(self, unit: Unit, pool: ThreadPoolExecutor, left_out: list[LeftOut]) -> Iterator[list[Draft]]:
        """Records with their pictures on the way, as many as fill a batch."""
        path = Path(unit.path)
        folder = self.options.pictures or (path if path.is_dir() else path.parent)
        drafts: list[Draft] = []
        num_pictures = 0
        for item in self._items(unit):
            if isinstance(item.value, bytes) and not item.value.strip():
                continue
            try:
                record = IMPORTERS[unit.format](item.fields(), folder)
                self._check_codes(record)
            except BadRecord as error:
                self._leave_out(unit, item, error, left_out)
                continue
            drafts.append((item, record, [pool.submit(self._load, picture) for picture in record.pictures]))
            num_pictures += len(record.pictures)
            if num_pictures >= self.options.batch_size or len(drafts) >= RECORDS_AT_ONCE:
                yield drafts
                drafts, num_pictures = [], 0
        yield drafts

    def _items(self, unit: Unit) -> Iterator[Item]:
        """The unit's items. What is compressed has one entry, so it is read on from the unit before."""
        path = Path(unit.path)
        if is_entered_anywhere(path):
            yield from islice(read_items(path, offset=unit.offset, number=unit.number), unit.count)
            return
        before, self.reading = self.reading, None  # none while items are on their way, or if one of them is broken
        if before is None or before[0] != unit.path or before[1] > unit.number:
            before = (unit.path, 0, read_items(path))
        yield from islice(before[2], unit.number - before[1], unit.number - before[1] + unit.count)
        self.reading = (unit.path, unit.number + unit.count, before[2])

    def _finish(self, drafts: list[Draft], unit: Unit, left_out: list[LeftOut]) -> list[Row]:
        sound = []
        for item, record, futures in drafts:
            try:
                sound.append((item, record, [future.result() for future in futures]))
            except BadRecord as error:
                self._leave_out(unit, item, error, left_out)
        codes = iter(self._encode([loaded for _, _, pictures in sound for loaded in pictures]))
        return [Row(record.kind, _messages(record, codes), unit.path, item.place) for item, record, _ in sound]

    def _leave_out(self, unit: Unit, item: Item, error: BadRecord, left_out: list[LeftOut]) -> None:
        if not self.options.skip_broken:
            raise ValueError(f"{unit.path}, {item.place}: {error} (or leave such records out with --skip-broken)")
        left_out.append(LeftOut(unit.path, item.place, str(error)))

    def _check_codes(self, record: Record) -> None:
        sizes = self.tokenizer.config
        for part in (part for turn in record.turns for part in turn.parts if isinstance(part, CodesPart)):
            if part.codes_KN.shape[0] != sizes.num_codebooks or part.codes_KN.max(initial=0) >= sizes.codebook_size:
                raise BadRecord(
                    f"the record's codes are not this image tokenizer's: found {part.codes_KN.shape[0]} codebooks with "
                    f"codes up to {part.codes_KN.max(initial=0)}, it has {sizes.num_codebooks} of "
                    f"{sizes.codebook_size}; name the one that made them"
                )

    def _load(self, picture: Picture) -> Loaded:
        """A picture at its size, as bytes (H, W, 3)."""
        image: Image.Image = picture.open()
        width, height = nearest_size(image.size, self.options.sizes)
        processor = ImageProcessor(width=width, height=height, preparation=self.options.preparation)
        try:
            return np.asarray(processor.prepare(image)), (width, height)
        except (ValueError, OSError) as error:  # such as a shape that is nothing but a line
            size = f"{image.width} x {image.height}"
            raise BadRecord(f"a picture of {size} pixels cannot be resized: {error}; crop it") from error

    @torch.inference_mode()
    def _encode(self, loaded: Sequence[Loaded]) -> list[CodesPart]:
        """Codes of pictures in order, encoded in batches of one size."""
        by_size: dict[Size, list[int]] = defaultdict(list)
        for index, (_, size) in enumerate(loaded):
            by_size[size].append(index)
        parts: dict[int, CodesPart] = {}
        for indices in by_size.values():
            for begin in range(0, len(indices), self.options.batch_size):
                batch = indices[begin : begin + self.options.batch_size]
                pixels_BHW3 = torch.from_numpy(np.stack([loaded[index][0] for index in batch]))
                pixels_B3HW = pixels_BHW3.to(self.tokenizer.device).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
                codes_BKN = self.tokenizer.encode(pixels_B3HW).cpu().numpy().astype(np.uint16)
                grid = self.tokenizer.grid_of(pixels_B3HW)
                parts.update(
                    (index, CodesPart(codes_KN, grid)) for index, codes_KN in zip(batch, codes_BKN, strict=True)
                )
        return [parts[index] for index in range(len(loaded))]


def _messages(record: Record, codes: Iterator[CodesPart]) -> tuple[Message, ...]:
    """The record's messages, with codes in place of its pictures."""
    turns = []
    for turn in record.turns:
        parts = (next(codes) if isinstance(part, Picture) else part for part in turn.parts)
        turns.append(Message(turn.role, tuple(parts)))
    return tuple(turns)
