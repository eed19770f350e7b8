"""A folder in the released layout (`mini_gemini`): found, opened, and checked tensor by tensor against our model.

In: a folder. Out: its tensors under our names, read from the files one at a time. The model class is a parameter, so
that the model itself can be loaded through here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mllm.config import MLLMConfig
from mllm.loading.model_folder import CONFIG_FILE
from mllm.released.config import is_released
from mllm.released.weights import plan, to_upstream
from tokenizer.key_report import require_same_tensors
from tokenizer.tensor_files import TensorFiles, weight_files

RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tables that old versions of transformers saved although they follow from the config."""


class ReleasedTensors(Mapping[str, Tensor]):
    """The tensors of a released model under our names; what is stacked here is put together when asked for."""

    def __init__(self, files: TensorFiles, keys: list[str]) -> None:
        self.files, self.recipes = files, plan(keys)

    def __getitem__(self, key: str) -> Tensor:
        return self.recipes[key].make(self.files)

    def __iter__(self) -> Iterator[str]:
        return iter(self.recipes)

    def __len__(self) -> int:
        return len(self.recipes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the text embedding, and so of the model."""
        return self.files.shapes["model.embed_tokens.weight"].dtype


def is_released_folder(name: Any) -> bool:
    """Whether this is a folder with a model in the released layout."""
    path = Path(name) / CONFIG_FILE if isinstance(name, str | Path) else None
    if path is None or not path.is_file():
        return False
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(fields, dict) and is_released(fields)


def open_released(folder: Path, model_class: type[nn.Module], config: MLLMConfig) -> ReleasedTensors:
    """The tensors of the folder; refuses it unless they are exactly those of a model of this config."""
    files = TensorFiles(weight_files(folder))
    keys = [key for key in files if not RECOMPUTED.fullmatch(key)]
    expected = upstream_shapes(our_shapes(model_class, config), config)
    require_same_tensors({key: files.shapes[key] for key in keys}, expected, source=folder)
    return ReleasedTensors(files, keys)


def our_shapes(model_class: type[nn.Module], config: MLLMConfig) -> dict[str, Tensor]:
    """Every tensor of a model that is stored, on the meta device."""
    with torch.device("meta"):
        state = model_class(config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def upstream_shapes(ours: Mapping[str, Tensor], config: MLLMConfig) -> dict[str, Tensor]:
    """The same tensors in the released layout."""
    return to_upstream(ours, codebook_size=config.codebook_size)


def own_memory(model: nn.Module, read: Mapping[str, Tensor]) -> None:
    """Copy the weights that still lie in mapped files, so that the files may be changed or removed."""
    mapped = {tensor.data_ptr() for tensor in read.values()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
            if is_plain and tensor.data_ptr() in mapped:
                tensor.data = tensor.data.clone()
