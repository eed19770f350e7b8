"""`mllm merge ADAPTER -o OUT`: a trained adapter and the model it was trained on become one model folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mllm.loading.model_folder import find_model_folder
from mllm.model import MLLMForConditionalGeneration
from mllm.processor import MLLMProcessor

ADAPTER_CONFIG = "adapter_config.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="mllm merge",
        description="Add a trained adapter to the model it was trained on; the result is a model like any other.",
        epilog="example: mllm merge runs/lora/final -o runs/lora/model",
    )
    parser.add_argument("adapter", type=Path, help="the folder `final` (or a checkpoint) of a run with an adapter")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where to write the model folder")
    parser.add_argument("--base", help="the model under the adapter; default: the one that its config names")
    words = parser.parse_args(argv)
    merge_folder(words.adapter, words.output, base=words.base)
    print(f"the merged model is in {words.output}")
    return 0


def merge_folder(adapter: Path, output: Path, *, base: str | Path | None = None) -> None:
    """Write the merged model, with the base's tokenizers, to `output`.

    Raises:
        FileNotFoundError: the folder holds no adapter, or its base is gone.
    """
    from train.adapters import merge

    folder = find_model_folder(base or base_of(adapter))
    model = MLLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    merge(model, adapter).save_pretrained(output)
    MLLMProcessor.from_pretrained(folder).save_pretrained(output)


def base_of(adapter: Path) -> str:
    """The model that an adapter was trained on."""
    path = adapter / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no adapter in {adapter}: found no {ADAPTER_CONFIG}; give the "
            "folder that a run with an adapter wrote"
        )
    return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
