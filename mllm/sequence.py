"""One dialogue to one sequence of ids, codes and labels, and many sequences to a packed batch.

In: messages whose images are codes already. Out: a `TokenSequence` in numpy, or a batch of tensors named as the model's
forward names them. Labels stand at the position of their own token (-100: not learned); the model shifts them. Training
and inference both build sequences here. Also the single home of image layouts and image sizes. Knows no model.

Letters: B rows, T positions, P image positions in reading order, I images, K codebooks, N positions of an image.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import ClassPart, CodesPart, ImageSize, Marker, Message, Segment, render
from mllm.vocabulary import encode_text

IGNORED = -100
"""Label of a token that is not learned."""
Grid = tuple[int, int]
"""(rows, columns) of image positions."""
Size = tuple[int, int]
"""(width, height) in pixels."""
MOST_NAMED_SIZES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLayout:
    """Which tokens an image is made of, in order. `image_token_id` stands where a position holds K codes. The decoding
    loop follows it token by token, so a size or a new line is never sampled.

        fixed   begin, image * N, end                         one grid for all images (the released model)
        bare    image * N                                     one grid, and nothing around it (class-conditional models)
        grid    begin, rows-size, columns-size, (image * columns, new-line) * rows, end       any grid up to `max_side`
    """

    kind: Literal["fixed", "grid", "bare"]
    begin_image_id: int
    end_image_id: int
    image_token_id: int
    default_grid: Grid
    new_line_id: int | None = None  # this and the next three: layout "grid" only; see MLLMConfig
    first_row_size_id: int | None = None
    first_column_size_id: int | None = None
    max_side: int | None = None
    begin_plan_id: int | None = None  # begins the plan before an image; None: there are no plans

    def __post_init__(self) -> None:
        grid_ids = (self.new_line_id, self.first_row_size_id, self.first_column_size_id, self.max_side)
        if self.kind == "grid" and None in grid_ids:
            raise ValueError(
                "the grid layout must have new_line_id, first_row_size_id, first_column_size_id and max_grid_side, got "
                f"{grid_ids}; set them in the model's config"
            )

    @classmethod
    def from_config(cls, config: MLLMConfig) -> Self:
        names = ("begin_image_id", "end_image_id", "image_token_id", "begin_plan_id")
        names += ("new_line_id", "first_row_size_id", "first_column_size_id")
        fields = {name: getattr(config, name) for name in names}
        grid = (config.grid_side, config.grid_side)
        return cls(kind=config.image_layout, default_grid=grid, max_side=config.max_grid_side, **fields)

    @property
    def opening_ids(self) -> set[int]:
        return {self.begin_image_id, self.begin_plan_id} - {None}

    def body_ids(self, grid: Grid) -> list[int]:
        """Everything between begin-of-image and end-of-image."""
        rows, columns = self.check(grid)
        new_line = [self.new_line_id] if self.kind == "grid" else []
        return self.size_ids(grid) + ([self.image_token_id] * columns + new_line) * rows

    def size_ids(self, grid: Grid) -> list[int]:
        """The tokens that say how large an image is; none in layouts of one grid."""
        rows, columns = self.check(grid)
        is_told = self.kind == "grid"
        return [self.first_row_size_id + rows - 1, self.first_column_size_id + columns - 1] if is_told else []

    def plan_opening(self, grid: Grid) -> list[int]:
        """What comes before the text of an image's plan: the marker and, where sizes differ, the size, as what can be
        where depends on it. Empty where there are no plans."""
        return [] if self.begin_plan_id is None else [self.begin_plan_id, *self.size_ids(grid)]

    def token_ids(self, grid: Grid) -> list[int]:
        body = self.body_ids(grid)
        return body if self.kind == "bare" else [self.begin_image_id, *body, self.end_image_id]

    def num_tokens(self, grid: Grid) -> int:
        return len(self.token_ids(grid))

    def check(self, grid: Grid) -> Grid:
        """The grid itself, if this layout can express it."""
        rows, columns = grid
        if self.kind != "grid" and (rows, columns) != tuple(self.default_grid):
            raise ValueError(
                f"image must have {self.default_grid[0]} x {self.default_grid[1]} positions, got {rows} x {columns}; "
                "resize it, or use image_layout 'grid'"
            )
        if self.kind == "grid" and not (1 <= rows <= self.max_side and 1 <= columns <= self.max_side):
            raise ValueError(
                f"image must have 1 to {self.max_side} rows and columns, got {rows} x {columns}; resize it"
            )
        return rows, columns

    def last_grid(self, token_ids: list[int]) -> Grid | None:
        """The grid of the last image among these ids; None where there is none, or all images have one grid."""
        starts = [index for index, token_id in enumerate(token_ids[:-2]) if token_id == self.begin_image_id]
        if self.kind != "grid" or not starts:
            return None
        rows_id, columns_id = token_ids[starts[-1] + 1 : starts[-1] + 3]
        return rows_id - self.first_row_size_id + 1, columns_id - self.first_column_size_id + 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSequence:
    token_ids_T: np.ndarray  # int64; image positions hold image_token_id
    labels_T: np.ndarray  # int64; -100 where not learned, and at image positions
    codes_PK: np.ndarray  # int64, reading order
    image_lengths_I: np.ndarray  # int64, positions of each image
    code_targets_P: np.ndarray  # bool, which image positions are learned

    def __len__(self) -> int:
        return len(self.token_ids_T)


def join(sequences: Sequence[TokenSequence]) -> TokenSequence:
    names = TokenSequence.__slots__
    return TokenSequence(**{name: np.concatenate([getattr(s, name) for s in sequences]) for name in names})


def plain_sequence(
    token_ids: Sequence[int] | np.ndarray,
    *,
    num_codebooks: int,
    images: Sequence[np.ndarray] = (),
    labels: Sequence[int] | np.ndarray | None = None,
    learned: bool = False,
) -> TokenSequence:
    """Tokens, with the codes (N, K) of their images. `labels`: default: nothing is learned. `learned`: whether the
    images are."""
    lengths_I = np.array([len(codes_NK) for codes_NK in images], dtype=np.int64)
    return TokenSequence(
        token_ids_T=np.array(token_ids, dtype=np.int64),
        labels_T=np.array([IGNORED] * len(token_ids) if labels is None else labels, dtype=np.int64),
        codes_PK=np.concatenate([np.zeros((0, num_codebooks), dtype=np.int64), *images]).astype(np.int64),
        image_lengths_I=lengths_I,
        code_targets_P=np.full(lengths_I.sum(), learned),
    )


def build_sequence(
    messages: Sequence[Message], *, tokenizer: PreTrainedTokenizerBase, config: MLLMConfig, **options: Any
) -> TokenSequence:
    """Encode a dialogue in the config's prompt style and image layout (see `render` for the options)."""
    return encode_segments(render(messages, config.prompt_style, **options), tokenizer=tokenizer, config=config)


