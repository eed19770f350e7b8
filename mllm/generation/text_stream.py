"""Text of ids that come one by one: what is new and will not change any more.

A character may take several byte tokens, which are decoded as one run, and outer spaces do not belong to an answer; so
both are held back.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from mllm.vocabulary import decode_text

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TextStream:
    """One run of text; all deltas together are the stripped text of the ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.num_shown = 0

    def add(self, token_id: int) -> str:
        """What can be shown now that this id has come; often nothing."""
        self.ids.append(token_id)
        if BYTE_TOKEN.fullmatch(self.tokenizer.convert_ids_to_tokens(token_id) or ""):
            return ""
        text = decode_text(self.tokenizer, self.ids)
        return "" if text.endswith(INCOMPLETE) else self._advance(text)

    def finish(self) -> str:
        """What was held back at the end of the run; a new run begins."""
        rest = self._advance(decode_text(self.tokenizer, self.ids))
        self.ids, self.num_shown = [], 0
        return rest

    def _advance(self, text: str) -> str:
        new, self.num_shown = text[self.num_shown :], max(self.num_shown, len(text))
        return new
