"""One dialogue to one sequence of ids, codes and labels, for training and inference alike.

In: messages whose pictures are codes already. Out: a `Sequence` in numpy. Many of them are put into rows by
mllm/packing.py. Labels stand at the place of their own token (-100: not learned); the model shifts them.

Letters: T places, P image positions, I images, K codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from mllm.config import MLLMConfig
from mllm.conversation import AnswerKind, ClassPart, CodesPart, Marker, Message, PictureSize, Segment, render
from mllm.layout import ImageLayout
from mllm.vocabulary import encode_text

IGNORED = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSequence:
    """One encoded sample or prompt."""

    token_ids_T: np.ndarray  # int64; image positions hold image_token_id
    labels_T: np.ndarray  # int64; -100 where not learned, and at image positions
    codes_PK: np.ndarray  # int64, reading order
    image_lengths_I: np.ndarray  # int64, positions of each image
    code_targets_P: np.ndarray  # bool, which image positions are learned

    def __len__(self) -> int:
        return len(self.token_ids_T)


@dataclass(slots=True)
class _Draft:
    """A sequence while it is written."""

    token_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)

    def add_tokens(self, token_ids: Sequence[int], *, supervised: bool) -> None:
        self.token_ids += token_ids
        self.labels += token_ids if supervised else [IGNORED] * len(token_ids)


def build_sequence(
    messages: Sequence[Message],
    *,
    tokenizer: PreTrainedTokenizerBase,
    config: MLLMConfig,
    add_generation_prompt: bool = False,
    answer: AnswerKind | None = None,
) -> TokenSequence:
    """Encode a dialogue in the config's prompt style and image layout (see mllm/conversation.py for the arguments)."""
    segments = render(messages, config.prompt_style, add_generation_prompt=add_generation_prompt, answer=answer)
    return encode_segments(segments, tokenizer=tokenizer, config=config)


def encode_segments(
    segments: Sequence[Segment], *, tokenizer: PreTrainedTokenizerBase, config: MLLMConfig
) -> TokenSequence:
    """The ids, labels and codes of segments."""
    layout, draft = ImageLayout.from_config(config), _Draft()
    for segment in segments:
        match segment.content:
            case Marker.BOS:
                draft.add_tokens([config.bos_token_id], supervised=False)
            case Marker.EOS:
                draft.add_tokens([config.eos_token_id], supervised=segment.supervised)
            case Marker.OUTLINE:
                if config.begin_outline_id is None:
                    raise ValueError("this model writes no outlines: found one beside a picture; leave it out")
                draft.add_tokens([config.begin_outline_id], supervised=segment.supervised)
            case str(text):
                draft.add_tokens(encode_text(tokenizer, text), supervised=segment.supervised)
            case ClassPart(index):
                draft.add_tokens([config.class_token_id(index)], supervised=False)
            case PictureSize(grid):
                draft.add_tokens(layout.size_ids(grid), supervised=False)
            case CodesPart():
                _add_image(draft, segment, layout=layout, config=config)
            case _:
                raise TypeError(f"a segment must be text, a marker, a class, a size or codes; got {segment.content!r}")
    codes = draft.images or [np.zeros((0, config.num_codebooks))]
    return TokenSequence(
        token_ids_T=np.array(draft.token_ids, dtype=np.int64),
        labels_T=np.array(draft.labels, dtype=np.int64),
        codes_PK=np.concatenate(codes).astype(np.int64),
        image_lengths_I=np.array([len(image) for image in draft.images], dtype=np.int64),
        code_targets_P=np.concatenate([np.zeros(0, dtype=bool), *draft.targets]),
    )


def extend_sequence(sequence: TokenSequence, token_ids: Sequence[int], images: Sequence[CodesPart]) -> TokenSequence:
    """A prompt with the beginning of its answer: tokens, image positions included, and the images at them."""
    added = [image.codes_KN.T.astype(np.int64) for image in images]
    return TokenSequence(
        token_ids_T=np.append(sequence.token_ids_T, np.array(token_ids, dtype=np.int64)),
        labels_T=np.append(sequence.labels_T, np.full(len(token_ids), IGNORED)),
        codes_PK=np.concatenate([sequence.codes_PK, *added]),
        image_lengths_I=np.append(sequence.image_lengths_I, np.array([len(codes) for codes in added], dtype=np.int64)),
        code_targets_P=np.append(sequence.code_targets_P, np.zeros(sum(map(len, added)), dtype=bool)),
    )


def cut_sequence(sequence: TokenSequence, length: int, *, config: MLLMConfig) -> list[TokenSequence] | None:
    """A long document in pieces of at most `length` places, cut between tokens but never inside an image.

    None where an image alone is longer. Pieces after the first have no begin-of-sequence token.
    """
    token_ids_T = sequence.token_ids_T
    # how many images have begun but not ended after each place: only between images it is 0
    inside_T = np.cumsum(token_ids_T == config.begin_image_id) - np.cumsum(token_ids_T == config.end_image_id)
    (positions_P,) = np.nonzero(token_ids_T == config.image_token_id)
    last_I = np.cumsum(sequence.image_lengths_I) - 1
    inside_T[np.delete(positions_P, last_I)] = 1  # also where nothing frames images (layout "bare")
    may_cut_T = np.concatenate([[True], inside_T == 0])
    pieces, begin = [], 0
    while begin < len(sequence):
        end = min(begin + length, len(sequence))
        while not may_cut_T[end]:
            end -= 1
        if end == begin:
            return None
        pieces.append(_slice(sequence, begin, end, image_token_id=config.image_token_id))
        begin = end
    return pieces


def _slice(sequence: TokenSequence, begin: int, end: int, *, image_token_id: int) -> TokenSequence:
    """The places from `begin` to `end`, which cut no image."""
    first, last = ((sequence.token_ids_T[:place] == image_token_id).sum() for place in (begin, end))
    ends_I = np.cumsum(sequence.image_lengths_I)
    return TokenSequence(
        token_ids_T=sequence.token_ids_T[begin:end],
        labels_T=sequence.labels_T[begin:end],
        codes_PK=sequence.codes_PK[first:last],
        image_lengths_I=sequence.image_lengths_I[(ends_I > first) & (ends_I <= last)],
        code_targets_P=sequence.code_targets_P[first:last],
    )


def _add_image(draft: _Draft, segment: Segment, *, layout: ImageLayout, config: MLLMConfig) -> None:
    """One image with what frames it. Of a learned image the begin token is learned; what follows by the layout is
    forced when decoding, so it is not, except in upstream's style, which learns the end as well."""
    part = segment.content
    if part.codes_KN.shape[0] != config.num_codebooks:
        raise ValueError(
            f"an image has the wrong number of codebooks: found {part.codes_KN.shape[0]}, the model has "
            f"{config.num_codebooks}; encode it with the model's own image tokenizer"
        )
    token_ids = layout.body_ids(part.grid) if segment.bare else layout.token_ids(part.grid)
    labels = np.full(len(token_ids), IGNORED)
    if segment.supervised:
        is_learned = slice(None) if config.prompt_style == "unitok" else slice(1)
        labels[is_learned] = token_ids[is_learned]
        labels[labels == layout.image_token_id] = IGNORED
    draft.token_ids += token_ids
    draft.labels += labels.tolist()
    draft.images.append(part.codes_KN.T)
    draft.targets.append(np.full(part.codes_KN.shape[1], segment.supervised))