def encode_segments(
    segments: Sequence[Segment], *, tokenizer: PreTrainedTokenizerBase, config: MLLMConfig
) -> TokenSequence:
    layout, pieces = ImageLayout.from_config(config), [plain_sequence([], num_codebooks=config.num_codebooks)]
    for segment in segments:
        is_learned = segment.supervised
        match segment.content:
            case Marker.BOS:
                token_ids, is_learned = [config.bos_token_id], False
            case Marker.EOS:
                token_ids = [config.eos_token_id]
            case Marker.PLAN:
                if config.begin_plan_id is None:
                    raise ValueError("images must have no plan in a model without plans, got one; leave it out")
                token_ids = [config.begin_plan_id]
            case str(text):
                token_ids = encode_text(tokenizer, text)
            case ClassPart(index):
                token_ids, is_learned = [config.class_token_id(index)], False
            case ImageSize(grid):
                token_ids, is_learned = layout.size_ids(grid), False
            case CodesPart():
                pieces.append(_encode_image(segment, layout, config))
                continue
            case _:
                raise TypeError(f"a segment must be text, a marker, a class, a size or codes; got {segment.content!r}")
        labels = token_ids if is_learned else None
        pieces.append(plain_sequence(token_ids, labels=labels, num_codebooks=config.num_codebooks))
    return join(pieces)


def _encode_image(segment: Segment, layout: ImageLayout, config: MLLMConfig) -> TokenSequence:
    """One image with what frames it. Of a learned image the begin token is learned; what follows by the layout is
    forced when decoding, so it is not, except in upstream's style, which learns the end as well."""
    part = segment.content
    found, largest = len(part.codes_KN), part.codes_KN.max(initial=0)
    if found != config.num_codebooks or largest >= config.codebook_size:
        raise ValueError(
            f"an image must have codes of {config.num_codebooks} codebooks of {config.codebook_size}, got {found} with "
            f"codes up to {largest}; encode it with the model's own image tokenizer"
        )
    token_ids = np.array(layout.body_ids(part.grid) if segment.bare else layout.token_ids(part.grid))
    labels = np.full(len(token_ids), IGNORED)
    if segment.supervised:
        is_learned = slice(None) if config.prompt_style == "unitok" else slice(1)
        labels[is_learned] = token_ids[is_learned]
        labels[labels == layout.image_token_id] = IGNORED
    return plain_sequence(
        token_ids,
        labels=labels,
        images=[part.codes_KN.T],
        learned=segment.supervised,
        num_codebooks=config.num_codebooks,
    )


