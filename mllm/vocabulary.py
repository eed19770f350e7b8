"""The text tokenizer and the special tokens that images need: names, ids, loading, encoding, extending.

A Llama-style SentencePiece tokenizer with byte fallback, so that no text is unencodable. Every piece of a dialogue is
encoded on its own (`encode_text`), so its ids do not depend on where it stands; strings that look like special tokens
are plain text there. Knows no prompts and no images.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sentencepiece
import torch
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

BEGIN_IMAGE, END_IMAGE, IMAGE = "<begin_image>", "<end_image>", "<image>"
NEW_LINE, ROWS, COLUMNS = "<new_line>", "<rows_{}>", "<columns_{}>"
CLASS, NO_CLASS = "<class_{}>", "<no_class>"
PLAN, OLD_PLAN = "<plan>", "<outline>"
"""The second is what tokenizers of earlier versions call it."""
MODEL_FILE = "tokenizer.model"


class Vocabulary(SimpleNamespace):
    """Ids by name: `size`, and the fields of MLLMConfig that say which tokens are special."""

    def config_fields(self) -> dict[str, Any]:
        """Keyword arguments for MLLMConfig; the size belongs into its text_config as `vocab_size`."""
        return {name: value for name, value in vars(self).items() if name != "size"}


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, max_grid_side: int | None = None, num_classes: int = 0, plans: bool = False
) -> Vocabulary:
    """Add the image tokens to the tokenizer (changed in place; adding twice changes nothing).

    Args:
        max_grid_side: also add the tokens of the "grid" layout, with sizes 1 to this.
        num_classes: also add a token for each of so many classes, and one for "no class".
        plans: also add the token that begins the plan of an image (mllm/conversation.py).
    """
    known = tokenizer.get_vocab()
    plan = OLD_PLAN if OLD_PLAN in known else PLAN
    sides = range(1, (max_grid_side or 0) + 1)
    names = [BEGIN_IMAGE, END_IMAGE, IMAGE]
    if max_grid_side:
        names += [NEW_LINE, *(ROWS.format(side) for side in sides), *(COLUMNS.format(side) for side in sides)]
    if num_classes:
        names += [*(CLASS.format(index) for index in range(num_classes)), NO_CLASS]
    if plans:
        names.append(plan)
    tokenizer.add_tokens([name for name in names if name not in known], special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token
    ids = tokenizer.get_vocab()
    return Vocabulary(
        size=len(tokenizer),
        **{name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        begin_image_id=ids[BEGIN_IMAGE],
        end_image_id=ids[END_IMAGE],
        image_token_id=ids[IMAGE],
        new_line_id=ids[NEW_LINE] if max_grid_side else None,
        first_row_size_id=ids[ROWS.format(1)] if max_grid_side else None,
        first_column_size_id=ids[COLUMNS.format(1)] if max_grid_side else None,
        max_grid_side=max_grid_side,
        first_class_id=ids[CLASS.format(0)] if num_classes else None,
        num_classes=num_classes,
        begin_plan_id=ids[plan] if plans else None,
    )


def added_ids(names: Any) -> set[int]:
    """The ids of the tokens for images, plans and classes, of a Vocabulary or of a model's config."""
    ids = {names.begin_image_id, names.end_image_id, names.image_token_id, names.new_line_id, names.begin_plan_id}
    for first in (names.first_row_size_id, names.first_column_size_id):
        if first is not None:
            ids.update(range(first, first + names.max_grid_side))
    if names.first_class_id is not None:
        ids.update(range(names.first_class_id, names.first_class_id + names.num_classes + 1))
    return ids - {None}


@torch.no_grad()
def fill_new_rows(layers: Iterable[Any], new_ids: Iterable[int]) -> None:
    """Rows of new ids become the mean of the rows before the first of them (tied layers are filled once)."""
    new = sorted(new_ids)
    for weight in {id(layer.weight): layer.weight for layer in layers}.values():
        weight[new] = weight[: new[0]].mean(dim=0)


def load_text_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, or a new one from a SentencePiece model file (tokenizer.model). No network."""
    path = Path(path)
    model_file = path / MODEL_FILE if path.is_dir() else path
    if path.is_dir() and (path / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    if not model_file.is_file():
        raise FileNotFoundError(
            f"the text tokenizer must be {MODEL_FILE} or tokenizer.json, got neither at {path}; "
            "give a SentencePiece model or a folder that holds one"
        )
    return LlamaTokenizer.from_pretrained(
        model_file.parent,
        vocab_file=str(model_file),
        add_prefix_space=_adds_dummy_prefix(model_file),
        legacy=False,
        local_files_only=True,
    )


def _adds_dummy_prefix(model_file: Path) -> bool:
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).encode("a", out_type=str)
    except RuntimeError as error:
        raise ValueError(f"{model_file} must be a SentencePiece model, got {error}; download it again") from error
    return pieces[0].startswith("\u2581")


def save_text_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write the tokenizer's files, and the SentencePiece model it came from, into a model folder."""
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    named = tokenizer.init_kwargs.get("vocab_file")
    source = Path(named) if named else Path(tokenizer.name_or_path) / MODEL_FILE
    if source.is_file() and source.resolve() != (folder / MODEL_FILE).resolve():
        shutil.copyfile(source, folder / MODEL_FILE)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of one piece of text: no bos or eos, and no special token even where the text spells one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text must be Unicode, got half of a surrogate pair in {text!r}; fix it") from error
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def decode_text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """The text of sampled ids, without special tokens and outer spaces."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
