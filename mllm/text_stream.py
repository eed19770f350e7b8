"""Text of ids that come one by one: what is new and will not change any more.

A character may take several byte tokens, and outer spaces do not belong to an answer, so both are held back.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class TextStream:
    """One run of text; all deltas together are the stripped text of the ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.num_shown = 0

    def add(self, token_id: int) -> str:
        """What can be shown now that this id has come; often nothing."""
        self.ids.append(token_id)
        text = self.text()
        return "" if text.endswith(INCOMPLETE) else self._advance(text)

    def finish(self) -> str:
        """What is left at the end of the run, such as bytes that never became a character; a new run begins."""
        rest = self._advance(self.text())
        self.ids, self.num_shown = [], 0
        return rest

    def text(self) -> str:
        """All text of this run."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _advance(self, text: str) -> str:
        new, self.num_shown = text[self.num_shown :], max(self.num_shown, len(text))
        return new