def extend_sequence(sequence: TokenSequence, token_ids: Sequence[int], images: Sequence[CodesPart]) -> TokenSequence:
    """A prompt with the beginning of its answer: tokens, image positions included, and the images at them."""
    codes, num_codebooks = [image.codes_KN.T for image in images], sequence.codes_PK.shape[1]
    return join([sequence, plain_sequence(token_ids, images=codes, num_codebooks=num_codebooks)])


def cut_sequence(sequence: TokenSequence, length: int, *, config: MLLMConfig) -> list[TokenSequence] | None:
    """A long document in pieces of at most `length` tokens, cut between tokens but never inside an image. None where an
    image alone is longer. Pieces after the first have no begin-of-sequence token."""
    may_cut_T = cuttable(sequence, config)
    pieces, begin = [], 0
    while begin < len(sequence):
        end = min(begin + length, len(sequence))
        while not may_cut_T[end]:
            end -= 1
        if end == begin:
            return None
        pieces.append(take(sequence, begin, end, config=config))
        begin = end
    return pieces


def cuttable(sequence: TokenSequence, config: MLLMConfig) -> np.ndarray:
    """Whether a sequence may be cut before each of its tokens, and at its end (bool, T + 1)."""
    token_ids_T = sequence.token_ids_T
    # how many images have begun but not ended after each token: only between images it is 0
    inside_T = np.cumsum(token_ids_T == config.begin_image_id) - np.cumsum(token_ids_T == config.end_image_id)
    (positions_P,) = np.nonzero(token_ids_T == config.image_token_id)
    last_I = np.cumsum(sequence.image_lengths_I) - 1
    inside_T[np.delete(positions_P, last_I)] = 1  # also where nothing frames images (layout "bare")
    return np.concatenate([[True], inside_T == 0])


def begin_of(sequence: TokenSequence, length: int, *, config: MLLMConfig) -> TokenSequence:
    (ends,) = np.nonzero(cuttable(sequence, config)[: length + 1])
    return take(sequence, 0, int(ends[-1]), config=config)


def take(sequence: TokenSequence, begin: int, end: int, *, config: MLLMConfig) -> TokenSequence:
    is_image_T = sequence.token_ids_T == config.image_token_id
    first, last = is_image_T[:begin].sum(), is_image_T[:end].sum()
    ends_I = np.cumsum(sequence.image_lengths_I)
    return TokenSequence(
        token_ids_T=sequence.token_ids_T[begin:end],
        labels_T=sequence.labels_T[begin:end],
        codes_PK=sequence.codes_PK[first:last],
        image_lengths_I=sequence.image_lengths_I[(ends_I > first) & (ends_I <= last)],
        code_targets_P=sequence.code_targets_P[first:last],
    )


PackedBatch = dict[str, Tensor]
"""input_ids, labels and position_ids, all (B, T); codes (P, K), image_lengths (I,) and code_targets (P,), in reading
order. Keyword arguments of the model. Positions restart at each sample, which tells the samples of a row apart; each
token of the padding has position 0."""


def pack_rows(rows: Sequence[Sequence[TokenSequence]], *, length: int, pad_token_id: int) -> PackedBatch:
    """One batch of rows that are filled already (`take_row`); images are never cut."""
    ordered = [sequence for row in rows for sequence in row]
    if not ordered:
        raise ValueError("a batch must have at least one sequence, got none; add one first")
    fills = {"input_ids": pad_token_id, "labels": IGNORED, "position_ids": 0}
    arrays = {name: np.full((len(rows), length), fill, dtype=np.int64) for name, fill in fills.items()}
    for number, row in enumerate(rows):
        begin = 0
        for sequence in row:
            place = number, slice(begin, begin + len(sequence))
            arrays["input_ids"][place], arrays["labels"][place] = sequence.token_ids_T, sequence.labels_T
            arrays["labels"][number, begin] = IGNORED  # nothing comes before the first token of a sample
            arrays["position_ids"][place] = np.arange(len(sequence))
            begin += len(sequence)
    together = join(ordered)
    arrays |= {"codes": together.codes_PK, "image_lengths": together.image_lengths_I}
    arrays["code_targets"] = together.code_targets_P
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def sample_numbers(position_ids_BT: Tensor) -> Tensor:
    """Which sample of its row each token of a packed batch belongs to, from 1 (B, T); 0 is padding. A token is one of a
    sample (of two tokens or more) where its own position or that of the next token is not 0."""
    is_later_BT = position_ids_BT > 0
    is_sample_BT = is_later_BT | F.pad(is_later_BT[:, 1:], (0, 1))
    return ((position_ids_BT == 0) & is_sample_BT).cumsum(dim=1) * is_sample_BT


def take_row(lengths: Sequence[int], room: int) -> list[int]:
    """Which of the waiting sequences fill a row best: the first of them, so that none waits forever, and those of the
    others that leave the least room. Indices in order; of equal fillings the one of earlier sequences. Exact (subset
    sum): bit n of a number says whether the first sequence and some of those so far add up to n. Always taking the
    longest that fits leaves 6 % of rows of 2048 empty where every sample is a captioned image, this 0.3 %."""
    if not lengths:
        return []
    row_sums = (1 << (room + 1)) - 1
    reached = [1 << lengths[0]]
    for length in lengths[1:]:
        reached.append((reached[-1] | reached[-1] << length) & row_sums)
    total = reached[-1].bit_length() - 1
    taken = []
    for index in range(len(lengths) - 1, 0, -1):
        if not reached[index - 1] >> total & 1:
            taken.append(index)
            total -= lengths[index]
    return [0, *reversed(taken)]


def pack(sequences: Iterable[TokenSequence], *, length: int, pad_token_id: int) -> PackedBatch:
    """One batch of as many rows of `length` as the sequences need, each in the first row that has room."""
    rows: list[list[TokenSequence]] = []
    for sequence in sequences:
        if len(sequence) > length:
            raise ValueError(
                f"a sequence must have at most {length} tokens to fit into a row, got {len(sequence)}; "
                "raise the length of rows or leave the sample out"
            )
        row = next((row for row in rows if sum(map(len, row)) + len(sequence) <= length), [])
        if not row:
            rows.append(row)
        row.append(sequence)
    return pack_rows(rows, length=length, pad_token_id=pad_token_id)


def default_size(config: MLLMConfig) -> Size:
    return config.image_size, config.image_size


def supported_sizes(config: MLLMConfig) -> list[Size]:
    """All sizes of this checkpoint, the default first if it is one of them."""
    if config.sizes is not None:
        sizes = [(width, height) for width, height in config.sizes]
    elif config.image_layout == "grid":
        sides = range(1, config.max_grid_side + 1)
        sizes = [(columns * config.patch_size, rows * config.patch_size) for rows, columns in product(sides, sides)]
    else:
        sizes = [default_size(config)]
    return sorted(sizes, key=lambda size: size != default_size(config))


def grid_of(size: Size, config: MLLMConfig) -> Grid:
    """The grid of a size, if this checkpoint has it."""
    sizes = supported_sizes(config)
    is_whole = isinstance(size, tuple | list) and all(isinstance(side, Integral) for side in size)
    if not is_whole or tuple(size) not in sizes:
        some = " or ".join(f"{width}x{height}" for width, height in sizes)
        if len(sizes) > MOST_NAMED_SIZES:
            some = f"multiples of {config.patch_size} up to {config.max_grid_side * config.patch_size}"
        found = "x".join(map(str, size)) if isinstance(size, tuple | list) else repr(size)
        raise ValueError(f"size must be one of this model's, got {found}; use {some}")
    return size[1] // config.patch_size, size[0] // config.patch_size


def trained_grids(config: MLLMConfig) -> list[Grid]:
    """The grids of the sizes that the config names, else that of the default size."""
    return [grid_of(size, config) for size in (supported_sizes(config) if config.sizes else [default_size(config)])]


def best_sizes(config: MLLMConfig) -> list[Size]:
    """Those that images are encoded at: the sizes that the config names, else those up to the default's area."""
    sizes = supported_sizes(config)
    if config.sizes is not None:
        return sizes
    default_area = default_size(config)[0] * default_size(config)[1]
    return [size for size in sizes if size[0] * size[1] <= default_area] or sizes


def nearest_size(image_size: Size, sizes: Sequence[Size]) -> Size:
    """The size whose shape is nearest to an image's, and of these the largest."""
    wanted = math.log(image_size[0] / image_size[1])
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - wanted), 6), -size[0] * size[1]))
